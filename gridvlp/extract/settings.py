"""What the extraction commands are told, checked where it is made. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gridvlp.errors import UserError

STRIDE = 32  # of C5 (paper 3.2)


@dataclass(frozen=True)
class Backbone:
    """A ResNe(X)t as Detectron2 builds it (RECIPES, grid-feats-vqa)."""

    depth: int
    groups: int
    width_per_group: int
    stride_in_1x1: bool
    pixel_std: tuple[float, float, float]


# BGR, 0-255. X-models come from Caffe2: stride in the 3x3, and std by channel; MSRA's R-50 has
# neither. (The published X-152 wants std 1: its checkpoint says so, see encoder.py.)
_IMAGENET_STD = (57.375, 57.12, 58.395)
BACKBONES = {
    "r50": Backbone(50, 1, 64, True, (1.0, 1.0, 1.0)),
    "x50": Backbone(50, 32, 4, False, _IMAGENET_STD),
    "x101": Backbone(101, 32, 8, False, _IMAGENET_STD),
    "x152": Backbone(152, 32, 8, False, _IMAGENET_STD),
}
PIXEL_MEAN = (103.53, 116.28, 123.675)


def parse_size(text: str) -> tuple[int, int]:
    """(shorter, longest) side from "600x1000".

    Raises:
        UserError: it is not two numbers, or the shorter is the larger.
    """
    parts = str(text).lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--size {text}: give shorter x longest side, such as 600x1000.")
    shorter, longest = map(int, parts)
    if shorter > longest:
        raise UserError(f"--size {text}: the shorter side comes first.")
    return shorter, longest


def check_backbone(name: str, width: float) -> None:
    """Refuse a backbone that cannot be built.

    Raises:
        UserError: no such backbone, or a width that its groups do not divide by.
    """
    if name not in BACKBONES:
        raise UserError(f"There is no backbone {name!r}; there are {', '.join(BACKBONES)}.")
    if width <= 0 or (64 * width) % 4 or (BACKBONES[name].groups * width) % 1:
        raise UserError(f"--width {width}: give 1, 0.5, 0.25 or another share that stays whole.")


@dataclass(frozen=True)
class TrainExtractorOptions:
    """What ``gridvlp train-extractor`` is told; defaults are grid-feats-vqa's unless noted."""

    visual_genome: Path
    run: Path = Path("runs/extractor")
    backbone: str = "x50"
    width: float = 1.0  # ours: share of the published widths
    vocab: Path | None = None
    weights: Path | None = None
    size: str = "600x1000"  # paper 4.2
    iterations: int = 90_000
    batch_size: int = 16
    learning_rate: float = 0.02
    warmup: int = 1000  # Detectron2
    weight_decay: float = 1e-4  # Detectron2
    objects: int = 1600
    attributes: int = 400
    fc_size: int = 1024
    proposals: int = 2000  # Detectron2: kept per image after NMS in training
    boxes_per_image: int = 512  # Detectron2: sampled for the box head
    valid_photos: int = 1000  # ours
    save_steps: int = 1000  # ours
    seed: int = 0
    precision: str = "auto"
    threads: int = 2

    def __post_init__(self) -> None:
        check_backbone(self.backbone, self.width)
        parse_size(self.size)
        for name in ("iterations", "batch_size", "learning_rate", "objects", "fc_size", "threads"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0.")

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the run that it continues."""
        free = {"run", "save_steps", "threads"}
        return {name: value for name, value in asdict(self).items() if name not in free}


@dataclass(frozen=True)
class ExtractOptions:
    """What ``gridvlp extract`` is told."""

    images: tuple[Path, ...]
    out: Path = Path("store.zarr")
    weights: str = "runs/extractor"
    backbone: str = "x50"  # only for random weights and bare checkpoints
    width: float = 1.0  # likewise
    size: str | None = None  # the encoder's own
    precision: str = "auto"
    batch_size: int = 8
    threads: int = 2

    def __post_init__(self) -> None:
        check_backbone(self.backbone, self.width)
        if self.size is not None:
            parse_size(self.size)
        if self.batch_size <= 0 or self.threads <= 0:
            raise UserError("--batch-size and --threads must be above 0.")
