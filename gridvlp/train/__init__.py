"""Maps and sentences to models; never sees a pixel.

    from gridvlp.train import FineTuningOptions, evaluate, finetune

The functions are imported when they are first asked for; the options are light.
"""

from importlib import import_module
from typing import Any

from gridvlp.train.options import (
    FINE_TUNING,
    FineTuningOptions,
    PreTrainingOptions,
    TrainingSettings,
)

__all__ = [
    "FINE_TUNING",
    "FineTuningOptions",
    "PreTrainingOptions",
    "TrainingSettings",
    "answer",
    "evaluate",
    "finetune",
    "get_task",
    "pretrain",
]

_HOMES = {
    "answer": "relevance",
    "evaluate": "evaluation",
    "finetune": "finetuning",
    "get_task": "tasks",
    "pretrain": "pretraining",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
