"""The frozen encoder: batch norms folded, one fast forward pass, nothing but C5.

An encoder on disk is a folder with encoder.safetensors (Detectron2's key names, ``backbone.*``)
and encoder.json (backbone, width, pixel statistics, resize rule). A checkpoint as published by
grid-feats-vqa loads as well.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gridvlp.errors import UserError
from gridvlp.extract.detector import backbone_config, build_backbone
from gridvlp.extract.settings import (
    BACKBONES,
    PIXEL_MEAN,
    STRIDE,
    TrainExtractorOptions,
    check_backbone,
    parse_size,
)
from gridvlp.extract.visual_genome import Vocabulary
from gridvlp.run_folder import versions, write_json

EXTRACTION_DILATION = 1
PREFIX = "backbone."
UNTRAINED = "random"


@dataclass(frozen=True)
class EncoderFacts:
    """What an encoder needs besides weights."""

    name: str
    backbone: str
    width: float
    pixel_mean: tuple[float, float, float]  # BGR, of 255
    pixel_std: tuple[float, float, float]
    size: str  # shorter x longest side in pixels


class Encoder:
    """Frozen C5: pixels in, grid maps out.

    Args:
        facts: what was trained, and how its pixels are normalised.
        weights: backbone weights by Detectron2's names, without the ``backbone.`` prefix.
        precision: auto (bfloat16 where the hardware multiplies in it), float32 or bfloat16.

    Raises:
        UserError: the weights do not fit the backbone.
    """

    def __init__(self, facts: EncoderFacts, weights: dict[str, Tensor], precision: str) -> None:
        self.facts = facts
        self.weights_sha256 = weights_digest(weights)
        cfg = backbone_config(facts.backbone, facts.width, "FrozenBN", EXTRACTION_DILATION)
        backbone = build_backbone(cfg)
        _load_strictly(backbone, weights, facts)
        self.channels: int = backbone.output_shape()["res5"].channels
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if precision == "auto":
            if self.device.type == "cuda":
                fast = torch.cuda.is_bf16_supported()
            else:
                fast = bool(torch.cpu._is_avx512_bf16_supported())  # type: ignore[attr-defined]
            precision = "bfloat16" if fast else "float32"
        self.precision = precision
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        _fold_batch_norms(backbone)
        self.backbone = (
            backbone.eval()
            .requires_grad_(False)
            .to(self.device, self.dtype, memory_format=torch.channels_last)
        )
        self._mean = torch.tensor(facts.pixel_mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(facts.pixel_std, device=self.device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, pixels_BHW3: np.ndarray) -> np.ndarray:
        """Maps (B, C, ceil(H / 32), ceil(W / 32)), float32, of uint8 BGR pixels of one size."""
        pixels_B3HW = torch.from_numpy(pixels_BHW3).to(self.device).permute(0, 3, 1, 2)
        normal_B3HW = (pixels_B3HW.float() - self._mean) / self._std
        maps_BCHW = self.backbone(normal_B3HW.to(self.dtype, memory_format=torch.channels_last))[
            "res5"
        ]
        return maps_BCHW.float().contiguous().cpu().numpy()

    def describe(self, size: str) -> dict[str, Any]:
        """What a store records, so that its maps can be trusted and made again."""
        shorter, longest = parse_size(size)
        return {
            "name": self.facts.name,
            "weights_sha256": self.weights_sha256,
            "backbone": self.facts.backbone,
            "width": self.facts.width,
            "layer": "res5, after ReLU",
            "stride": STRIDE,
            "pixel_mean": list(self.facts.pixel_mean),
            "pixel_std": list(self.facts.pixel_std),
            "channel_order": "BGR, 0-255",
            "resize": {
                "shorter": shorter,
                "longest": longest,
                "interpolation": "bilinear (Pillow)",
                "padding": "none",
            },
            "precision": self.precision,
            "versions": versions(),
        }


def load_encoder(weights: str, backbone: str, width: float, precision: str) -> Encoder:
    """An encoder from a run of train-extractor, its encoder folder, a checkpoint, or "random".

    Args:
        weights: a folder, a .pth of grid-feats-vqa, or "random".
        backbone, width: what to build for a bare checkpoint and for random weights.
        precision: as for ``Encoder``.

    Raises:
        UserError: there is no encoder, or it does not fit.
    """
    if weights == UNTRAINED:
        facts = EncoderFacts(
            f"untrained {backbone}", backbone, width, PIXEL_MEAN, BACKBONES[backbone].pixel_std,
            "600x1000",
        )  # fmt: skip
        return Encoder(facts, _random_weights(backbone, width), precision)
    path = Path(weights)
    folder = path / "encoder" if (path / "encoder").is_dir() else path
    if (folder / "encoder.json").is_file():
        facts = _read_facts(folder / "encoder.json")
        return Encoder(facts, _read_weights(folder / "encoder.safetensors"), precision)
    if path.is_file():
        facts = EncoderFacts(
            path.stem, backbone, width, PIXEL_MEAN, BACKBONES[backbone].pixel_std, "600x1000"
        )
        return Encoder(facts, _read_weights(path), precision)
    raise UserError(
        f"There are no encoder weights at {weights}: train them with "
        "`gridvlp train-extractor --visual-genome data/vg`, or give --weights "
        "(a folder, a grid-feats-vqa checkpoint, or 'random' for a trial)."
    )


def save_encoder(
    folder: Path, model: nn.Module, options: TrainExtractorOptions, vocabulary: Vocabulary
) -> None:
    """Write a trained detector as an encoder: all its weights, what it needs, its vocabulary."""
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "encoder.safetensors")
    own = {name[len(PREFIX) :]: v for name, v in weights.items() if name.startswith(PREFIX)}
    write_json(
        folder / "encoder.json",
        {
            "name": f"{options.backbone} on Visual Genome",
            "backbone": options.backbone,
            "width": options.width,
            "pixel_mean": list(PIXEL_MEAN),
            "pixel_std": list(BACKBONES[options.backbone].pixel_std),
            "size": options.size,
            "weights_sha256": weights_digest(own),
        },
    )
    vocabulary.save(folder)


def load_weights(backbone: nn.Module, path: Path) -> str:
    """Start a backbone from given weights; says what it did.

    Raises:
        UserError: they do not fit.
    """
    _load_strictly(backbone, _read_weights(path), path)
    return f"Backbone starts from {path}."


def weights_digest(weights: dict[str, Tensor]) -> str:
    """Hex sha256 over names, shapes and values, whatever file they came in."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if not name.endswith("num_batches_tracked"):
            value = weights[name].float().contiguous()
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _read_facts(path: Path) -> EncoderFacts:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        facts = EncoderFacts(
            told["name"],
            told["backbone"],
            told["width"],
            tuple(told["pixel_mean"]),
            tuple(told["pixel_std"]),
            told["size"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no encoder's description ({error}): train it again.") from error
    check_backbone(facts.backbone, facts.width)
    return facts


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Backbone weights of a file, by Detectron2's names without the prefix."""
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            found = loaded.get("model", loaded)
            found = {name: torch.as_tensor(value) for name, value in found.items()}
    except FileNotFoundError:
        raise UserError(f"{path} is not there.") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} holds no weights that can be loaded: {reason}") from error
    except Exception as error:  # pickle.UnpicklingError: code in the file
        raise UserError(f"{path} is refused: it holds more than plain weights.") from error
    return {name[len(PREFIX) :]: v for name, v in found.items() if name.startswith(PREFIX)}


def _load_strictly(backbone: nn.Module, weights: dict[str, Tensor], origin: object) -> None:
    wanted = backbone.state_dict()
    given = {n: v for n, v in weights.items() if not n.endswith("num_batches_tracked")}
    missing = [
        name for name in wanted
        if not name.endswith("num_batches_tracked")
        and (name not in given or given[name].shape != wanted[name].shape)
    ]  # fmt: skip
    unexpected = [name for name in given if name not in wanted]
    if missing or unexpected:
        name = origin.name if isinstance(origin, EncoderFacts) else origin
        raise UserError(
            f"The weights of {name} do not fit the backbone: {len(missing)} of {len(wanted)} keys "
            f"missing or of another shape ({', '.join(missing[:3]) or '-'}), {len(unexpected)} "
            f"unexpected ({', '.join(unexpected[:3]) or '-'}). Check --backbone and --width."
        )
    backbone.load_state_dict(given, strict=False)


def _random_weights(backbone: str, width: float) -> dict[str, Tensor]:
    """Weights that are the same every time; residual branches halved so that maps stay sane."""
    generator = torch.Generator().manual_seed(0)
    cfg = backbone_config(backbone, width, "FrozenBN", EXTRACTION_DILATION)
    weights = build_backbone(cfg).state_dict()
    for name, value in weights.items():
        if value.ndim == 4:
            fan = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan) ** 0.5)
        elif name.endswith("conv3.norm.weight"):
            value.fill_(0.5)
    return weights


def _fold_batch_norms(backbone: nn.Module) -> None:
    """Fold each frozen batch norm into the convolution before it."""
    for module in backbone.modules():
        if isinstance(module, Conv2d) and isinstance(module.norm, FrozenBatchNorm2d):
            norm = module.norm
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            bias = norm.bias - norm.running_mean * scale
            module.weight = nn.Parameter(module.weight * scale.view(-1, 1, 1, 1))
            module.bias = nn.Parameter(bias)
            module.norm = None
