"""What can change a result beside the code: versions, commit and machine."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import gridvlp

VERSIONED = (
    *("torch", "torchvision", "detectron2", "sal-detectron2", "transformers", "tokenizers"),
    *("accelerate", "numpy", "zarr", "zstandard", "pillow"),
)


def environment() -> dict[str, Any]:
    """Versions, commit and machine, as far as they can change a result."""
    import torch

    checkout = Path(gridvlp.__file__).parents[1]
    commit = subprocess.run(
        ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "gridvlp": gridvlp.__version__,
        "commit": commit if (checkout / ".git").exists() else None,
        "python": platform.python_version(),
        "versions": versions(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def short_commit(environment: dict[str, Any]) -> str | None:
    """The commit of an ``environment`` as a page shows it; None where it is not known."""
    commit = environment.get("commit")
    if not isinstance(commit, str) or not commit:
        return None
    return commit[:7] + ("-dirty" if commit.endswith("-dirty") else "")


def versions() -> dict[str, str]:
    """The versions of the libraries that can change a result, as far as they are installed."""
    found = {}
    for name in VERSIONED:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
