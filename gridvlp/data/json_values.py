"""Values out of the entries of annotation files, each of the kind that the official files have.

Nothing is made to fit: null is no text, "0" no number, and 1.5 no id. The error names the file, the
entry, its id, the field and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gridvlp.errors import UserError

Value = TypeVar("Value")
Default = TypeVar("Default")

LEAST, MOST = -(1 << 63), (1 << 63) - 1
IDS = ("question_id", "object_id", "region_id", "qa_id", "identifier", "id", "image_id")
ONLY_TEXT, ONLY_INTEGERS, ONLY_NUMBERS = {str}, {int}, {int, float}
SHOWN = 60  # characters of a wrong value


class BadEntry(UserError):
    """An entry that is not in the official format.

    Attributes:
        entry: the file, which entry it is, and its id.
        reason: what is wrong with it; the part before a colon is the same for all of a kind.
    """

    def __init__(self, entry: Any, path: Path, where: object, reason: str) -> None:
        known = entry if isinstance(entry, dict) else {}
        id = next((f" ({key} {_shown(known[key])})" for key in IDS if key in known), "")
        self.entry, self.reason = f"{path}, entry {where}{id}", reason
        super().__init__(f"{self.entry} {reason}; see docs/data.md for the official format.")


def field(entry: Any, key: str, path: Path, where: object) -> Any:
    """``entry[key]``, whatever it is.

    Args:
        entry: an entry of a file.
        key: name of the field.
        path: the file.
        where: the entry's number or name, for the error.

    Raises:
        BadEntry: there is no such field; in all the other functions, or it is of another kind.
    """
    try:
        return entry[key]
    except (KeyError, TypeError, IndexError) as error:
        raise BadEntry(entry, path, where, f'has no "{key}"') from error


def optional(
    read: Callable[[Any, str, Path, object], Value],
    default: Default,
    entry: Any,
    key: str,
    path: Path,
    where: object,
) -> Value | Default:
    """What ``read`` makes of a field; the default where it is absent or null."""
    if isinstance(entry, dict) and entry.get(key) is None:
        return default
    return read(entry, key, path, where)


def integer(
    entry: Any, key: str, path: Path, where: object, least: int = LEAST, most: int = MOST
) -> int:
    """A whole number, which no fraction, text or truth value is."""
    value = field(entry, key, path, where)
    if type(value) is int and least <= value <= most:
        return value
    bounds = "" if (least, most) == (LEAST, MOST) else f" from {least:,} to {most:,}"
    raise _other(entry, key, path, where, f"an integer{bounds}")


def numbers(entry: Any, keys: Sequence[str], path: Path, where: object) -> list[float]:
    """Numbers, one for each key; they are finite, as all are that ``json_files`` reads."""
    try:
        values = [entry[key] for key in keys]
        if _are_numbers(values):
            return values
    except (KeyError, TypeError, IndexError):
        pass
    wrong = next(key for key in keys if not _are_numbers([field(entry, key, path, where)]))
    raise _other(entry, wrong, path, where, "a number")


def number_list(entry: Any, key: str, path: Path, where: object, length: int) -> list[float]:
    """A list of so many numbers."""
    values = field(entry, key, path, where)
    if type(values) is list and len(values) == length and _are_numbers(values):
        return values
    raise _other(entry, key, path, where, f"a list of {length} numbers")


def string(entry: Any, key: str, path: Path, where: object) -> str:
    """Text, which may be empty."""
    value = field(entry, key, path, where)
    if type(value) is str:
        return value
    raise _other(entry, key, path, where, "text")


def name(entry: Any, key: str, path: Path, where: object) -> str:
    """A name that may be a number: text that is not empty, or an integer as text."""
    value = field(entry, key, path, where)
    if (type(value) is str and value) or type(value) is int:
        return str(value)
    raise _other(entry, key, path, where, "a name")


def flag(entry: Any, key: str, path: Path, where: object) -> bool:
    """True or false, as 0 and 1 too."""
    value = field(entry, key, path, where)
    if type(value) in (bool, int) and value in (0, 1):
        return bool(value)
    raise _other(entry, key, path, where, "0, 1, true or false")


def array(entry: Any, key: str, path: Path, where: object) -> list[Any]:
    """A list of anything."""
    values = field(entry, key, path, where)
    if type(values) is list:
        return values
    raise _other(entry, key, path, where, "a list")


def strings(entry: Any, key: str, path: Path, where: object) -> list[str]:
    """A list of texts."""
    values = field(entry, key, path, where)
    if type(values) is list and ONLY_TEXT.issuperset(map(type, values)):
        return values
    raise _other(entry, key, path, where, "a list of texts")


def integers(entry: Any, key: str, path: Path, where: object) -> list[int]:
    """A list of whole numbers."""
    values = field(entry, key, path, where)
    if type(values) is list and ONLY_INTEGERS.issuperset(map(type, values)):
        return values
    raise _other(entry, key, path, where, "a list of integers")


def mapping(entry: Any, key: str, path: Path, where: object) -> dict[str, Any]:
    """An object."""
    value = field(entry, key, path, where)
    if type(value) is dict:
        return value
    raise _other(entry, key, path, where, "an object")


def text(sentence: Any) -> str:
    """Words with single spaces between them; "" for what is not text."""
    if not isinstance(sentence, str):
        return ""
    words = " ".join(sentence.split())
    # JSON can hold half a surrogate pair, which UTF-8 cannot.
    return words if words.isascii() else words.encode("utf-8", "replace").decode("utf-8")


class Unique:
    """The ids of one file, of which none may stand there twice.

    Args:
        path: the file.
        key: what the id is called.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._places: dict[int | str, object] = {}

    def add(self, id: int | str, where: object) -> None:
        """Take an id.

        Raises:
            UserError: another entry has it.
        """
        if id in self._places:
            raise UserError(
                f"{self.path} has {self.key} {_shown(id)} twice, in entries {self._places[id]} and "
                f"{where}: an id stands for one entry. Take one of the two out."
            )
        self._places[id] = where


def _are_numbers(values: list[Any]) -> bool:
    return ONLY_NUMBERS.issuperset(map(type, values))


def _other(entry: Any, key: str, path: Path, where: object, expected: str) -> BadEntry:
    reason = f'has a "{key}" that is not {expected}: {_shown(entry[key])}'
    return BadEntry(entry, path, where, reason)


def _shown(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}..."
