"""COCO-style annotation files: plain instances, or with grid-feats-vqa's ``attribute_ids``."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.data import json_files, json_values
from gridvlp.data.json_values import BadEntry, optional
from gridvlp.data.photo_names import match_files
from gridvlp.errors import UserError
from gridvlp.extract.annotations import LARGEST_SIDE, Annotations, Told, cached_annotations
from gridvlp.extract.photos import find_photos
from gridvlp.extract.vocabulary import Vocabulary, clean

MOST_ATTRIBUTES = 100_000  # a larger number is an error, and not worth the memory


def read_coco(
    files: Sequence[Path],
    photos: Sequence[Path],
    vocabulary: Vocabulary | None = None,
    keep_empty: bool = False,
) -> Annotations:
    """Read annotation files, all of them as one set.

    Classes are the categories in the order of their ids, attributes the names in
    ``attCategories``; where these are not told, attribute i is entry i of the vocabulary. An entry
    of ``images`` or ``annotations`` that is not in COCO's format is left out and counted.

    Args:
        files: .json of COCO's layout; an annotation may have ``attribute_ids`` (grid-feats-vqa).
        photos: folders, searched through. ``file_name`` means the file in them whose path has the
            longest end in common with it: a path in an annotation file is not to be trusted.
        vocabulary: the names to keep; None keeps all.
        keep_empty: photos without a box stay, as COCO's evaluation has it.

    Raises:
        UserError: a file is missing or broken, has an id twice, or no photo has a box.
    """
    for path in files:
        if not path.is_file():
            raise UserError(f"There is no annotation file {path}.")

    for folder in photos:
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: name the photos with --photos FOLDER.")

    def read() -> tuple[Told, Vocabulary]:
        told, attributes = Told(), dict[int, str]()
        for path in files:
            _read(path, told, attributes)
        _name_attributes(told, attributes, vocabulary)
        if vocabulary is not None:
            return told, vocabulary
        return told, Vocabulary([[name] for name in told.names], [[word] for word in told.words])

    def find(names: list[str]) -> tuple[list[Path | None], dict[str, str]]:
        return match_files(names, find_photos(photos))

    source = " + ".join(path.name for path in files)
    choice = [vars(vocabulary) if vocabulary else None]
    return cached_annotations(source, files, choice, read, find, keep_empty)


def photo_folders(files: Sequence[Path]) -> list[Path]:
    """Where the photos of annotation files are if it is not said: beside annotations/."""
    parents = [path.parent for path in files]
    return list(dict.fromkeys(p.parent if p.name == "annotations" else p for p in parents))


def _read(path: Path, told: Told, attributes: dict[int, str]) -> None:
    with json_files.progress(f"Reading {path.name}", [path] * 3) as advance:
        own: dict[int, int] = {}  # category id of this file -> index of the name
        for id, name in sorted(_names(path, "categories", advance).items()):
            own[id] = told.names.setdefault(name, len(told.names))

        unique = json_values.Unique(path, "image id")
        for number, entry in enumerate(json_files.elements(path, "images", advance)):
            try:
                _photo(path, f"images[{number}]", told, entry, unique)
            except BadEntry as error:
                told.broken.add(error.entry, error.reason)
            else:
                told.broken.take()

        begin = len(told.word_M)
        ids_N, entries_N = array("q"), array("q")
        for number, entry in enumerate(json_files.elements(path, "annotations", advance)):
            where = f"annotations[{number}]"
            try:
                own_id = optional(json_values.integer, None, entry, "id", path, where)
                _box(path, where, told, entry, own)
            except BadEntry as error:
                told.broken.add(error.entry, error.reason)
                continue
            told.broken.take()
            if own_id is not None:
                ids_N.append(own_id)
                entries_N.append(number)
        _check_unique(path, np.asarray(ids_N), np.asarray(entries_N))
    if len(told.word_M) > begin:
        attributes |= _names(path, "attCategories", optional=True, most=MOST_ATTRIBUTES - 1)


def _names(
    path: Path,
    member: str,
    advance: json_files.Advance | None = None,
    optional: bool = False,
    most: int = json_values.MOST,
) -> dict[int, str]:
    """The names by their ids; all boxes depend on them, so that none may be broken."""
    names: dict[int, str] = {}
    unique = json_values.Unique(path, f"{member} id")
    for number, entry in enumerate(json_files.elements(path, member, advance, optional)):
        where = f"{member}[{number}]"
        id = json_values.integer(entry, "id", path, where, least=0, most=most)
        unique.add(id, where)
        names[id] = clean(json_values.string(entry, "name", path, where))
    return names


def _box(path: Path, where: str, told: Told, entry: Any, own: dict[int, int]) -> None:
    """Take an annotation: nothing of it where anything is broken."""
    image = json_values.integer(entry, "image_id", path, where)
    category = json_values.integer(entry, "category_id", path, where)
    if category not in own:
        raise BadEntry(entry, path, where, f'has a "category_id" without a category: {category}')
    xywh = json_values.number_list(entry, "bbox", path, where, 4)
    crowd = optional(json_values.flag, False, entry, "iscrowd", path, where)
    numbers = optional(json_values.integers, [], entry, "attribute_ids", path, where)
    if not all(0 <= number < MOST_ATTRIBUTES for number in numbers):
        raise BadEntry(entry, path, where, f'has "attribute_ids" beyond {MOST_ATTRIBUTES:,}')
    told.image_N.append(image)
    told.name_N.append(own[category])
    told.xywh_N4.extend(xywh)
    told.crowd_N.append(crowd)
    told.words_N.append(len(numbers))
    told.word_M.extend(numbers)


def _photo(path: Path, where: str, told: Told, entry: Any, unique: json_values.Unique) -> None:
    id = json_values.integer(entry, "id", path, where)
    unique.add(id, where)
    name = json_values.string(entry, "file_name", path, where)

    def side(entry: Any, key: str, path: Path, where: object) -> int:
        return json_values.integer(entry, key, path, where, 0, LARGEST_SIDE)

    width, height = (optional(side, 0, entry, key, path, where) for key in ("width", "height"))
    facts = (width, height, name)
    known = told.photos.setdefault(id, facts)
    if known != facts:
        raise UserError(
            f"{path}: image {id} is {name} ({width} x {height}) here and {known[2]} ({known[0]} x "
            f"{known[1]}) elsewhere; these files cannot be one set."
        )


def _check_unique(path: Path, ids_N: np.ndarray, entries_N: np.ndarray) -> None:
    """As ``Unique``, for millions of ids in little memory."""
    order_N = np.argsort(ids_N, kind="stable")
    (again,) = np.nonzero(np.diff(ids_N[order_N]) == 0)
    if len(again):
        unique = json_values.Unique(path, "annotation id")
        for place in order_N[again[0] : again[0] + 2].tolist():
            unique.add(int(ids_N[place]), f"annotations[{entries_N[place]}]")


def _name_attributes(told: Told, attributes: dict[int, str], vocabulary: Vocabulary | None) -> None:
    """Give every attribute number up to the largest a name of its own."""
    lines = vocabulary.attributes if vocabulary is not None else []
    for number in range(max([*attributes, *told.word_M], default=-1) + 1):
        name = attributes.get(number) or (lines[number][0] if number < len(lines) else "")
        if not name or name in told.words:
            name = f"attribute {number}"
        told.words[name] = number
