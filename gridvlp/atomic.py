"""Files and folders that are there whole or not at all; the folder for what can be made again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def whole_file(path: Path, *, own: bool = True, sync: bool = True) -> Iterator[Path]:
    """A temporary file to write, which replaces ``path`` at the end of the block.

    Args:
        path: the file; its folder exists.
        own: the temporary name is of this call alone. Without it a writer that was killed leaves
            one file at most, but only one writer may be at work.
        sync: the file outlasts a power cut.

    Raises:
        OSError: the disk refuses; ``path`` is as it was.
    """
    temporary = path.with_name(f".{uuid4().hex}.tmp" if own else f".{path.name}.tmp")
    try:
        yield temporary
        if sync:
            _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def write_bytes(path: Path, content: bytes, *, own: bool = True) -> None:
    """Write a file whole or not at all; as ``whole_file``."""
    with whole_file(path, own=own) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 whole or not at all; as ``whole_file``."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; as ``whole_file``."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def make_folders(path: Path) -> None:
    """Make a folder and those above it, so that they outlast a power cut."""
    if not path.is_dir():
        make_folders(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Let the names in a folder outlast a power cut."""
    _sync(path)


def sync_tree(path: Path) -> None:
    """Let everything in a folder outlast a power cut."""
    for folder, _, files in os.walk(path):
        for name in files:
            _sync(Path(folder) / name)
        sync_folder(Path(folder))


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def user_cache() -> Path:
    """The folder for what can be made or fetched again: $GRIDVLP_CACHE, or gridvlp in XDG's."""
    named = os.environ.get("GRIDVLP_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gridvlp"


@contextmanager
def whole_folder(folder: Path, mark: str) -> Iterator[Path]:
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
