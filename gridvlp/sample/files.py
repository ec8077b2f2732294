"""The files of a world: each whole, in folders made for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gridvlp.atomic import whole_file


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(value))


def link_or_copy(source: Path, path: Path) -> None:
    """The same file under a second name: one copy on disk where the file system allows it."""
    with new_file(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file to write, which becomes ``path``; folders are made.

    No sync: a world that a power cut damages is made again in a minute.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, own=False, sync=False) as temporary:
        temporary.unlink(missing_ok=True)  # half a file of a call that was killed
        yield temporary
