"""What the two commands of the first stage are told, checked where it is made.

Imports nothing heavy: the command line shows these defaults in --help.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gridvlp.errors import UserError
from gridvlp.run.skip_list import SKIP_LIMIT

BACKBONES = ("x50", "x101", "x152", "r50")
SIZE = "600x1000"  # paper 4.2: shorter side 600, longer at most 1000
PRECISIONS = ("auto", "float32")
DTYPES = ("float16", "bfloat16", "float32", "int8")
EXTRACT_PRECISIONS = ("auto", "bfloat16", "float16", "float32")
OPTIMIZERS = ("sgd", "adamw")


def parse_size(size: str) -> tuple[int, int]:
    """The shorter side and the most that the longer may have, in pixels, of "600x1000".

    Raises:
        UserError: the text is not of that form.
    """
    shorter, x, longest = size.partition("x")
    if not (x and shorter.isdigit() and longest.isdigit() and 0 < int(shorter) <= int(longest)):
        raise UserError(
            f"--size {size}: give the shorter side and the longest that the other may be, "
            "as in 600x1000."
        )
    return int(shorter), int(longest)


def check_backbone(backbone: str, width: float) -> None:
    """Refuse a backbone that cannot be built.

    Raises:
        UserError: an unknown name, or a width that does not leave whole groups.
    """
    if backbone not in BACKBONES:
        raise UserError(f"--backbone {backbone}: there are {', '.join(BACKBONES)}.")
    if not 0 < width <= 4 or (32 * width) % 1:
        raise UserError(f"--width {width}: 32 x width must be a whole number, as with 0.25 or 0.5.")


@dataclass(frozen=True)
class TrainExtractorOptions:
    """What ``gridvlp train-extractor`` is told.

    The defaults are those of grid-feats-vqa (Jiang et al. 2020) where no other source is named.
    """

    visual_genome: Path | None = None  # the official release; or else:
    annotations: tuple[Path, ...] = ()  # COCO-style .json, with or without attribute_ids
    valid_annotations: Path | None = None  # of the same kind; None holds out a share
    photos: tuple[Path, ...] = ()  # folders; none: beside the annotations' folder
    run: Path = Path("runs/extractor")
    backbone: str = "x50"  # the paper's fastest
    width: float = 1.0  # of every layer of the backbone, over the published one
    vocab: Path | None = None  # folder of visual_genome_{objects,attributes}.txt
    weights: Path | None = None  # backbone to start from; None from scratch
    size: str = SIZE
    iterations: int = 90_000
    batch_size: int = 16
    optimizer: str = "sgd"
    learning_rate: float = 0.02
    warmup: int = 1000  # Detectron2's WARMUP_ITERS
    weight_decay: float = 1e-4  # Detectron2
    objects: int = 1600  # names taken from the release where there is no vocab
    attributes: int = 400
    res5_dilation: int = 2
    regions: bool = False  # a C4 detector, for regions in place of grids
    rpn_batch: int = 256  # anchors per photo in the RPN's loss; Detectron2's default
    rpn_boundary: int = 0  # pixels that a trained anchor may reach beyond the photo; -1 any
    roi_batch: int = 512  # boxes per photo in the head's losses; Detectron2's default
    proposals: int = 2000  # kept per photo in training; Detectron2's RPN.POST_NMS_TOPK_TRAIN
    attribute_weight: float = 0.2
    valid: float = 0.05  # share of photos held out; grid-feats-vqa holds out 5,000 of 108,000
    eval_steps: int = 10_000
    save_steps: int = 1000
    seed: int = 0
    precision: str = "auto"
    threads: int = 2
    num_gpus: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"

    def __post_init__(self) -> None:
        if (self.visual_genome is None) != bool(self.annotations):
            raise UserError(
                "Say what to train on: either --visual-genome FOLDER or --annotations FILE."
            )
        if self.visual_genome is not None and (self.valid_annotations or self.photos):
            raise UserError("--valid-annotations and --photos go with --annotations.")
        check_backbone(self.backbone, self.width)
        parse_size(self.size)
        for name in (
            *("iterations", "batch_size", "learning_rate", "objects", "attributes", "rpn_batch"),
            *("roi_batch", "proposals", "eval_steps", "save_steps", "threads"),
            *("num_gpus", "num_machines"),
        ):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0.")
        if self.warmup < 0 or self.attribute_weight < 0:
            raise UserError("--warmup and --attribute-weight cannot be below 0.")
        if self.rpn_boundary < -1:
            raise UserError("--rpn-boundary is a number of pixels, or -1.")
        if not 0 <= self.machine_rank < self.num_machines:
            raise UserError("--machine-rank is a number from 0 to --num-machines less one.")
        if self.num_machines > 1 and self.dist_url == "auto":
            raise UserError(
                "Several machines need an address of the first that all can reach, and a free "
                "port of it: --dist-url tcp://HOST:PORT."
            )
        if self.batch_size % self.processes:
            raise UserError(
                f"--batch-size {self.batch_size} is of all processes together: it must be a "
                f"multiple of {self.processes}."
            )
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"--optimizer is one of {', '.join(OPTIMIZERS)}.")
        if not 0 < self.valid < 1:
            raise UserError("--valid is a share of the photos: above 0 and below 1.")
        if self.res5_dilation not in (1, 2):
            raise UserError("--res5-dilation is 1 or 2.")
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision is one of {', '.join(PRECISIONS)}.")

    @property
    def processes(self) -> int:
        """How many train together, on all machines."""
        return self.num_gpus * self.num_machines

    def identity(self) -> dict[str, Any]:
        """What decides the result; a resumed run must have the same.

        Processes may come and go between resumes: the batch is that of all of them together.
        """
        free = {"run", "threads", "save_steps", "eval_steps"}
        free |= {"num_gpus", "num_machines", "machine_rank", "dist_url"}
        return {name: value for name, value in vars(self).items() if name not in free}


@dataclass(frozen=True)
class ExtractOptions:
    """What ``gridvlp extract`` is told."""

    images: tuple[Path, ...]  # folders, searched through, and single files
    out: Path = Path("store.zarr")
    weights: str = "runs/extractor"  # a run, an encoder folder, a checkpoint, or "random"
    backbone: str = "x50"  # of "random" weights only
    width: float = 1.0  # of "random" weights only
    size: str | None = None  # None: the size that the encoder was trained with
    precision: str = "auto"
    dtype: str = "float16"  # of the store's numbers
    batch_size: int = 8
    workers: int = 2
    regions: int | None = None  # the most of a photo; None for grid maps
    proposals: int = 300  # that regions are chosen of (bottom-up attention)
    skip_limit: int = SKIP_LIMIT
    num_shards: int | None = None  # processes that fill the store together; None: one
    shard: int | None = None

    def __post_init__(self) -> None:
        if not self.images:
            raise UserError("Say which photos: --images FOLDER.")
        if self.regions is not None and self.regions <= 0:
            raise UserError("--regions must be above 0.")
        if self.proposals < (self.regions or 1):
            raise UserError("--proposals cannot be fewer than --regions.")
        if self.skip_limit < 0:
            raise UserError("--skip-limit is a number of photos, or 0 for no limit.")
        if (self.num_shards is None) != (self.shard is None):
            raise UserError("--num-shards and --shard go together: --num-shards 4 --shard 0.")
        if (self.part and not 0 <= self.part[0] < self.part[1]) or self.num_shards == 0:
            raise UserError(
                f"--shard {self.shard} of --num-shards {self.num_shards}: shards count from 0."
            )
        check_backbone(self.backbone, self.width)
        if self.size is not None:
            parse_size(self.size)
        if self.precision not in EXTRACT_PRECISIONS:
            raise UserError(f"--precision is one of {', '.join(EXTRACT_PRECISIONS)}.")
        if self.dtype not in DTYPES:
            raise UserError(f"--dtype is one of {', '.join(DTYPES)}.")
        if self.batch_size <= 0 or self.workers <= 0:
            raise UserError("--batch-size and --workers must be above 0.")

    @property
    def part(self) -> tuple[int, int] | None:
        """(k, n): part k of n that this process extracts; None: all of it."""
        return None if self.shard is None or not self.num_shards else (self.shard, self.num_shards)
