"""What a step of training is made of, and what it gives back."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

Losses = dict[str, tuple[Tensor, int]]
"""Per objective: the summed loss, and the number of terms that it is the sum of."""


class Batch(Protocol):
    """The sentences and maps of one micro-batch; ``keys`` are named when the loss goes wrong."""

    keys: list[str]
    inputs: dict[str, Tensor | None]  # "grids_IGC" has a map for each of ``keys``

    def to(self, device: torch.device) -> Any:
        """The batch with its tensors on a device."""
        ...

    @property
    def terms(self) -> dict[str, int]:
        """Per objective, the number of terms in its loss."""
        ...
