"""Peak memory of this process, for the benchmarks."""

from __future__ import annotations

from pathlib import Path


def peak_mb() -> float:
    """MB. Not getrusage's figure, which a child process inherits from the one that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("The kernel tells no peak memory.")
