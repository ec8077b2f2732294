"""What is said of a step that failed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gridvlp.errors import UserError
from gridvlp.train.batch import Batch
from gridvlp.train.options import TrainingSettings

FLOAT16_MOST = torch.finfo(torch.float16).max


def not_finite(
    number: int, micro_batches: Sequence[Batch], values: dict[str, float], norm: float, half: bool
) -> UserError:
    """The error of a step whose loss or gradient is not a finite number.

    Args:
        number: of the step, from 0.
        micro_batches: of this process.
        values: the losses.
        norm: of the gradient.
        half: the model computes in float16.
    """
    summary = (
        f"The loss or its gradient is not finite at step {number + 1} ({describe(values)}, "
        f"gradient {norm:.4g})"
    )
    if half and (large := sorted({key for batch in micro_batches for key in _beyond(batch)})):
        return UserError(
            f"{summary}: the maps of {_some(large)} hold numbers beyond float16. Give "
            "--precision float32 in a new --run."
        )
    keys = sorted({key for batch in micro_batches for key in batch.keys})
    return UserError(
        f"{summary}; images of the batch: {_some(keys)}. The last checkpoint is kept; try a lower "
        "--learning-rate."
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory ran out."""
    # A CPU's allocator raises a plain RuntimeError.
    plain = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return plain or isinstance(error, torch.OutOfMemoryError | MemoryError)


def memory_ran_out(number: int, settings: TrainingSettings) -> UserError:
    """The error of a step, numbered from 0, for which the memory was too small."""
    return UserError(
        f"The memory ran out at step {number + 1}. Give --accumulate a larger number (now "
        f"{settings.accumulate})"
        + ("" if settings.gradient_checkpointing else " or --gradient-checkpointing")
        + ": both leave the result as it is. The last checkpoint is kept."
    )


def describe(values: dict[str, float]) -> str:
    """Figures as a line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _beyond(batch: Batch) -> list[str]:
    """The images whose maps hold numbers beyond float16."""
    grids_IGC = batch.inputs["grids_IGC"]
    assert grids_IGC is not None
    most_I = grids_IGC.abs().amax((1, 2))
    return [key for key, most in zip(batch.keys, most_I, strict=True) if most > FLOAT16_MOST]


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
