"""Which photos become which maps: one key for each, and no photo under another's key."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path

from gridvlp.data.photo_names import photo_keys
from gridvlp.extract.visual_genome import coco_keys
from gridvlp.run.skip_list import SkipList
from gridvlp.store import canonical_key


@dataclass(frozen=True)
class Item:
    """A map to make: its key, and the files that show its photo, first the one to be read."""

    key: str
    paths: tuple[Path, ...]


def select_items(
    photos: Sequence[Path], part: tuple[int, int] | None, skipped: SkipList
) -> tuple[list[Item], int]:
    """The maps of some photos, or of part k of n, in the photos' order.

    Photos of one stem in several folders have keys with their folder's name. Copies of one file,
    and the two spellings of a COCO name, are one photo. A photo of Visual Genome that is given as
    COCO's, too, is read only where COCO's file is of no use: a map serves both. The part that a
    photo belongs to depends on its key alone.

    Args:
        photos: their files.
        part: (k, n); None takes all.
        skipped: takes the files that are another's copy.

    Returns:
        The maps, and how many photos of Visual Genome are COCO's.
    """
    coco = coco_keys(photos)
    stems = {canonical_key(path.stem) for path in photos}
    twins: dict[str, list[Path]] = {}
    own: list[Path] = []
    for path in photos:
        if coco.get(path) in stems:
            twins.setdefault(coco[path], []).append(path)
        else:
            own.append(path)
    items, copies = _distinct(own)
    items = [
        Item(item.key, (*item.paths, *twins.get(canonical_key(item.key), ()))) for item in items
    ]
    if part is not None:
        items = [item for item in items if _in_part(item.key, *part)]
    kept = {path for item in items for path in item.paths}
    for path, first in copies.items():
        if first in kept:
            skipped.note(str(path), f"a second file of one photo: the same key as {first}")
    return items, sum(len(item.paths) - 1 for item in items)


def _distinct(photos: Sequence[Path]) -> tuple[list[Item], dict[Path, Path]]:
    """The photos without copies, and for each copy the file that it is one of.

    Two files are one photo where their names say so, and where they have one stem and the same
    bytes.
    """
    copies: dict[Path, Path] = {}
    by_name = _by_key(photos, copies)
    by_stem: dict[str, list[Path]] = {}
    for path in by_name.values():
        others = by_stem.setdefault(path.stem, [])
        same = next((other for other in others if _same_bytes(path, other)), None)
        if same is None:
            others.append(path)
        else:
            copies[path] = same
    left = [path for path in by_name.values() if path not in copies]
    return [
        Item(_as_named(key, path), (path,)) for key, path in _by_key(left, copies).items()
    ], copies


def _as_named(key: str, path: Path) -> str:
    """The stem itself where it is the key in another spelling: stores keep files' own names."""
    return path.stem if key == canonical_key(path.stem) else key


def _by_key(photos: Sequence[Path], copies: dict[Path, Path]) -> dict[str, Path]:
    """The first photo of each key; further ones are put among the copies."""
    first: dict[str, Path] = {}
    for path, key in zip(photos, photo_keys(photos), strict=True):
        if first.setdefault(key, path) is not path:
            copies[path] = first[key]
    return first


def _same_bytes(one: Path, other: Path) -> bool:
    try:
        return cmp(one, other, shallow=False)
    except OSError:
        return False


def _in_part(key: str, part: int, parts: int) -> bool:
    return zlib.crc32(canonical_key(key).encode(errors="surrogateescape")) % parts == part
