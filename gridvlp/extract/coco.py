"""COCO-style annotation files: plain instances, or with grid-feats-vqa's ``attribute_ids``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gridvlp import json_files
from gridvlp.errors import UserError
from gridvlp.extract.annotations import Annotations, Told, cached_annotations
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
    ``attCategories``; where these are not told, attribute i is entry i of the vocabulary.

    Args:
        files: .json of COCO's layout; an annotation may have ``attribute_ids`` (grid-feats-vqa).
        photos: folders, searched through. Photos are known by the last part of ``file_name``:
            a path in an annotation file is not to be trusted.
        vocabulary: the names to keep; None keeps all.
        keep_empty: photos without a box stay, as COCO's evaluation has it.

    Raises:
        UserError: a file is missing or broken, or no photo has a box.
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
            try:
                _read(path, told, attributes)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise UserError(
                    f"{path} is no COCO file of instances: {type(error).__name__} {error} in an "
                    "entry of images, annotations or categories."
                ) from error
        _name_attributes(told, attributes, vocabulary)
        if vocabulary is not None:
            return told, vocabulary
        return told, Vocabulary([[name] for name in told.names], [[word] for word in told.words])

    def find(names: list[str]) -> list[str | None]:
        there = {path.name: str(path) for path in reversed(find_photos(photos))}
        return [there.get(name) for name in names]

    source = " + ".join(path.name for path in files)
    choice = [vars(vocabulary) if vocabulary else None]
    return cached_annotations(source, files, choice, read, find, keep_empty)


def photo_folders(files: Sequence[Path]) -> list[Path]:
    """Where the photos of annotation files are if it is not said: beside annotations/."""
    parents = [path.parent for path in files]
    return list(dict.fromkeys(p.parent if p.name == "annotations" else p for p in parents))


def _read(path: Path, told: Told, attributes: dict[int, str]) -> None:
    categories: dict[int, str] = {}
    begin = len(told.name_N)
    lists = set()
    with json_files.progress(f"Reading {path.name}", [path]) as advance:
        for kind, entry in json_files.lists(path, advance):
            lists.add(kind)
            if kind == "annotations":
                _box(told, entry)
            elif kind == "images":
                _photo(path, told, entry)
            elif kind == "categories":
                categories[entry["id"]] = clean(entry["name"])
            elif kind == "attCategories":
                if not 0 <= (number := int(entry["id"])) < MOST_ATTRIBUTES:
                    raise ValueError(f"attCategories id {number}")
                attributes[number] = clean(entry["name"])
    missing = sorted({"annotations", "images", "categories"} - lists)
    if missing:
        raise UserError(f"{path} is no COCO file of instances: it lists no {', '.join(missing)}.")
    for number in sorted(categories):
        told.names.setdefault(categories[number], len(told.names))
    # until here boxes had the numbers of this file: its lists may come in any order
    own = {number: told.names[name] for number, name in categories.items()}
    for i in range(begin, len(told.name_N)):
        told.name_N[i] = own[told.name_N[i]]


def _box(told: Told, entry: dict[str, Any]) -> None:
    left, top, width, height = entry["bbox"]
    told.image_N.append(entry["image_id"])
    told.name_N.append(entry["category_id"])
    told.xywh_N4.extend((left, top, width, height))
    told.crowd_N.append(bool(entry.get("iscrowd")))
    numbers = entry.get("attribute_ids") or ()
    if not all(0 <= number < MOST_ATTRIBUTES for number in numbers):
        raise ValueError(f"attribute_ids {numbers}")
    told.words_N.append(len(numbers))
    told.word_M.extend(numbers)


def _photo(path: Path, told: Told, entry: dict[str, Any]) -> None:
    name = Path(str(entry["file_name"])).name
    facts = (int(entry.get("width") or 0), int(entry.get("height") or 0), name)
    known = told.photos.setdefault(int(entry["id"]), facts)
    if known != facts:
        raise UserError(
            f"{path}: image {entry['id']} is {name} here and {known[2]} elsewhere; these files "
            "cannot be one set."
        )


def _name_attributes(told: Told, attributes: dict[int, str], vocabulary: Vocabulary | None) -> None:
    """Give every attribute number up to the largest a name of its own."""
    lines = vocabulary.attributes if vocabulary is not None else []
    for number in range(max([*attributes, *told.word_M], default=-1) + 1):
        name = attributes.get(number) or (lines[number][0] if number < len(lines) else "")
        if not name or name in told.words:
            name = f"attribute {number}"
        told.words[name] = number
