"""Folders of what can be made or fetched again, shared by processes that may make it at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def user_cache() -> Path:
    """The folder for what can be made or fetched again: $GRIDVLP_CACHE, or gridvlp in XDG's."""
    named = os.environ.get("GRIDVLP_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gridvlp"


@contextmanager
def made_whole(folder: Path, mark: str) -> Iterator[Path]:
    """A temporary folder to fill, which becomes ``folder`` at the end of the block.

    Args:
        folder: that does not exist yet; those above it are made.
        mark: a file in it by which one that another process made in the meantime is known, which
            then stays.

    Raises:
        OSError: the disk refuses.
    """
    # processes in several containers have equal numbers
    temporary = folder.with_name(f".{folder.name}-{uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / mark).is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
