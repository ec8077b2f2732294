"""Writes the sample world: photos and annotations in the official formats and file names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gridvlp.errors import UserError
from gridvlp.sample.coco import write_coco
from gridvlp.sample.files import write_json
from gridvlp.sample.gqa import write_gqa
from gridvlp.sample.nlvr2 import write_nlvr2
from gridvlp.sample.photos import take_photos
from gridvlp.sample.visual_genome import write_visual_genome
from gridvlp.sample.vqa import write_vqa

VERSION = 3  # of the world: another one draws other photos or asks other questions
IMAGES = 1600  # training photos of COCO; enough for `make demo`
FEWEST, MOST = 40, 90_000  # below, splits would be empty; above, photo numbers would meet
MARKER = "sample-world.json"
FOLDERS = ("coco", "vg", "vqa", "gqa", "nlvr2")


@dataclass(frozen=True)
class SampleSummary:
    """What the world holds: photos and lines by name."""

    counts: dict[str, int]
    written: bool  # False when the folder held this world already


def write_sample(folder: Path, images: int = IMAGES, seed: int = 0) -> SampleSummary:
    """Write a world of generated scenes below ``folder``/data; docs/data.md describes it.

    The same numbers give the same bytes, however many processes work. A world that is there
    already, whole, is left as it is; one that was interrupted, or lost files, is written again.

    Args:
        folder: the working folder; made if it is not there.
        images: training photos of COCO; all else is in proportion.
        seed: decides the world.

    Raises:
        UserError: a number out of range, data/ holds something that this function did not write
            or another sample world, or the disk refuses.
    """
    if not FEWEST <= images <= MOST:
        raise UserError(f"--images {images}: give a number from {FEWEST} to {MOST:,}.")
    if seed < 0:
        raise UserError(f"--seed {seed}: give 0 or more.")
    data = Path(folder) / "data"
    asked = {"version": VERSION, "images": images, "seed": seed}
    try:
        whole = _whole_world(data, asked)
        if whole is not None:
            return SampleSummary(whole, written=False)
        marker = {"what": "gridvlp sample world: generated scenes, no real photo", **asked}
        write_json(data / MARKER, marker)
        splits = take_photos(data, images, seed)
        counts = {f"photos {name}": len(photos.ids) for name, photos in splits.items()}
        for write in (write_coco, write_visual_genome, write_vqa, write_gqa, write_nlvr2):
            counts |= write(data, splits, seed)
        write_json(data / MARKER, {**marker, "files": _count_files(data), "counts": counts})
    except OSError as error:
        where = error.filename or data
        raise UserError(
            f"The sample world cannot be written: {where}: {error.strerror or error}."
        ) from error
    return SampleSummary(counts, written=True)


def _whole_world(data: Path, asked: dict[str, int]) -> dict[str, int] | None:
    """The counts of the world that is there, if it is the one asked for and whole.

    Raises:
        UserError: something else is there.
    """
    path = data / MARKER
    if not path.exists():
        if data.exists() and any(data.iterdir()):
            raise UserError(
                f"{data} holds data that is no sample world: name another folder for it."
            )
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        there = {name: found[name] for name in asked}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: remove {data}, or name another folder.") from error
    if there != asked:
        other, this = (
            " ".join(f"--{name} {numbers[name]}" for name in ("images", "seed"))
            + f" (version {numbers['version']})"
            for numbers in (there, asked)
        )
        raise UserError(
            f"{data} holds the sample world {other}, not {this}: remove it, or name another folder."
        )
    if "counts" not in found or _count_files(data) < found["files"]:
        return None
    counts: dict[str, int] = found["counts"]
    return counts


def _count_files(data: Path) -> int:
    """How many files the world has; leftovers of an interrupted call do not count."""
    return sum(
        path.is_file() and not path.name.startswith(".")
        for folder in FOLDERS
        for path in (data / folder).rglob("*")
    )
