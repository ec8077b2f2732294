"""Whole files or none: written under another name, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Make ``path`` with ``write``, which is given the name to write to; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(value))


def link_or_copy(source: Path, path: Path) -> None:
    """The same file under a second name: one copy on disk where the file system allows it."""
    write_atomically(path, lambda temporary: _link_or_copy(source, temporary))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _link_or_copy(source: Path, path: Path) -> None:
    path.unlink(missing_ok=True)
    try:
        os.link(source, path)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, path)
