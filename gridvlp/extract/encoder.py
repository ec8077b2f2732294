"""The frozen encoder: a backbone's weights, made fast, and all that is needed to use them right.

A trained encoder is a folder of encoder.safetensors (Detectron2's key names) and encoder.json.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gridvlp.atomic import write_json
from gridvlp.errors import UserError
from gridvlp.extract.backbone import (
    STRIDE,
    Architecture,
    c4_config,
    load_strictly,
    new_architecture,
)
from gridvlp.extract.foreign_checkpoints import read_checkpoint, sha256_of
from gridvlp.extract.options import BACKBONES, SIZE
from gridvlp.extract.published import FILES, published_weights
from gridvlp.run.devices import choose_device, choose_precision

FORMAT = 1
RANDOM_CLASSES = 1600  # of a random detector: Visual Genome's


@dataclass(frozen=True)
class Weights:
    """A backbone's weights with what is known of them."""

    name: str
    architecture: Architecture
    state: dict[str, torch.Tensor]
    sha256: str
    size: str = SIZE  # that it was trained with
    notes: tuple[str, ...] = ()  # what was left aside or assumed in reading them, to be told


def read_weights(
    source: str, backbone: str = "x50", width: float = 1.0, detector: bool = False
) -> Weights:
    """Read weights by name, from a run, an encoder folder or a checkpoint; or make random ones.

    Names are r50, x101 and x152: grid-feats-vqa's published weights, which are fetched once. A file
    is .safetensors, or a .pth or .pkl as grid-feats-vqa, Detectron2 and torchvision write them;
    nothing in it is run. The architecture is told from the shapes.

    Args:
        source: path, or "random".
        backbone: of random weights.
        width: of random weights.
        detector: keep the whole detector, by its full key names, and not the backbone alone.

    Raises:
        UserError: there is nothing at ``source``, or it holds no backbone.
    """
    if source == "random":
        return _random_weights(new_architecture(backbone, width), detector)
    if source in FILES:
        return _read_file(published_weights(source), detector)
    path = Path(source)
    weights = None
    for folder in (path, path / "encoder"):
        if (folder / "encoder.json").is_file():
            weights = _read_folder(folder)
    if path.is_file():
        weights = _read_file(path, detector)
    if weights is not None:
        if not detector and not any(key.startswith("res5.") for key in weights.state):
            raise UserError(
                f"{path} is of a C4 detector, whose maps end at res4: extract its regions with "
                "--regions 100, or name the weights of a grid encoder."
            )
        return weights
    if (path / "run.json").is_file():
        raise UserError(
            f"The training in {path} is not finished, so there is no encoder yet: go on with "
            "`gridvlp train-extractor --visual-genome data/vg`."
        )
    if source in BACKBONES:
        raise UserError(
            f"Nobody published a detector {source}: name one of {', '.join(FILES)}, give a "
            "checkpoint, or train it with `gridvlp train-extractor`."
        )
    raise UserError(
        f"There are no encoder weights at {path}: train them with `gridvlp train-extractor "
        "--visual-genome data/vg`, or name a checkpoint with --weights."
    )


