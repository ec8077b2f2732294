"""Random numbers of a step that are the same whenever the step is done."""

from __future__ import annotations

import numpy as np
import torch


def seed_step(seed: int, step: int, process: int = 0) -> None:
    """Seed PyTorch for one step of one process.

    A CPU's generator takes only the low 32 bits of a seed: the three numbers are mixed into all of
    them.
    """
    mixed = np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed[0]))
