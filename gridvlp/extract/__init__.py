"""Pixels to maps: the only part that loads Detectron2 and image libraries.

    from gridvlp.extract import ExtractOptions, extract

The functions are imported when they are first asked for; the options are light.
"""

import logging
import warnings
from importlib import import_module
from typing import Any

from gridvlp.extract.options import ExtractOptions, TrainExtractorOptions

__all__ = ["ExtractOptions", "TrainExtractorOptions", "extract", "train_extractor"]

# Detectron2's doing, with a current torch: nothing that a user could act on
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

_HOMES = {"extract": "extraction", "train_extractor": "detector_training"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
