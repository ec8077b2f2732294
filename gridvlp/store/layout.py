"""What a store looks like on disk; docs/store-format.md is the same in prose.

    STORE/zarr.json            group; attributes["gridvlp"] says what every map has in common
    STORE/grids/               Zarr v3 array (rows, C), sharded; a row is one grid or region
    STORE/scales/              array of the channels' scales, where the numbers are int8
    STORE/boxes/ classes/ scores/   arrays of the same rows, where these are regions
    STORE/index/NNNNNN.jsonl   the maps of shard N as columns: key, first row, H, W; written after
                               the shard, so that a shard without an index file does not count
    STORE/index.bin            those files in one, searched faster (gridvlp.store.packed_index)
    STORE/facts/NNNNNN.jsonl   what else is known of them, one object each; read when asked for
    STORE/versions/*.json      the versions of the libraries that made the maps

The index names each file of its shard by a digest, so that no other is taken for it.

A map is H x W rows in a fixed pseudo-random order, beginning at a chunk's first row and never
crossing a shard. A run of consecutive rows is therefore a random sample of the image.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np

from gridvlp.store.errors import StoreError

FORMAT_VERSION = 5
CHUNK_GRIDS = 20  # 100 of 608 grids then touch under a fifth of a map's chunks
SHARD_BYTES = 64 << 20
SHARD_CHUNKS = 1024  # a read fetches the end of the shard's file: 20 bytes a chunk
ORDER_SEED = 0x6772696456_4C50  # "gridVLP"; of new stores, a reader takes each store's own
KINDS = ("grids", "regions")
DIGEST_BYTES = 16

_COCO_STEM = re.compile(r"COCO_(?:train|val|test)\d{4}_(\d{12})")


def canonical_key(stem: str) -> str:
    """One key for the namings of one photo: COCO_val2014_000000262148 is 000000262148."""
    match = _COCO_STEM.fullmatch(stem)
    return match.group(1) if match else stem


@lru_cache(maxsize=4096)
def grid_order(grids: int, seed: int) -> np.ndarray:
    """The row-major grid that each stored row holds, int64 (grids,).

    Grids are sorted by splitmix64(seed + g), so that any language can repeat it.
    """
    state = np.arange(grids, dtype=np.uint64) + np.uint64(seed)
    with np.errstate(over="ignore"):
        state = state * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    order = np.argsort(state, kind="stable").astype(np.int64)
    order.flags.writeable = False  # the same array is handed to all
    return order


def rows_taken(grids: int, chunk_grids: int) -> int:
    """Rows that a map takes up, its last chunk filled."""
    return -(-grids // chunk_grids) * chunk_grids


def digest(content: bytes) -> bytes:
    """What names a file, or a part of it, in the index: the first 16 bytes of its SHA-256."""
    return hashlib.sha256(content).digest()[:DIGEST_BYTES]


def parse_json(content: bytes | str) -> Any:
    """A JSON value.

    Raises:
        ValueError: it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def sealed(document: dict[str, Any]) -> bytes:
    """A zarr.json with the CRC-32C of what it says among its attributes."""
    own = document.setdefault("attributes", {}).setdefault("gridvlp", {})
    own.pop("crc32c", None)
    check = _canonical_crc(document)
    own["crc32c"] = check
    return json.dumps(document, indent=2).encode()


def check_seal(document: dict[str, Any], required: bool) -> None:
    """Take the CRC-32C out of a zarr.json.

    Raises:
        ValueError: it is another, or is required and missing.
    """
    try:
        check = document["attributes"]["gridvlp"].pop("crc32c")
    except (KeyError, TypeError, AttributeError):
        if required:
            raise ValueError("its checksum is missing") from None
        return
    if type(check) is not int or check != _canonical_crc(document):
        raise ValueError("its checksum is another")


def _canonical_crc(document: dict[str, Any]) -> int:
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return int(google_crc32c.value(text.encode()))


def checked_lines(value: Any) -> bytes:
    """A JSON value as one line and the CRC-32C of that line as another."""
    line = json.dumps(value, separators=(",", ":")).encode()
    check = json.dumps({"crc32c": google_crc32c.value(line)}).encode()
    return line + b"\n" + check + b"\n"


def checked_json(name: str, content: bytes) -> Any:
    """The value in the bytes of a file of ``checked_lines``.

    Raises:
        StoreError: the checksum is another, or there are not two lines of JSON.
    """
    try:
        line, check = content.splitlines()
        if parse_json(check)["crc32c"] != google_crc32c.value(line):
            raise ValueError("its checksum is another")
        return parse_json(line)
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{name} is damaged: {error}. Extract again.") from error
