"""Annotation files: read with bounded memory, and with an error that says where a file is broken.

Visual Genome's and GQA's files are single JSON values of up to a gigabyte; as Python objects they
would take about ten times that. Here one entry is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gridvlp.errors import UserError
from gridvlp.progress import track

CHUNK = 1 << 20  # characters read at a time
LONG = 32 << 20  # bytes; less is read before anybody wonders
_DECODER = json.JSONDecoder()


def elements(
    path: Path, member: str | None = None, advance: Callable[[int], None] | None = None
) -> Iterator[Any]:
    """Entries of a JSON list, one at a time.

    Args:
        path: a file that holds a list, or an object.
        member: with an object, the member that holds the list (``"annotations"``).
        advance: told the number of characters read, for a progress bar.

    Raises:
        UserError: the file is missing, is not JSON, ends too early, or holds no such list.
    """
    scanner = _Scanner(path, advance)
    if member is not None:
        for key in _keys(scanner):
            if key == member:
                break
            scanner.value()
        else:
            raise UserError(f'{path} has no "{member}": is it the file that its name says?')
    if scanner.peek() != "[":
        raise UserError(f"{path} does not hold a list where one is expected.")
    yield from scanner.entries()


def items(path: Path, advance: Callable[[int], None] | None = None) -> Iterator[tuple[str, Any]]:
    """Members of a JSON object, one at a time; arguments and errors as for ``elements``."""
    scanner = _Scanner(path, advance)
    for key in _keys(scanner):
        yield key, scanner.value()


def lists(path: Path, advance: Callable[[int], None] | None = None) -> Iterator[tuple[str, Any]]:
    """Entries of the lists in a JSON object, one at a time, with the list's name.

    Members that are no lists are passed over; arguments and errors as for ``elements``.
    """
    scanner = _Scanner(path, advance)
    for key in _keys(scanner):
        if scanner.peek() == "[":
            for entry in scanner.entries():
                yield key, entry
        else:
            scanner.value()


def lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number (from 1) and value of each line of a JSON-lines file; empty lines are skipped.

    Raises:
        UserError: the file is missing or a line is not JSON.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise UserError(
                            f"{path}, line {number} is not JSON ({error}): was the file cut? "
                            "Download it again."
                        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


@contextmanager
def progress(
    title: str, paths: Sequence[Path], note: Callable[[], str] = str
) -> Iterator[Callable[[int], None]]:
    """What readers of these files tell how many characters they read; shown if it takes long."""
    size = sum(path.stat().st_size for path in paths if path.exists())
    done = 0
    with track(title, max(1, size >> 20), "MB", quiet=size < LONG) as bar:

        def advance(characters: int) -> None:
            nonlocal done
            before, done = done, done + characters
            bar.advance((done >> 20) - (before >> 20), note())

        yield advance
        bar.advance(bar.total - bar.done, note())  # bytes that are not characters


def field(entry: Any, key: str, path: Path, where: object) -> Any:
    """``entry[key]``, or a UserError that names the file and the entry."""
    try:
        return entry[key]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f'{path}, entry {where} has no "{key}": this is not the official format (docs/data.md).'
        ) from error


def integer(entry: Any, key: str, path: Path, where: object) -> int:
    """``entry[key]`` as an integer, or a UserError that names the file and the entry."""
    value = field(entry, key, path, where)
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f'{path}, entry {where}: "{key}" is {value!r}, which is not an integer.'
        ) from error


class _Scanner:
    """A window that slides over the text of one file."""

    def __init__(self, path: Path, advance: Callable[[int], None] | None) -> None:
        self.path, self.advance = path, advance
        try:
            self.file = path.open(encoding="utf-8-sig")
        except OSError as error:
            raise _unreadable(path, error) from error
        self.text, self.start, self.before, self.ended = "", 0, 0, False

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()

    def refill(self) -> None:
        rest = self.text[self.start :]
        try:
            more = self.file.read(max(CHUNK, len(rest)))
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(self.path, error) from error
        self.before += self.start
        self.text, self.start, self.ended = rest + more, 0, not more
        if self.advance is not None:
            self.advance(len(more))

    def peek(self) -> str:
        """The next character that is not white space."""
        while True:
            while self.start < len(self.text) and self.text[self.start] in " \t\r\n":
                self.start += 1
            if self.start < len(self.text):
                return self.text[self.start]
            if self.ended:
                raise self.broken("it ends too early", self.start)
            self.refill()

    def take(self, character: str) -> None:
        if self.peek() != character:
            raise self.broken(f'"{character}" expected', self.start)
        self.start += 1

    def comma(self, end: str) -> None:
        """Step over the comma before the next entry; stay at the end of the list or object."""
        if self.peek() != end:
            self.take(",")
            if self.peek() == end:
                raise self.broken("an entry is missing after the comma", self.start)

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.start)
            except json.JSONDecodeError as error:
                if self.ended:
                    reason = "it ends too early" if error.pos >= len(self.text) else error.msg
                    raise self.broken(reason, error.pos) from error
            except RecursionError as error:
                raise self.broken("nested too deeply", self.start) from error
            except ValueError as error:  # a number of thousands of digits
                raise self.broken("a value that nobody writes", self.start) from error
            else:
                if end < len(self.text) or self.ended:  # a number may go on in the next chunk
                    self.start = end
                    return value
            self.refill()

    def entries(self) -> Iterator[Any]:
        """Entries of the list that begins here."""
        self.take("[")
        while self.peek() != "]":
            yield self.value()
            self.comma("]")
        self.take("]")

    def broken(self, reason: str, at: int) -> UserError:
        return UserError(
            f"{self.path} is not whole JSON: {reason} (character {self.before + at:,}). "
            "Download it again."
        )


def _keys(scanner: _Scanner) -> Iterator[str]:
    if scanner.peek() != "{":
        raise UserError(f"{scanner.path} does not hold an object where one is expected.")
    scanner.take("{")
    while scanner.peek() != "}":
        if scanner.peek() != '"':
            raise scanner.broken("a name in quotes expected", scanner.start)
        key = scanner.value()
        scanner.take(":")
        yield key
        scanner.comma("}")


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} is not there; docs/data.md says where each file comes from.")
    reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 text: {error}"
    return UserError(f"{path} cannot be read ({reason}).")


def text(sentence: Any) -> str:
    """Words with single spaces between them; "" for what is not text."""
    if not isinstance(sentence, str):
        return ""
    words = " ".join(sentence.split())
    # JSON can hold half a surrogate pair, which UTF-8 cannot.
    return words if words.isascii() else words.encode("utf-8", "replace").decode("utf-8")
