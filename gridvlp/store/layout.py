"""What a store looks like on disk; docs/store-format.md is the same in prose.

    STORE/zarr.json            group; attributes["gridvlp"] says what every map has in common
    STORE/grids/               Zarr v3 array (rows, C), sharded; a row is one grid
    STORE/index/NNNNNN.json    the maps of shard N: key, first row, H, W, facts; written after the
                               shard, so that a shard without an index file does not count

A map is H x W rows in a fixed pseudo-random order, beginning at a chunk's first row and never
crossing a shard. A run of consecutive rows is therefore a random sample of the image.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.errors import UserError

FORMAT_VERSION = 1
CHUNK_GRIDS = 20  # 100 of 608 grids then touch under a fifth of a map's chunks
SHARD_BYTES = 64 << 20
SHARD_CHUNKS = 1024  # a read fetches the shard's index: 16 bytes a chunk
ORDER_SEED = 0x6772696456_4C50  # "gridVLP"
DTYPES = ("float16", "float32")

_COCO_STEM = re.compile(r"COCO_(?:train|val|test)\d{4}_(\d{12})")


class StoreError(UserError):
    """A store that cannot be used as asked; the message says which and why."""


class DuplicateKey(StoreError):
    """The store has a map of that photo already."""


class DamagedMap(StoreError):
    """The stored bytes of a map are not those that were written."""


def canonical_key(stem: str) -> str:
    """One key for the namings of one photo: COCO_val2014_000000262148 is 000000262148."""
    match = _COCO_STEM.fullmatch(stem)
    return match.group(1) if match else stem


@lru_cache(maxsize=4096)
def grid_order(grids: int) -> np.ndarray:
    """The row-major grid that each stored row holds, int64 (grids,).

    Grids are sorted by splitmix64(ORDER_SEED + g), so that any language can repeat it.
    """
    state = np.arange(grids, dtype=np.uint64) + np.uint64(ORDER_SEED)
    with np.errstate(over="ignore"):
        state = state * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    order = np.argsort(state, kind="stable").astype(np.int64)
    order.flags.writeable = False  # the same array is handed to all
    return order


def rows_taken(grids: int) -> int:
    """Rows that a map takes up, its last chunk filled."""
    return -(-grids // CHUNK_GRIDS) * CHUNK_GRIDS


def read_attributes(path: Path) -> dict[str, Any]:
    """The store's own attributes of its group, checked.

    Raises:
        StoreError: it is no store of ours, or of a version that this release does not know.
    """
    if not (path / "zarr.json").is_file():
        raise StoreError(
            f"There is no feature store at {path}: make it with `gridvlp extract --images ...`."
        )
    try:
        own = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]["gridvlp"]
    except (ValueError, KeyError, TypeError):
        own = None
    if not isinstance(own, dict) or "format_version" not in own:
        raise StoreError(f"{path} is no gridvlp feature store.")
    if own["format_version"] != FORMAT_VERSION:
        raise StoreError(
            f"{path} has store format {own['format_version']}; this release reads format "
            f"{FORMAT_VERSION}. Use the release that wrote it, or extract again."
        )
    return own


def read_records(path: Path) -> list[dict[str, Any]]:
    """What is known of each map: key, start (first row), height, width, facts; as written.

    Raises:
        StoreError: an index file is damaged.
    """
    records = []
    for file in sorted((path / "index").glob("*.json")):
        try:
            records += json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise StoreError(f"{file} is damaged: {error}. Extract again.") from error
    return records
