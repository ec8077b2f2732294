"""Inputs that are left out, each with its reason; too many of them stop the work."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from gridvlp.atomic import write_text
from gridvlp.errors import UserError

SKIP_LIMIT = 100  # in a row; of at least as many, more than half


class TooManySkipped(UserError):
    """So many inputs were left out that something else must be wrong."""


@dataclass
class SkipList:
    """What was left out, by name.

    One bad file among many is that file's fault. Many in a row, or most of all, have one cause that
    is not in the files: a disk that went away, the wrong weights, a folder of something else. Then
    the work stops, and what was done until then stays.

    Args:
        limit: stop after so many in a row, or when they are more than half of at least as many
            inputs; 0 never stops.
        question: what a person would check when it stops, as "are these the right weights?".
    """

    limit: int = SKIP_LIMIT
    question: str = "is this the right folder?"
    reasons: dict[str, str] = field(default_factory=dict)  # name -> reason
    used: int = 0
    failed: int = 0
    in_a_row: int = 0

    def __len__(self) -> int:
        return len(self.reasons)

    def take(self) -> None:
        """Count an input that is used."""
        self.used += 1
        self.in_a_row = 0

    def note(self, name: str, reason: str) -> None:
        """Leave an input out that is whole, as another's copy: the limit does not count it."""
        self.reasons[_printable(name)] = _printable(reason)

    def add(self, name: str, reason: str) -> None:
        """Leave out an input that is of no use.

        Raises:
            TooManySkipped: the limit is reached.
        """
        name, reason = _printable(name), _printable(reason)
        self.note(name, reason)
        self.failed += 1
        self.in_a_row += 1
        seen = self.failed + self.used
        if self.limit and (
            self.in_a_row >= self.limit or (seen >= 2 * self.limit and 2 * self.failed > seen)
        ):
            raise TooManySkipped(
                f"{self.in_a_row:,} inputs in a row and {self.failed:,} of {seen:,} were "
                f"skipped, the last one {name}: {reason}. {self.question[0].upper()}"
                f"{self.question[1:]} What was done until here is kept; --skip-limit 0 goes on "
                "whatever is skipped."
            )

    def write(self, path: Path) -> None:
        """List each input in a file: its name, a tab and the reason.

        Raises:
            UserError: the file cannot be written.
        """
        lines = "".join(f"{name}\t{reason}\n" for name, reason in self.reasons.items())
        try:
            write_text(path, lines)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from error

    def kinds(self) -> list[tuple[str, int]]:
        """The reasons without what is particular to one input, the commonest first.

        The particular is what comes after a colon or " as ".
        """
        return Counter(map(_kind, self.reasons.values())).most_common()


def skipped_file(store: Path, part: tuple[int, int] | None = None) -> Path:
    """Where the inputs are listed that the last run skipped on a store, or its part k of n."""
    which = f"-{part[0]}-of-{part[1]}" if part else ""
    store = store if store.name else store.absolute()  # "." has none
    return store.with_name(f"{store.name}.skipped{which}.txt")


def _kind(reason: str) -> str:
    return reason.split(" as ")[0].split(":")[0]


def _printable(text: str) -> str:
    """The text, but bytes of a file's name that are not UTF-8 as "\\udcff"."""
    return text.encode("utf-8", "backslashreplace").decode()
