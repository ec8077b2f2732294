"""Checkpoint files of other projects: whose they are, what is in them, how their pixels are made.

Known are grid-feats-vqa's and Detectron2's detectors (.pth), Detectron2's ImageNet models (.pkl, in
Caffe2's names or torchvision's), torchvision's state dicts, and any of them as .safetensors.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names
from numpy._core import multiarray
from safetensors import SafetensorError
from safetensors.torch import load_file

from gridvlp.errors import UserError, first_line
from gridvlp.extract.backbone import STD_BGR, Architecture, architecture_of

# torchvision's ImageNet models: RGB, these statistics of 0-255 pixels
TORCHVISION_PIXELS: dict[str, Any] = {
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
    "channel_order": "RGB",
    "stride_in_1x1": False,
}
ATTRIBUTES = "roi_heads.attribute_predictor.attr_score.weight"  # grid-feats-vqa's mark
# what a pickle of arrays is made of; nothing else is admitted
ADMITTED = {
    **{
        (f"numpy.{core}.multiarray", name): getattr(multiarray, name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True)
class Checkpoint:
    """A backbone's weights, by Detectron2's names without "backbone.", and all else in the file.

    ``notes`` say what was left aside and what had to be assumed.
    """

    backbone: dict[str, torch.Tensor]
    heads: dict[str, torch.Tensor]
    architecture: Architecture
    notes: tuple[str, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file; nothing in it is run.

    Raises:
        UserError: it is damaged, or holds no backbone that is known.
    """
    held = _load(path)
    model = held.get("model", held.get("blobs", held)) if isinstance(held, dict) else {}
    found = _tensors(model) if isinstance(model, dict) else {}
    if not found:
        raise UserError(f"{path} holds no weights.")
    torchvision = "layer1.0.conv1.weight" in found or held.get("__author__") == "torchvision"
    caffe2 = "conv1_w" in found
    if "layer1.0.conv1.weight" in found:
        found = _from_torchvision(found)
    elif caffe2:
        found = _from_caffe2(found)
    backbone, heads = _parted(found, of_imagenet=torchvision or caffe2)
    if any(".conv2_offset." in key for key in backbone):
        raise UserError(
            f"{path} has deformable convolutions, as grid-feats-vqa's X-152++: they are not "
            "supported. Take its X-152 (--weights x152)."
        )
    architecture = architecture_of(backbone, str(path))
    notes = []
    if heads:
        what = "the classifier" if torchvision or caffe2 else "the detector's heads"
        notes.append(f"{path.name}: {len(heads)} tensors of {what} left aside.")
    if torchvision:
        architecture = replace(architecture, **TORCHVISION_PIXELS)
    elif caffe2 and architecture.backbone != "r50":
        # Detectron's files, whose norms are fused, have the std within conv1, as MSRA's R-50 has;
        # Detectron2's, with whole norms, have not.
        whole = any(key.endswith("norm.running_var") for key in backbone)
        architecture = replace(architecture, pixel_std=STD_BGR if whole else (1.0, 1.0, 1.0))
    elif "pixel_mean" in heads and "pixel_std" in heads:
        mean, std = (tuple(heads[f"pixel_{name}"].flatten().tolist()) for name in ("mean", "std"))
        architecture = replace(architecture, pixel_mean=mean, pixel_std=std)
    elif not caffe2 and ATTRIBUTES not in heads:
        notes.append(
            f"{path.name} does not say how its pixels are prepared: taken to be those of "
            f"grid-feats-vqa's {architecture.backbone} (BGR, std "
            f"{', '.join(f'{value:g}' for value in architecture.pixel_std)}"
            f"{', stride in the 1x1 convolutions' if architecture.stride_in_1x1 else ''})."
        )
    return Checkpoint(backbone, heads, architecture, tuple(notes))


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                return _ArraysOnly(file, encoding="latin1").load()
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        *(OSError, EOFError, RuntimeError, pickle.UnpicklingError, SafetensorError, MemoryError),
        *(ValueError, LookupError, TypeError, AttributeError, OverflowError, ImportError),
    ) as error:
        # torch.load and pickle raise all of these on damaged files
        first = first_line(error)
        if isinstance(error, pickle.UnpicklingError) and path.suffix != ".pkl":
            # torch's own words advise to load it unsafely
            first = "it is damaged, or holds more than tensors, which is not loaded"
        raise UserError(
            f"{path} cannot be read as a checkpoint of plain tensors: {first}"
        ) from error


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain containers and NumPy arrays, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 2's strings of bytes come
            return _latin1
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is no array")
        return ADMITTED[module, name]


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


def _tensors(held: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """The tensors, and the arrays of numbers as tensors."""
    found = {}
    for key, value in held.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            native = value.astype(value.dtype.newbyteorder("="))
            found[str(key)] = torch.from_numpy(np.ascontiguousarray(native))
        elif isinstance(value, torch.Tensor):
            found[str(key)] = value
    return found


def _parted(
    found: dict[str, torch.Tensor], of_imagenet: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The backbone and the rest. A bare backbone has no rest, but a classifier if of ImageNet."""
    prefixed = any(key.startswith("backbone.") for key in found)
    backbone, rest = {}, {}
    for key, value in found.items():
        if prefixed:
            own = key.startswith("backbone.")
        else:
            # Detectron2's own files have stem.fc, and of Caffe2 a bias that the norm overrides
            own = not of_imagenet or (
                re.match(r"(stem|res[2-5])\.", key) is not None
                and not key.startswith(("stem.fc.", "stem.conv1.bias"))
            )
        if own:
            backbone[key.removeprefix("backbone.")] = value
        else:
            rest[key] = value
    return backbone, rest


def _from_caffe2(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kept = {key: value for key, value in weights.items() if not key.endswith("_momentum")}
    return dict(zip(convert_basic_c2_names(list(kept)), kept.values(), strict=True))


def _from_torchvision(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a torchvision ResNet's weights to Detectron2's names."""
    renamed = {}
    for key, value in weights.items():
        for i in range(1, 5):
            key = key.replace(f"layer{i}.", f"res{i + 1}.")
        if key.startswith(("conv1.", "bn1.")):
            key = f"stem.{key}"
        key = key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        for i in range(1, 4):
            key = key.replace(f"bn{i}.", f"conv{i}.norm.")
        renamed[key] = value
    return renamed


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
