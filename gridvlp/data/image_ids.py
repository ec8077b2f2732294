"""Which map of the store belongs to an annotation's image.

The data sets name one photo differently: COCO photo 262148 may be Visual Genome's 2345, which is
GQA's "2345" as well. A map made from either file serves both.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from gridvlp.data import json_files, json_values
from gridvlp.errors import UserError

COCO_DIGITS = 12


class ImageIds:
    """From the ids in annotation files to keys of the store.

    Args:
        visual_genome: the folder of Visual Genome's release. Its image_data.json, where present,
            tells which of its photos are COCO's; it is read when first needed.
    """

    def __init__(self, visual_genome: Path) -> None:
        self.image_data = Path(visual_genome) / "image_data.json"

    @cached_property
    def coco_of_visual_genome(self) -> dict[int, int | None]:
        """COCO id (None: not in COCO) by Visual Genome id; empty without image_data.json.

        Raises:
            UserError: the file is broken, or has a photo twice.
        """
        if not self.image_data.is_file():
            return {}
        path, known = self.image_data, dict[int, int | None]()
        unique = json_values.Unique(path, "image_id")
        for number, entry in enumerate(json_files.elements(path)):
            image = json_values.integer(entry, "image_id", path, number)
            unique.add(image, number)
            known[image] = json_values.optional(coco_id, None, entry, "coco_id", path, number)
        return known

    @staticmethod
    def coco(image_id: int | str) -> str:
        """Key of a COCO photo: its id in 12 digits.

        Raises:
            UserError: the id is not a number that COCO could have.
        """
        try:
            number = int(image_id)
        except (TypeError, ValueError) as error:
            raise UserError(f"COCO image_id {image_id!r} is not a number.") from error
        if not 0 <= number < 10**COCO_DIGITS:
            raise UserError(f"COCO image_id {number} has not 1 to {COCO_DIGITS} digits.")
        return f"{number:0{COCO_DIGITS}d}"

    def visual_genome(self, image_id: int | str) -> tuple[str, ...]:
        """Keys under which the map of a Visual Genome photo may be, its own first."""
        own = str(image_id)
        number = number_of(own)
        coco = None if number is None else self.coco_of_visual_genome.get(number)
        return (own,) if coco is None else (own, self.coco(coco))

    def gqa(self, image_id: int | str) -> tuple[str, ...]:
        """Keys for a GQA photo: Visual Genome's, or its own name ("n123") for the others."""
        return self.visual_genome(image_id)

    @staticmethod
    def nlvr2(identifier: str) -> tuple[str, str]:
        """Keys of the left and right photo of an NLVR2 line ("dev-850-0-1": pair 0, sentence 1).

        Raises:
            UserError: the identifier is not of the official form split-set-pair-sentence.
        """
        parts = str(identifier).split("-")
        if len(parts) != 4 or not all(parts):
            raise UserError(
                f"NLVR2 identifier {identifier!r} is not of the form dev-850-0-1 "
                "(split, set, pair, sentence)."
            )
        pair = "-".join(parts[:3])
        return f"{pair}-img0", f"{pair}-img1"


def number_of(key: str) -> int | None:
    """The number that a photo is named by; None for another name."""
    return int(key) if key.isdecimal() and key.isascii() and len(key) <= 18 else None


def coco_id(entry: Any, key: str, path: Path, where: object) -> int:
    """A field that holds the id of a COCO photo; arguments and errors as in ``json_values``."""
    return json_values.integer(entry, key, path, where, 0, 10**COCO_DIGITS - 1)


def first_present(candidates: Iterable[str], photos: Container[str] | None) -> str | None:
    """The first key among ``photos``; with ``photos`` None every photo counts as there."""
    return next((key for key in candidates if photos is None or key in photos), None)
