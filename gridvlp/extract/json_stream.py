"""Large JSON files entry by entry: Visual Genome's objects.json alone is 400 MB of text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from gridvlp.errors import UserError
from gridvlp.progress import track

CHUNK = 1 << 20  # characters read at a time
LONG = 32 << 20  # bytes; less is read before anybody wonders
_BETWEEN = re.compile(r"[\s,:]*")


class _Text:
    """What of a file is in memory, and how far it has been taken."""

    def __init__(self, file: TextIO, advance: Callable[[int], object]) -> None:
        self.file, self.advance = file, advance
        self.decoder = json.JSONDecoder()
        self.text, self.place = "", 0

    def more(self) -> bool:
        """Read on; a value longer than a chunk is met by ever longer ones."""
        new = self.file.read(max(CHUNK, len(self.text) - self.place))
        self.advance(len(new))
        self.text, self.place = self.text[self.place :] + new, 0
        return bool(new)

    def peek(self) -> str:
        """The first character of what comes next; empty at the end of the file."""
        while True:
            self.place = _BETWEEN.match(self.text, self.place).end()  # type: ignore[union-attr]
            if self.place < len(self.text) or not self.more():
                return self.text[self.place : self.place + 1]

    def value(self) -> Any:
        """Take the next value whole."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
            except ValueError:
                if not self.more():
                    raise
                continue
            # a number that ends where the text does may have further digits
            if end < len(self.text) or not self.more():
                self.place = min(end, len(self.text))
                return value

    def entries(self) -> Iterator[Any]:
        """The entries of the list that comes next."""
        self.place += 1
        while (first := self.peek()) != "]":
            if not first:
                raise ValueError("the list has no end")
            yield self.value()
        self.place += 1


def stream(
    path: Path, opening: str, advance: Callable[[int], object] = lambda characters: None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in a JSON list, or in the lists of a JSON object, with the list's name.

    Values of an object that are no lists are passed over, and so are entries that are no objects,
    except in a file that is one list. Memory holds a chunk of the text, not the file.

    Args:
        path: the file.
        opening: "[" where a list is expected, "{" for an object.
        advance: told how many characters were read.

    Raises:
        UserError: the file is not there, or is no whole JSON of that form.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = _Text(file, advance)
            if (first := text.peek()) != opening:
                raise UserError(f"{path} is not as expected: it begins with {first!r}.")
            if opening == "[":
                for entry in text.entries():
                    if not isinstance(entry, dict):
                        raise UserError(f"{path} is not as expected: a list of objects is needed.")
                    yield "", entry
                return
            text.place += 1
            while (first := text.peek()) != "}":
                if first != '"':
                    raise ValueError("an object has no end")
                name = text.value()
                if text.peek() == "[":
                    for entry in text.entries():
                        if isinstance(entry, dict):
                            yield name, entry
                else:
                    text.value()
    except FileNotFoundError:
        raise UserError(f"{path} is not there; docs/data.md says where it comes from.") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not whole JSON ({error}): fetch it again.") from error


@contextmanager
def progress_of(title: str, paths: Sequence[Path]) -> Iterator[Callable[[int], object]]:
    """What ``stream`` tells its progress to; it is shown where the files are large."""
    size = sum(path.stat().st_size for path in paths if path.exists())
    if size < LONG:
        yield lambda characters: None
        return
    done = 0
    with track(title, size >> 20, "MB") as bar:

        def advance(characters: int) -> None:
            nonlocal done
            bar.advance(((done + characters) >> 20) - (done >> 20))
            done += characters

        yield advance
