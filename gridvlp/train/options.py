"""What the training commands are told, checked where it is made.

Imports nothing heavy: the command line shows these defaults in --help.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gridvlp.errors import UserError

SOURCES = ("coco-captions", "vg-regions", "vqa", "gqa", "vg-qa")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the defaults that differ between stages are set where these are made."""

    learning_rate: float
    epochs: int
    batch_size: int  # sentences per step, over all processes and accumulated micro-batches
    warmup: float  # share of all steps
    seed: int = 0
    accumulate: int = 1
    head_lr_multiplier: float = 1.0  # of the answer head (UNITER, ViLT: 10)
    layer_lr_decay: float = 1.0  # each layer's rate over that of the layer above it
    clip: float = 1.0  # LXMERT in pre-training; the largest norm of the gradient, 0 for any
    ema: float = 0.0  # decay of the average of the weights that becomes the model, 0 for none
    gradient_checkpointing: bool = False
    precision: str = "auto"  # auto, float32, bfloat16
    threads: int = 2
    save_steps: int = 1000

    def __post_init__(self) -> None:
        for name in (
            *("learning_rate", "epochs", "batch_size", "accumulate", "threads", "save_steps"),
            *("head_lr_multiplier", "layer_lr_decay"),
        ):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"--{name.replace('_', '-')} must be above 0.")
        if not (self.clip >= 0 and math.isfinite(self.clip)):
            raise UserError("--clip must not be below 0.")
        if not 0 <= self.ema < 1:
            raise UserError("--ema must be from 0 to below 1, such as 0.9999.")
        if not 0 <= self.warmup < 1:
            raise UserError("--warmup is a share of all steps: from 0 to below 1.")
        if self.batch_size % self.accumulate:
            raise UserError("--batch-size must be a multiple of --accumulate.")

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the run that it continues."""
        free = {"threads", "save_steps", "gradient_checkpointing"}
        return {name: value for name, value in asdict(self).items() if name not in free}


def micro_batch_size(batch_size: int, processes: int, accumulate: int) -> int:
    """Examples that one process takes at a time.

    Raises:
        UserError: the batch cannot be divided evenly.
    """
    parts = processes * accumulate
    if batch_size % parts:
        raise UserError(
            f"--batch-size {batch_size} must be a multiple of {parts} (processes x --accumulate)."
        )
    return batch_size // parts


# LXMERT's fine-tuning settings (RECIPES: lr, epochs, batch 32, warm-up 10%); its tasks clip the
# gradient's norm at 5, its pre-training at 1.
FINE_TUNING: dict[str, TrainingSettings] = {
    task: TrainingSettings(
        learning_rate=learning_rate, epochs=4, batch_size=32, warmup=0.1, clip=5.0
    )
    for task, learning_rate in (("vqa", 5e-5), ("gqa", 1e-5), ("nlvr2", 5e-5))
}


BERT_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "layers": 12,
    "heads": 12,
    "dropout": 0.1,
    "initializer_range": 0.02,  # for this width; a narrow model wants 1/sqrt(width)
}


FREE = ("training", "run", "other_recipe")  # what does not decide a run's result by itself


def _recorded(features: tuple[str | Path, ...]) -> list[str]:
    """The stores without the signature of a URL, which is secret and changes between resumes."""
    from gridvlp.store.files import without_query

    return [without_query(place)[0] for place in features]


@dataclass(frozen=True)
class PreTrainingOptions:
    """What ``gridvlp pretrain`` is told; the defaults are the paper's (4.2) where it gives them."""

    features: tuple[str | Path, ...]
    data: Path = Path("data")
    run: Path = Path("runs/pretrain")
    sources: tuple[str, ...] = SOURCES
    init: str | None = None  # a BERT or gridvlp checkpoint; None from scratch
    vocabulary: Path | None = None
    answers: Path | None = None
    grids: int | None = 100  # paper 4.2
    sentences_per_read: int = 1  # LXMERT shuffles every pair alone
    # Sizes: None for those of the checkpoint, or of BERT-base from scratch.
    hidden_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    dropout: float | None = None
    initializer_range: float | None = None
    allow_leakage: bool = False
    other_recipe: bool = False  # of the maps than that of --init's
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(
            learning_rate=1e-4,  # paper 4.2
            epochs=30,  # paper 4.2
            batch_size=512,  # paper 4.2
            warmup=0.05,  # LXMERT
        )
    )

    def __post_init__(self) -> None:
        if self.grids is not None and self.grids <= 0:
            raise UserError("--grids must be above 0, or 'all'.")
        if self.sentences_per_read <= 0:
            raise UserError("--sentences-per-read must be above 0.")
        sizes = self.sizes
        for name in ("hidden_size", "layers", "heads", "initializer_range"):
            if not (sizes[name] > 0 and math.isfinite(sizes[name])):
                raise UserError(f"--{name.replace('_', '-')} must be above 0.")
        if self.init is None and sizes["hidden_size"] % sizes["heads"]:
            raise UserError("--hidden-size must be a multiple of --heads.")
        if not 0 <= sizes["dropout"] < 1:
            raise UserError("--dropout must be from 0 to below 1.")

    @property
    def sizes(self) -> dict[str, Any]:
        """The sizes of a model from scratch, those of BERT-base where none is named."""
        return {
            name: default if getattr(self, name) is None else getattr(self, name)
            for name, default in BERT_BASE.items()
        }

    def identity(self) -> dict[str, Any]:
        """What decides the result; a resumed run must have the same."""
        named = {k: v for k, v in vars(self).items() if k not in (*FREE, *BERT_BASE)}
        if self.init is None:  # otherwise the checkpoint decides
            named |= self.sizes
        return {**named, "features": _recorded(self.features), **self.training.identity()}


@dataclass(frozen=True)
class FineTuningOptions:
    """What ``gridvlp finetune`` is told."""

    task: str
    features: tuple[str | Path, ...]
    training: TrainingSettings
    data: Path = Path("data")
    run: Path | None = None  # runs/finetune-<task>
    init: Path = Path("runs/pretrain")
    fresh: bool = False  # sizes and vocabulary of init, weights from scratch
    answers: Path | None = None
    train_splits: tuple[str, ...] | None = None  # the task's own choice (RECIPES)
    valid_split: str | None = None
    head: str | None = None  # of nlvr2
    loss: str | None = None  # of gqa
    other_recipe: bool = False  # of the maps than that of --init's

    @property
    def own(self) -> dict[str, str]:
        """The task's own options, as far as they are given."""
        values = {"head": self.head, "loss": self.loss}
        return {name: value for name, value in values.items() if value is not None}

    def identity(self) -> dict[str, Any]:
        """What decides the result; a resumed run must have the same."""
        named = {k: v for k, v in vars(self).items() if k not in FREE}
        return {**named, "features": _recorded(self.features), **self.training.identity()}
