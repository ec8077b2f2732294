"""Annotation files: read with bounded memory, and with an error that says where a file is broken.

Visual Genome's and GQA's files are single JSON values of up to a gigabyte; as Python objects they
would take about ten times that. Here ijson makes one entry after the other. What is in an entry is
read by ``json_values``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from ijson import JSONError, sendable_list
from ijson.backends import yajl2_c  # the others are slower and take what is not JSON

from gridvlp.errors import UserError
from gridvlp.run.progress import track

Advance = Callable[[int], None]  # told the number of bytes read

CHUNK = 1 << 14  # bytes read at a time
LONG = 32 << 20  # bytes; less is read before anybody wonders
MOST_NESTED = 100  # lists and objects in each other; ijson's memory grows with the square of it
LONGEST_LINE = 16 << 20  # characters
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HALF = "half a surrogate pair"
REASONS = {  # of yajl, in other words
    "premature EOF": "it ends too early",
    "trailing garbage": "more text after its end",
    "integer overflow": "an integer beyond 64 bits",
    "numeric (floating point) overflow": "a number beyond 1.8e308",
    "invalid bytes in UTF8 string.": "bytes that are not UTF-8",
}
ESCAPE = re.compile(rb"\\.", re.DOTALL)
# Half a surrogate pair with another character behind it, which yajl takes for the other half.
HALF_PAIR = re.compile(rb"\\u[dD][89abAB]..\\u(?:[^dD]|[dD][^c-fC-F])")
NO_NAME = re.compile(rb'[{, \t\r\n]""[ \t\r\n]*:')  # a part of a path that ijson leaves out
ITEM = re.compile(rb'item"[ \t\r\n]*:')
NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))


def elements(
    path: Path, member: str | None = None, advance: Advance | None = None, optional: bool = False
) -> Iterator[Any]:
    """Entries of a JSON list, one at a time.

    Args:
        path: a file that holds a list, or an object.
        member: with an object, the member that holds the list (``"annotations"``).
        advance: told the number of bytes read, for a progress bar.
        optional: an object without such a member counts as an empty list.

    Raises:
        UserError: the file is missing, is not JSON, ends too early, or holds no such list or two.
    """
    if member is None:
        with _Text(path, b"[", advance) as text:
            yield from yajl2_c.items(text, "item", **text.options)
        return
    with _Text(path, b"{", advance, member) as text:
        empty = True
        for entry in yajl2_c.items(text, f"{member}.item", **text.options):
            empty = False
            yield entry
    if (empty or text.doubtful) and not _has_list(path, member) and not optional:
        raise UserError(f'{path} has no "{member}": is it the file that its name says?')


def items(path: Path, advance: Advance | None = None) -> Iterator[tuple[str, Any]]:
    """Members of a JSON object, one at a time; arguments and errors as for ``elements``.

    A member that stands in the file twice comes twice.
    """
    with _Text(path, b"{", advance) as text:
        yield from yajl2_c.kvitems(text, "", **text.options)


def lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number (from 1) and value of each line of a JSON-lines file; empty lines are skipped.

    Raises:
        UserError: the file is missing or a line is not JSON.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), ""), 1):
                if line.strip():
                    try:
                        if len(line) == LONGEST_LINE:
                            raise ValueError(f"a line of {LONGEST_LINE:,} characters or more")
                        yield number, json.loads(line, parse_constant=_number, parse_float=_number)
                    except (ValueError, RecursionError) as error:
                        raise UserError(
                            f"{path}, line {number} is not JSON ({error}): was the file cut? "
                            "Download it again."
                        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


@contextmanager
def progress(title: str, paths: Sequence[Path], note: Callable[[], str] = str) -> Iterator[Advance]:
    """What readers of these files tell how many bytes they read; shown if it takes long."""
    size = sum(path.stat().st_size for path in paths if path.exists())
    done = 0
    with track(title, max(1, size >> 20), "MB", quiet=size < LONG) as bar:

        def advance(read: int) -> None:
            nonlocal done
            before, done = done, done + read
            bar.advance((done >> 20) - (before >> 20), note())

        yield advance
        bar.advance(bar.total - bar.done, note())  # what is less than a megabyte


class _Text:
    """The text of a file, for ijson to read; errors become sentences at the end of the block.

    It is looked at as it goes by, since ijson writes out the path of every place: of lists in lists
    in lists it would do so until no memory is left.
    """

    def __init__(
        self, path: Path, opening: bytes, advance: Advance | None, member: str = ""
    ) -> None:
        self.path, self.opening, self.advance = path, opening, advance
        self.options = {"use_float": True, "buf_size": CHUNK}
        self._member, self._times = f'{member}"'.encode(), 0  # the end of a name in quotes
        self._items = False
        self.block_start = 0
        self._tail = self._escape = b""
        self._begun = self._quoted = False
        self._depth = 0

    def __enter__(self) -> _Text:
        try:
            self.file = _open(self.path)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.file.close()
        if isinstance(error, OSError):
            raise _unreadable(self.path, error) from error
        if isinstance(error, JSONError | UnicodeDecodeError):
            raise _broken(self.path, error, self.block_start) from error

    def read(self, size: int) -> bytes:
        """The next block.

        Raises:
            UserError: the file does not hold what is looked for.
        """
        self.block_start = self.file.tell()
        block = self.file.read(size)
        if not self._begun and (start := block.lstrip(b" \t\r\n")):
            self._begun = True
            if not start.startswith(self.opening):
                expected = {b"[": "a list", b"{": "an object"}[self.opening]
                raise UserError(f"{self.path} does not hold {expected} where one is expected.")
        if size and not block and self._quoted:  # of which yajl says nothing behind the value
            raise _not_json(self.path, REASONS["premature EOF"], self.block_start)
        self._follow(block)
        text = self._tail + block
        if len(self._member) > 1:
            cut = self._tail[1 - len(self._member) :]  # of a name that is cut here
            self._times += (cut + block).count(self._member)
            self._items = self._items or ITEM.search(text) is not None
        if half := HALF_PAIR.search(text):
            place = self.block_start - len(self._tail) + half.start()
            raise _not_json(self.path, HALF, place)
        if self.opening == b"{" and NO_NAME.search(text):
            raise UserError(f"{self.path} has a member without a name: what is it?")
        self._tail = text[-64:]
        if self.advance is not None:
            self.advance(len(block))
        return block

    @property
    def doubtful(self) -> bool:
        """Whether ijson may have taken something else for an entry of the one list ``member``.

        It knows a place by its path, which a second list of the name can have, and a member "item".
        """
        return self._times > 1 or self._items

    def _follow(self, block: bytes) -> None:
        """Count the brackets outside of quotes."""
        block = self._escape + block
        if b"\\" in block:
            block = ESCAPE.sub(b"", block)  # but for the last, of which one half is here
            self._escape = b"\\" if block.endswith(b"\\") else b""
        # two quotes with nothing between them that counts say nothing
        parts = block.translate(None, NO_MARKS).replace(b'""', b"").split(b'"')
        brackets = b"".join(parts[self._quoted :: 2])
        self._quoted ^= len(parts) % 2 == 0
        if brackets:
            # bit 1 is set in [ and {, and not in ] and }
            steps = (np.frombuffer(brackets, np.uint8) & 2).astype(np.int64) - 1
            depths = self._depth + np.cumsum(steps)
            self._depth = int(depths[-1])
            if depths.max() > MOST_NESTED:
                raise UserError(
                    f"{self.path} has more than {MOST_NESTED} lists and objects in each other: it "
                    "is not a file of annotations."
                )


def _has_list(path: Path, member: str) -> bool:
    """Whether a file has a list of this name.

    Raises:
        UserError: it has two, or something else of this name.
    """
    name, begin = ("", "map_key", member), (member, "start_array", None)
    same_path = ("", "map_key", f"{member}.item")
    with _Text(path, b"{", None) as text:
        events = yajl2_c.parse(text, **text.options)
        seen = list(filter({name, begin, same_path}.__contains__, events))
    if seen.count(name) > 1:
        raise UserError(f'{path} has "{member}" twice: which one holds?')
    if same_path in seen or (seen and begin not in seen):
        raise UserError(f'{path} does not hold a list where one is expected, in "{member}".')
    return bool(seen)


def _open(path: Path) -> BinaryIO:
    """Open a file behind its byte-order mark."""
    file = path.open("rb")
    head = file.peek(4)[:4]
    if head.startswith(BYTE_ORDER_MARK):
        file.read(len(BYTE_ORDER_MARK))
    elif b"\0" in head:  # JSON begins with ASCII, which other encodings fill up with zeros
        file.close()
        raise UserError(f"{path} is UTF-16 or UTF-32 text: save it as UTF-8.")
    return file


def _broken(path: Path, error: JSONError | UnicodeDecodeError, done: int) -> UserError:
    """Say what is wrong, and where: somewhere behind byte ``done``."""
    reason = HALF  # the one thing in good UTF-8 that Python cannot decode
    if isinstance(error, JSONError):
        message = error.args[0]
        said = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
        reason = said.splitlines()[0].partition(": ")[2]
    events = sendable_list()
    parser = yajl2_c.basic_parse_coro(events, use_float=True)
    with _open(path) as file:
        try:
            while file.tell() < done:
                parser.send(file.read(min(CHUNK, done - file.tell())))
                events.clear()
            while byte := file.read(1):
                parser.send(byte)
        except (JSONError, UnicodeDecodeError):
            file.seek(-1, os.SEEK_CUR)
        place = file.tell()
        there = file.read(20).decode("utf-8", "replace")
    return _not_json(path, REASONS.get(reason, reason.rstrip(".")), place, there)


def _not_json(path: Path, reason: str, place: int, there: str = "") -> UserError:
    shown = f", at {there!r}" if there else ""
    return UserError(
        f"{path} is not whole JSON: {reason} (byte {place:,}{shown}). Download it again."
    )


def _number(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError(f"{digits} is not a number in JSON")
    return number


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} is not there; docs/data.md says where each file comes from.")
    reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 text: {error}"
    return UserError(f"{path} cannot be read ({reason}).")
