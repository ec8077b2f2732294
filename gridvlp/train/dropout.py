"""Dropout that costs a CPU a quarter of PyTorch's own (docs/benchmarks.md).

``torch.nn.functional.dropout`` draws one Bernoulli variable per element. Here a 64-bit random
number decides for four elements, 16 bits each: the share that is dropped is p to the nearest
1/65536, and what is kept is scaled by exactly that share. Both draw from PyTorch's generator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STEPS = 1 << 16


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability ``p`` and scale the others, so that the mean stays."""
    dropped = round(p * STEPS)
    if x.device.type != "cpu" or not 0 < dropped < STEPS:
        return functional.dropout(x, p)
    count = x.numel()
    random = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = random.view(torch.int16)[:count] >= dropped - STEPS // 2
    scale = STEPS / (STEPS - dropped)
    return x * kept.view(torch.uint8).to(x.dtype).mul_(scale).view(x.shape)


class Dropout(nn.Dropout):
    """``dropout`` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        """``input`` with elements dropped in training, and as it is otherwise."""
        return dropout(input, self.p) if self.training else input
