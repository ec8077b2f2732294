"""The names of objects and attributes that a detector knows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gridvlp.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """Names of objects and attributes; a line may hold several spellings, the first is the name."""

    objects: list[list[str]]
    attributes: list[list[str]]

    def save(self, folder: Path) -> None:
        """Write the lists in the well-known format: one line per name, spellings by commas."""
        for name, lines in (("objects", self.objects), ("attributes", self.attributes)):
            text = "".join(",".join(spellings) + "\n" for spellings in lines)
            (folder / f"visual_genome_{name}.txt").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Read such lists.

        Raises:
            UserError: a list is not there, or is no text.
        """
        lists = []
        for name in ("objects", "attributes"):
            found = [*folder.glob(f"*{name}*.txt")]
            if len(found) != 1:
                raise UserError(f"{folder} holds no visual_genome_{name}.txt.")
            try:
                # not splitlines(), which breaks a line at U+2028 and its like: a line is a class
                lines = found[0].read_text(encoding="utf-8-sig").split("\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{found[0]} is no UTF-8 text: {error}.") from error
            # An empty spelling would be the name of every object that has none.
            spelled = ([clean(word) for word in line.split(",") if word.strip()] for line in lines)
            lists.append([words for words in spelled if words])
        return cls(*lists)


@lru_cache(maxsize=1 << 16)  # millions of boxes share some ten thousand names
def clean(word: str) -> str:
    """A name as it is compared: lower case, single spaces."""
    return " ".join(word.lower().split())
