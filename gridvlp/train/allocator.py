"""Keeps memory that a training step frees, for the next step to use."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Tell glibc's allocator to give nothing back to the kernel; elsewhere do nothing.

    A step on a CPU allocates and frees its activations and gradients one by one. By default the
    large ones are fresh pages each time, which the kernel has to find and zero: at BERT-base sizes
    a third of a step (docs/history.md). What the process holds at most stays as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