def _read_folder(folder: Path) -> Weights:
    try:
        about = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise UserError(
                f"{folder} has format {about['format']}; this version reads format {FORMAT}."
            )
        known: dict[str, Any] = about["architecture"]
        values: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in known.items()}
        architecture = Architecture(**values)
        sha256 = sha256_of(folder / "encoder.safetensors")
        if sha256 != about["weights_sha256"]:
            raise UserError(f"{folder}/encoder.safetensors is not the file it was: copy it anew.")
        state = load_file(folder / "encoder.safetensors")
        return Weights(about["name"], architecture, state, sha256, about["size"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} is no whole encoder ({error}).") from error


def _read_file(path: Path, detector: bool) -> Weights:
    held = read_checkpoint(path)
    state, notes = held.backbone, held.notes
    if detector:
        state = {**{f"backbone.{k}": v for k, v in state.items()}, **held.heads}
        notes = tuple(note for note in notes if "left aside" not in note)
    return Weights(path.stem, held.architecture, state, sha256_of(path), notes=notes)


def _random_weights(architecture: Architecture, detector: bool) -> Weights:
    """Weights of seed 0, for benchmarks and tests.

    Without statistics to normalise by, every block would double the variance of its input; the
    last norm of each block is scaled so that the map stays in float16's range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cfg = c4_config(architecture, RANDOM_CLASSES)
        built = build_model(cfg) if detector else architecture.build()
        state: dict[str, torch.Tensor] = built.cpu().state_dict()
    for key, value in state.items():
        if key.endswith("conv3.norm.weight"):
            value.fill_(0.2)
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].numpy().tobytes())
    return Weights("random", architecture, state, digest.hexdigest())


def save_encoder(
    folder: Path,
    name: str,
    architecture: Architecture,
    state: dict[str, torch.Tensor],
    size: str,
    facts: dict[str, Any],
) -> None:
    """Write an encoder folder.

    Args:
        folder: an empty folder.
        name: of the encoder, kept in every store that it fills.
        architecture: of the backbone.
        state: its weights by Detectron2's key names, without the prefix "backbone."; of a C4
            detector all, by their full names.
        size: that it was trained with.
        facts: what else is worth keeping: vocabulary, recipe.
    """
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    save_file(plain, folder / "encoder.safetensors")
    about = {
        "format": FORMAT,
        "name": name,
        "weights_sha256": sha256_of(folder / "encoder.safetensors"),
        "architecture": asdict(architecture),
        "size": size,
        "stride": STRIDE,
        **facts,
    }
    write_json(folder / "encoder.json", about)


def device_name(device: torch.device) -> str:
    """The device as a store lists it among the software that wrote to it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def refuse_tf32(dtype: torch.dtype) -> None:
    """Let float32 be float32: cuDNN's convolutions would round its products to TF32."""
    if dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


class FrozenEncoder(nn.Module):
    """Photos to C5 maps.

    The norms are folded into the convolutions, memory is channels-last, and the arithmetic is
    bfloat16 (on older GPUs float16) where the hardware has it.

    Args:
        weights: of the backbone.
        precision: "auto", "bfloat16", "float16" or "float32".

    Raises:
        UserError: the weights do not fit the backbone inferred from their shapes.
    """

    def __init__(self, weights: Weights, precision: str = "auto") -> None:
        super().__init__()
        self.device = choose_device()
        self.dtype = choose_precision(precision, self.device)
        refuse_tf32(self.dtype)
        self.channels = weights.architecture.channels
        self.pixels = Pixels(weights.architecture)
        self.backbone = weights.architecture.build()
        load_strictly(self.backbone, weights.state, weights.name)
        fold_norms(self.backbone)
        self.requires_grad_(False).eval()
        self.backbone.to(self.device, self.dtype, memory_format=torch.channels_last)
        self.pixels.to(self.device)

    @torch.inference_mode()
    def forward(self, pixels_BHW3: torch.Tensor) -> torch.Tensor:
        """Encode photos of one size.

        Args:
            pixels_BHW3: (B, H, W, 3), uint8, RGB.

        Returns:
            (B, C, ceil(H / 32), ceil(W / 32)), float32, after the last ReLU.
        """
        pixels_B3HW = self.pixels(pixels_BHW3.to(self.device), self.dtype)
        return self.backbone(pixels_B3HW)["res5"].float()


class Pixels(nn.Module):
    """What an architecture does to pixels before its first convolution."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        mean_3, std_3 = (
            torch.tensor(values) for values in (architecture.pixel_mean, architecture.pixel_std)
        )
        self.flipped = architecture.channel_order == "BGR"
        self.scale_3: torch.Tensor
        self.shift_3: torch.Tensor
        self.register_buffer("scale_3", 1 / std_3, persistent=False)
        self.register_buffer("shift_3", -mean_3 / std_3, persistent=False)

    def forward(self, pixels_BHW3: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """RGB photos (B, H, W, 3), uint8, as (B, 3, H, W), normalised, channels-last."""
        if self.flipped:
            pixels_BHW3 = pixels_BHW3.flip(-1)
        scaled_BHW3 = torch.addcmul(self.shift_3, pixels_BHW3.float(), self.scale_3)
        # (B, H, W, 3) seen as (B, 3, H, W) is channels-last already
        return scaled_BHW3.to(dtype).permute(0, 3, 1, 2)


def fold_norms(module: nn.Module) -> None:
    """Multiply frozen norms into the convolutions before them, in place; the result is the same."""
    for layer in module.modules():
        if isinstance(layer, Conv2d) and isinstance(layer.norm, FrozenBatchNorm2d):
            norm = layer.norm
            # double: the product is rounded once, as it would be without folding
            scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
            bias = norm.bias.double() - norm.running_mean.double() * scale
            folded = layer.weight.double() * scale.view(-1, 1, 1, 1)
            layer.weight = nn.Parameter(folded.to(layer.weight.dtype))
            layer.bias = nn.Parameter(bias.to(layer.weight.dtype))
            layer.norm = None
