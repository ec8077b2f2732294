"""Finds photos and turns each into pixels, or says why it cannot."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gridvlp.errors import UserError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
LISTS = frozenset({".txt", ".json"})
# More is no photo; Pillow's own limit for "decompression bombs" (89 million pixels, twice over)
MOST_PIXELS = 178_956_970


@dataclass(frozen=True)
class Photo:
    """A decoded photo: (h, w, 3), uint8, RGB, resized; sizes are (height, width)."""

    pixels_HW3: np.ndarray
    original_size: tuple[int, int]


class BadPhoto(Exception):
    """A file that is no usable photo; the message is the reason."""


def find_photos(places: Iterable[Path]) -> list[Path]:
    """The photos in some folders and their subfolders, single files, and those that lists name.

    Places come in the order given, the photos of a folder sorted by their path in it. Files are
    known by their suffix; hidden ones are passed over. A photo named twice is listed once. What a
    list names and is not there is returned, too, to be counted where photos are read.

    Args:
        places: folders; photos; .txt lists of one path a line, from the list's folder on; COCO
            .json files, whose photos are looked for by name below the folder of the file, or
            beside it where it lies in annotations/.

    Raises:
        UserError: a place does not exist, a folder holds no photo, or a list cannot be read.
    """
    found: dict[Path, None] = {}
    for place in places:
        if place.is_file() and place.suffix.lower() in LISTS:
            listed = _in_text(place) if place.suffix.lower() == ".txt" else _in_json(place)
            if not listed:
                raise UserError(f"{place} names no photo.")
            found.update(dict.fromkeys(listed))
            continue
        if place.is_file():
            found[place] = None
            continue
        if not place.is_dir():
            raise UserError(f"There is no folder {place}: name the photos with --images FOLDER.")
        inside = []
        entered = set()
        for folder, subfolders, names in os.walk(place, followlinks=True, onerror=_refuse):
            subfolders.sort()  # which of two links to a folder is followed
            real = os.path.realpath(folder)
            if real in entered:  # by a link, which may lead back above itself
                subfolders.clear()
                continue
            entered.add(real)
            inside += [
                Path(folder, name)
                for name in names
                if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
            ]
        if not inside:
            others = sum(len(names) for _, _, names in os.walk(place))
            raise UserError(
                f"The folder {place} is empty."
                if not others
                else f"None of the {others} files in {place} is a photo by its name "
                f"({' '.join(sorted(SUFFIXES))})."
            )
        found.update(dict.fromkeys(sorted(inside, key=lambda path: path.parts)))
    return list(found)


def _in_text(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of photos: {error}") from error
    return [path.parent / line.strip() for line in lines if line.strip()]


def _in_json(path: Path) -> list[Path]:
    try:
        entries = json.loads(path.read_bytes())["images"]
        # no more than the name: a path in an annotation file is not to be trusted
        names = [Path(str(entry["file_name"])).name for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no COCO file with images and their file_name: {error!r}"
        ) from error
    base = path.parent.parent if path.parent.name == "annotations" else path.parent
    there = {photo.name: photo for photo in reversed(find_photos([base]))}
    return [there.get(name, base / name) for name in names]


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be searched: {error.strerror}.") from error


def resized(height: int, width: int, shorter: int, longest: int) -> tuple[int, int]:
    """The size of a photo whose shorter side becomes ``shorter``, the longer at most ``longest``.

    The ratio of the sides is kept, as by Detectron2's ResizeShortestEdge; no side is below 1.
    """
    scale = min(shorter / min(height, width), longest / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def read_photo(path: Path, size: tuple[int, int]) -> Photo:
    """Decode a photo as a person would see it, and resize it (bilinear, as Detectron2 does).

    Turned as its EXIF data say; grey, palette and CMYK become RGB; what is transparent lies on
    white; 16 bits become 8; of an animation the first frame is taken.

    Args:
        path: the file; its content decides the format, not its name.
        size: shorter side, and the most that the longer may have.

    Raises:
        BadPhoto: the file cannot be read or decoded; the message says why.
    """
    try:
        if path.stat().st_size == 0:
            raise BadPhoto("the file is empty (0 bytes)")
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise BadPhoto(f"{image.width} x {image.height} pixels are more than a photo has")
            image.load()
            rgb = to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise BadPhoto("the content is no image format that is known") from None
    except Image.DecompressionBombError as error:
        raise BadPhoto(f"more pixels than a photo has: {error}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        cut = "truncated" in reason or "Truncated" in reason
        raise BadPhoto(f"the file is cut short: {reason}" if cut else reason) from error
    except (
        ValueError,
        SyntaxError,
        KeyError,
        IndexError,
        TypeError,
        EOFError,
        MemoryError,
        struct.error,
    ) as error:
        # Pillow's decoders raise all of these on damaged files
        raise BadPhoto(f"the image is damaged: {error or type(error).__name__}") from error
    height, width = resized(rgb.height, rgb.width, *size)
    small = rgb.resize((width, height), Image.Resampling.BILINEAR)
    return Photo(np.asarray(small), (rgb.height, rgb.width))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB, as a person would see it."""
    if image.mode.startswith(("I", "F")):
        values: np.ndarray = np.asarray(image, dtype=np.float32)
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:  # 16 bits
            values = values / 257
        image = Image.fromarray(np.uint8(np.clip(np.round(values), 0, 255)))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
