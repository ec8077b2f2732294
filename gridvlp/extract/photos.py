"""Finds photos and turns each into pixels, or says why it cannot."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gridvlp.data.photo_names import match_files
from gridvlp.errors import UserError
from gridvlp.extract.photo_decoding import DECODE_VERSION, FORMATS, BadPhoto, decode_photo

__all__ = [
    "DECODE_VERSION",
    "SUFFIXES",
    "BadPhoto",
    "Photo",
    "PhotoFiles",
    "find_photos",
    "read_photo",
    "resized",
    "survey_photos",
]

SUFFIXES = frozenset(
    {suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
    | {".pjpeg", ".pjp"}  # as browsers save some JPEGs
)
# Of downloads: "a.jpg_large", "a.jpg!d", "a.jpg?size=l", "a.jpg:large"
_LONGER_SUFFIX = re.compile(r"(\.[a-z0-9]+)[^a-z0-9.].*")
LISTS = frozenset({".txt", ".json"})
_HEAD_BYTES = 16  # as many as Pillow shows a decoder that is to say whether a file is its own


@dataclass(frozen=True)
class Photo:
    """A decoded photo: (h, w, 3), uint8, RGB, resized; sizes are (height, width).

    Args:
        pixels_HW3: the pixels.
        original_size: before the photo was resized.
        rules: the rules by which its look changed (see ``DecodedPhoto``).
    """

    pixels_HW3: np.ndarray
    original_size: tuple[int, int]
    rules: tuple[str, ...] = ()


@dataclass
class PhotoFiles:
    """What a search found.

    Args:
        paths: the photos, each once.
        passed_over: how many files of each suffix are no photos by their name ("" is none).
        missing: what a list names and no file is, with the reason.
    """

    paths: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    missing: dict[str, str] = field(default_factory=dict)


def find_photos(places: Iterable[Path]) -> list[Path]:
    """The photos in some places, as ``survey_photos`` finds them."""
    return survey_photos(places).paths


def survey_photos(places: Iterable[Path]) -> PhotoFiles:
    """The photos in some folders and their subfolders, single files, and those that lists name.

    Places come in the order given, the photos of a folder sorted by their path in it. In a folder
    files are known by their suffix, and those without one by their first bytes; the others are
    counted, but for hidden ones. A photo named twice is listed once.

    Args:
        places: folders; photos; .txt lists of one path a line, from the list's folder on (UTF-8,
            or UTF-16 with a byte-order mark); COCO .json files, whose photos are looked for below
            the folder of the file, or beside it where it lies in annotations/ (see
            ``match_files``). A path in a .txt list is kept even if no file is there, to be counted
            where photos are read.

    Raises:
        UserError: a place does not exist, a folder holds no photo, or a list cannot be read.
    """
    survey = PhotoFiles()
    paths: dict[Path, None] = {}
    for place in places:
        if place.is_file() and place.suffix.lower() == ".txt":
            found = _in_text(place)
        elif place.is_file() and place.suffix.lower() == ".json":
            found = _in_json(place, survey)
        elif place.is_file():
            found = [place]
        else:
            found, passed_over = _in_folder(place)
            survey.passed_over += passed_over
        paths.update(dict.fromkeys(found))
    survey.paths = list(paths)
    return survey


def _in_folder(place: Path) -> tuple[list[Path], Counter[str]]:
    if not place.is_dir():
        raise UserError(f"There is no folder {place}: name the photos with --images FOLDER.")
    photos: list[Path] = []
    others: Counter[str] = Counter()
    entered = set()
    for folder, subfolders, names in os.walk(place, followlinks=True, onerror=_refuse):
        subfolders.sort()  # which of two links to a folder is followed
        real = os.path.realpath(folder)
        if real in entered:  # by a link, which may lead back above itself
            subfolders.clear()
            continue
        entered.add(real)
        for name in names:
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if _is_photo(path):
                photos.append(path)
            else:
                others[path.suffix.lower()] += 1
    if not photos:
        raise UserError(
            f"None of the {others.total():,} files in {place} is a photo by its name "
            f"({' '.join(sorted(SUFFIXES))})."
            if others
            else f"The folder {place} is empty."
        )
    return sorted(photos, key=lambda path: path.parts), others


def _is_photo(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix:
        longer = _LONGER_SUFFIX.fullmatch(suffix)
        return (longer[1] if longer else suffix) in SUFFIXES
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    accepts = (Image.OPEN[name][1] for name in FORMATS)
    return any(accept is not None and accept(head) for accept in accepts)


def _in_text(path: Path) -> list[Path]:
    try:
        content = path.read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        lines = content.decode("utf-16" if utf16 else "utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of photos: {error}") from error
    return _named(path, [path.parent / line.strip() for line in lines if line.strip()])


def _in_json(path: Path, survey: PhotoFiles) -> list[Path]:
    try:
        entries = json.loads(path.read_bytes())["images"]
        names = [str(entry["file_name"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a COCO file with images and their file_name: {error!r}"
        ) from error
    base = path.parent.parent if path.parent.name == "annotations" else path.parent
    _named(path, names)
    found, missing = match_files(names, _in_folder(base)[0])
    survey.missing |= missing
    return [photo for photo in found if photo is not None]


def _named(path: Path, photos: list[Any]) -> list[Any]:
    if not photos:
        raise UserError(f"{path} names no photo.")
    return photos


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be searched: {error.strerror}.") from error


def resized(height: int, width: int, shorter: int, longest: int) -> tuple[int, int]:
    """The size of a photo whose shorter side becomes ``shorter``, the longer at most ``longest``.

    The arithmetic of Detectron2's ResizeShortestEdge.get_output_shape, step by step: another order
    of the same products makes 563 rows of 720 where it makes 562. No side is below 1.
    """
    scale = shorter / min(height, width)
    if height < width:
        new_height, new_width = float(shorter), scale * width
    else:
        new_height, new_width = scale * height, float(shorter)
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def read_photo(path: Path, size: tuple[int, int]) -> Photo:
    """Decode a photo (see ``decode_photo``) and resize it, bilinear as Detectron2 does.

    Args:
        path: the file; its content decides the format, not its name.
        size: shorter side, and the most that the longer may have.

    Raises:
        BadPhoto: the file cannot be read or decoded; the message says why.
    """
    photo = decode_photo(path)
    height, width = resized(photo.image.height, photo.image.width, *size)
    try:
        small = photo.image.resize((width, height), Image.Resampling.BILINEAR)
    except MemoryError as error:
        raise BadPhoto("too little memory to resize the photo") from error
    original_size = photo.image.height, photo.image.width
    return Photo(np.asarray(small), original_size, photo.rules)
