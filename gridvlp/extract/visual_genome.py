"""Visual Genome's official release as boxes with classes and attributes."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gridvlp import json_files
from gridvlp.errors import UserError
from gridvlp.extract.annotations import Annotations, Told, cached_annotations
from gridvlp.extract.vocabulary import Vocabulary, clean
from gridvlp.image_ids import ImageIds

FOLDERS = ("VG_100K", "VG_100K_2")
FILES = ("image_data.json", "objects.json", "attributes.json")


def read_visual_genome(
    folder: Path, vocab: Path | None = None, objects: int = 1600, attributes: int = 400
) -> Annotations:
    """Read objects.json, attributes.json and image_data.json with the photos of both folders.

    The files are read once; later calls take their arrays from the cache.

    Args:
        folder: holds the three files and VG_100K, VG_100K_2.
        vocab: folder of the two word lists; None takes the most frequent names.
        objects, attributes: how many names to take then.

    Raises:
        UserError: a file is missing or broken, or no photo has a box.
    """
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}: unpack Visual Genome there (docs/data.md), "
            "or make a sample world with `gridvlp sample-data .`"
        )
    given = Vocabulary.load(vocab) if vocab is not None else None

    def read() -> tuple[Told, Vocabulary]:
        try:
            told = _read(folder)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"The annotations in {folder} are not Visual Genome's: {type(error).__name__} "
                f"{error} in an entry."
            ) from error
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


def _photos(folder: Path, names: list[str]) -> list[str | None]:
    there: dict[str, str] = {}
    for subfolder in FOLDERS:
        if (folder / subfolder).is_dir():
            there |= {e.name: e.path for e in os.scandir(folder / subfolder) if e.is_file()}
    return [there.get(name) for name in names]


def _read(folder: Path) -> Told:
    told = Told()
    paths = [folder / name for name in FILES]
    with json_files.progress("Reading Visual Genome", paths) as advance:
        sizes = {
            json_files.integer(entry, "image_id", paths[0], number): (
                entry["width"] or 0,
                entry["height"] or 0,
            )
            for number, entry in enumerate(json_files.elements(paths[0], advance=advance))
        }
        object_N = array("q")
        for number, entry in enumerate(json_files.elements(paths[1], advance=advance)):
            image = json_files.integer(entry, "image_id", paths[1], number)
            told.photos[image] = (*sizes.get(image, (0, 0)), f"{image}.jpg")
            for thing in json_files.field(entry, "objects", paths[1], number):
                name = clean(thing["names"][0]) if thing.get("names") else ""
                told.name_N.append(told.names.setdefault(name, len(told.names)))
                told.image_N.append(image)
                told.xywh_N4.extend((thing["x"], thing["y"], thing["w"], thing["h"]))
                object_N.append(thing["object_id"])
        told.crowd_N = array("b", bytes(len(object_N)))
        known_K, words_K, word_M = array("q"), array("i"), array("i")
        for entry in json_files.elements(paths[2], advance=advance):
            for thing in entry.get("attributes", ()):
                words = [clean(word) for word in thing.get("attributes") or ()]
                if words:
                    known_K.append(thing["object_id"])
                    words_K.append(len(words))
                    word_M.extend(told.words.setdefault(w, len(told.words)) for w in words)
    _join(told, np.asarray(object_N), np.asarray(known_K), np.asarray(words_K), np.asarray(word_M))
    return told


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
