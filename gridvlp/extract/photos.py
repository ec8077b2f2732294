"""Finding photos, and turning any of them into the pixels that an encoder sees."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gridvlp.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_PIXELS = 120_000_000  # a decompression bomb is larger


class BadPhoto(Exception):
    """A file that cannot be used; the message is the reason, fit for a report."""


@dataclass
class Found:
    """Files to decode, in the order of extraction, and how many other files lie beside them."""

    photos: list[Path] = field(default_factory=list)
    others: int = 0


def find_photos(sources: Iterable[Path]) -> Found:
    """All files with an image's suffix below folders, or named themselves; each folder sorted.

    Raises:
        UserError: a source does not exist, or holds no image.
    """
    found = Found()
    for source in sources:
        before = len(found.photos)
        if source.is_file():
            found.photos.append(source)
        elif source.is_dir():
            for folder, folders, files in os.walk(source, followlinks=True):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(files):
                    if name.startswith("."):
                        continue
                    if name.lower().endswith(SUFFIXES):
                        found.photos.append(Path(folder, name))
                    else:
                        found.others += 1
        else:
            raise UserError(f"There is no folder or file {source}.")
        if len(found.photos) == before:
            what = f"no image among its {found.others} files" if found.others else "empty"
            raise UserError(f"{source} holds no photo: it is {what}. Name a folder of photos.")
    return found


def decode(path: Path) -> Image.Image:
    """A photo as RGB, as a person sees it: EXIF rotation applied, transparency on white.

    Raises:
        BadPhoto: with the reason.
    """
    try:
        if path.stat().st_size == 0:
            raise BadPhoto("empty file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of metadata; pixels are checked by loading
            with Image.open(path) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise BadPhoto(f"{opened.width} x {opened.height} pixels are too many")
                opened.load()
                return _rgb(ImageOps.exif_transpose(opened))
    except BadPhoto:
        raise
    except UnidentifiedImageError:
        raise BadPhoto("not an image") from None
    except Image.DecompressionBombError:
        raise BadPhoto("too many pixels (decompression bomb)") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise BadPhoto("file is gone") from None
        reason = "truncated" if "truncated" in str(error).lower() else f"damaged ({error})"
        raise BadPhoto(reason) from None


def _rgb(photo: Image.Image) -> Image.Image:
    if photo.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        values = np.asarray(photo, dtype=np.float64)
        if photo.mode == "F" and values.max() <= 1:
            values = values * 255
        elif values.max() > 255:
            values = values / 257  # 65535 -> 255
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")
    if photo.mode in ("RGBA", "LA", "PA") or "transparency" in photo.info:
        over = photo.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return photo.convert("RGB")


def resized_size(width: int, height: int, shorter: int, longest: int) -> tuple[int, int]:
    """(width, height) after resizing: Detectron2's ResizeShortestEdge rule, at least 1 x 1."""
    scale = shorter / min(width, height)
    new_width, new_height = width * scale, height * scale
    if max(new_width, new_height) > longest:
        scale = longest / max(new_width, new_height)
        new_width, new_height = new_width * scale, new_height * scale
    return max(1, int(new_width + 0.5)), max(1, int(new_height + 0.5))


def resize(photo: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Pixels (H, W, 3), uint8, BGR as Caffe-trained encoders want them; bilinear as Detectron2."""
    resized = photo.resize(size, Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(resized)[:, :, ::-1])
