"""Visual Genome's official release as boxes with classes and attributes."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.data import json_files, json_values
from gridvlp.data.image_ids import ImageIds
from gridvlp.data.json_values import BadEntry, optional
from gridvlp.errors import UserError
from gridvlp.extract.annotations import LARGEST_SIDE, Annotations, Told, cached_annotations
from gridvlp.extract.vocabulary import Vocabulary, clean
from gridvlp.run.skip_list import SkipList

FOLDERS = ("VG_100K", "VG_100K_2")
XYWH = ("x", "y", "w", "h")
FILES = ("image_data.json", "objects.json", "attributes.json")


def read_visual_genome(
    folder: Path, vocab: Path | None = None, objects: int = 1600, attributes: int = 400
) -> Annotations:
    """Read objects.json, attributes.json and image_data.json with the photos of both folders.

    The files are read once; later calls take their arrays from the cache. What is not in the
    release's format, an object or all of a photo, is left out and counted.

    Args:
        folder: holds the three files and VG_100K, VG_100K_2.
        vocab: folder of the two word lists; None takes the most frequent names.
        objects, attributes: how many names to take then.

    Raises:
        UserError: a file is missing or broken, has a photo twice, or no photo has a box.
    """
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}: unpack Visual Genome there (docs/data.md), "
            "or make a sample world with `gridvlp sample-data .`"
        )
    given = Vocabulary.load(vocab) if vocab is not None else None

    def read() -> tuple[Told, Vocabulary]:
        told = _read(folder)
        return told, given or told.vocabulary(objects, attributes)

    choice = [vars(given)] if given else [objects, attributes]
    files = [folder / name for name in FILES]
    return cached_annotations("Visual Genome", files, choice, read, lambda n: _photos(folder, n))


def coco_keys(photos: Iterable[Path]) -> dict[Path, str]:
    """COCO's key of each photo of Visual Genome that is COCO's, too.

    By the image_data.json beside the folders VG_100K and VG_100K_2, where it is; half of the
    release are COCO's photos under other names, and a map of either serves both.

    Raises:
        UserError: the file is broken.
    """
    releases: dict[Path, ImageIds] = {}
    found = {}
    for path in photos:
        if path.parent.name not in FOLDERS:
            continue
        release = path.parent.parent
        ids = releases.setdefault(release, ImageIds(release))
        _, *coco = ids.visual_genome(path.stem)
        if coco:
            found[path] = coco[0]
    return found


def _photos(folder: Path, names: list[str]) -> tuple[list[str | None], dict[str, str]]:
    there: dict[str, str] = {}
    for subfolder in FOLDERS:
        if (folder / subfolder).is_dir():
            there |= {e.name: e.path for e in os.scandir(folder / subfolder) if e.is_file()}
    return [there.get(name) for name in names], {}


def _read(folder: Path) -> Told:
    told = Told()
    image_data, objects, attributes = paths = [folder / name for name in FILES]
    with json_files.progress("Reading Visual Genome", paths) as advance:
        sizes = _read_sizes(image_data, told.broken, advance)
        object_N = array("q")
        unique = json_values.Unique(objects, "image_id")
        for number, entry in enumerate(json_files.elements(objects, advance=advance)):
            try:
                image = json_values.integer(entry, "image_id", objects, number)
                things = json_values.array(entry, "objects", objects, number)
            except BadEntry as error:
                told.broken.add(error.entry, error.reason)
                continue
            unique.add(image, number)
            told.photos[image] = (*sizes.get(image, (0, 0)), f"{image}.jpg")
            for thing in things:
                try:
                    object_N.append(_take(told, image, thing, objects, number))
                except BadEntry as error:
                    told.broken.add(error.entry, error.reason)
                else:
                    told.broken.take()
        told.crowd_N = array("b", bytes(len(object_N)))
        known_K, words_K, word_M = array("q"), array("i"), array("i")
        for number, entry in enumerate(json_files.elements(attributes, advance=advance)):
            try:
                things = optional(json_values.array, [], entry, "attributes", attributes, number)
            except BadEntry as error:
                told.broken.add(error.entry, error.reason)
                continue
            for thing in things:
                try:
                    words = optional(
                        json_values.strings, [], thing, "attributes", attributes, number
                    )
                    if words:
                        known = json_values.integer(thing, "object_id", attributes, number)
                except BadEntry as error:
                    told.broken.add(error.entry, error.reason)
                    continue
                told.broken.take()
                if words:
                    known_K.append(known)
                    words_K.append(len(words))
                    cleaned = map(clean, words)
                    word_M.extend(told.words.setdefault(w, len(told.words)) for w in cleaned)
    _join(told, np.asarray(object_N), np.asarray(known_K), np.asarray(words_K), np.asarray(word_M))
    return told


def _read_sizes(
    path: Path, broken: SkipList, advance: json_files.Advance
) -> dict[int, tuple[int, int]]:
    """Width and height of the photos, 0 where they are not there."""

    def side(entry: Any, key: str, path: Path, where: object) -> int:
        return json_values.integer(entry, key, path, where, 0, LARGEST_SIDE)

    sizes: dict[int, tuple[int, int]] = {}
    unique = json_values.Unique(path, "image_id")
    for number, entry in enumerate(json_files.elements(path, advance=advance)):
        try:
            image = json_values.integer(entry, "image_id", path, number)
            unique.add(image, number)
            width, height = (optional(side, 0, entry, k, path, number) for k in ("width", "height"))
        except BadEntry as error:
            broken.add(error.entry, error.reason)
        else:
            broken.take()
            sizes[image] = (width, height)
    return sizes


def _take(told: Told, image: int, thing: Any, path: Path, number: int) -> int:
    """Take an object, nothing of it where anything is broken; returns its id."""
    id = json_values.integer(thing, "object_id", path, number)
    xywh = json_values.numbers(thing, XYWH, path, number)
    names = json_values.strings(thing, "names", path, number)
    name = clean(names[0]) if names else ""
    told.name_N.append(told.names.setdefault(name, len(told.names)))
    told.image_N.append(image)
    told.xywh_N4.extend(xywh)
    return id


def _join(
    told: Told, object_N: np.ndarray, known_K: np.ndarray, words_K: np.ndarray, word_M: np.ndarray
) -> None:
    """Give each object the attributes that were said of its id; what is said last holds."""
    if not len(known_K):
        told.words_N = array("i", bytes(4 * len(object_N)))
        return
    order_K = np.argsort(known_K, kind="stable")
    place_N = np.searchsorted(known_K[order_K], object_N, side="right") - 1
    found_N = (place_N >= 0) & (known_K[order_K[place_N]] == object_N)
    source_N = order_K[place_N]
    lengths_N = np.where(found_N, words_K[source_N], 0)
    starts_K = np.cumsum(words_K) - words_K
    ends_N = np.cumsum(lengths_N)
    moved_M = np.arange(ends_N[-1] if len(ends_N) else 0)
    moved_M += np.repeat(starts_K[source_N] - (ends_N - lengths_N), lengths_N)
    told.words_N = array("i", lengths_N.astype(np.int32).tobytes())
    told.word_M = array("i", word_M[moved_M].astype(np.int32).tobytes())
