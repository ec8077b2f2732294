"""Dropout that costs a CPU a fifth of PyTorch's own (docs/history.md).

``torch.nn.functional.dropout`` draws one Bernoulli variable per element. Here a 64-bit random
number decides for four elements, 16 bits each: the share that is dropped is p to the nearest
1/65536, and what is kept is scaled by exactly that share. NumPy makes and compares the numbers,
faster than PyTorch does; PyTorch's generator seeds it, so that the same seeds decide as ever.
"""

from __future__ import annotations

import numpy as np
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
    rng = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
    fours = rng.integers(2**64 - 1, size=-(-count // 4), dtype=np.uint64, endpoint=True)
    kept = torch.from_numpy((fours.view(np.uint16)[:count] >= dropped).view(np.uint8))
    return x * kept.to(x.dtype).mul_(STEPS / (STEPS - dropped)).view(x.shape)


class Dropout(nn.Dropout):
    """``dropout`` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        """``input`` with elements dropped in training, and as it is otherwise."""
        return dropout(input, self.p) if self.training else input
