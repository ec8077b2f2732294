"""The arrays of a store and the bytes of their shard files: chunks, then their index.

The bytes are those of Zarr's ``sharding_indexed`` codec. They are made and read here and not
through Zarr, whose calls cost a small map more than its bytes do (docs/benchmarks.md), and whose
thread pools hang in a forked child.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from gridvlp.store.chunks import decode, encode
from gridvlp.store.files import LocalFiles, RemoteFiles
from gridvlp.store.layout import StoreError, check_seal, sealed, write_whole
from gridvlp.store.numbers import KEPT_AS
from gridvlp.store.regions import UNKNOWN_CLASS, UNKNOWN_SCORE

BFLOAT16_NAN = 0x7FC0
EMPTY = 2**64 - 1  # where a shard has no chunk


@dataclass(frozen=True)
class Array:
    """One array of a store; chunk n of any of them belongs to the same map."""

    name: str
    dtype: np.dtype  # little-endian
    row_shape: tuple[int, ...]
    fill: float  # where nothing was written
    chunk_rows: int

    def file(self, shard: int) -> str:
        """The file of a shard, by its name in the store."""
        return "/".join([self.name, "c", str(shard), *("0" for _ in self.row_shape)])

    def encode(self, rows: np.ndarray) -> list[bytes]:
        """The chunks that hold some rows, the last one filled up with zeros."""
        count = -(-len(rows) // self.chunk_rows)
        filled = np.zeros((count, self.chunk_rows, *self.row_shape), dtype=self.dtype)
        filled.reshape(-1, *self.row_shape)[: len(rows)] = rows
        return [encode(chunk) for chunk in filled]

    def decode(self, chunks: Sequence[bytes | memoryview]) -> np.ndarray:
        """The rows of some chunks.

        Raises:
            ValueError: the bytes are not those of such chunks.
        """
        rows = np.empty((len(chunks), self.chunk_rows, *self.row_shape), dtype=self.dtype)
        for chunk, part in zip(chunks, rows, strict=True):
            decode(chunk, part)
        return rows.reshape(-1, *self.row_shape)


def store_arrays(about: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays that a store has, by the attributes of its group."""
    channels, rows, kept_as = about["channels"], about["chunk_grids"], KEPT_AS[about["dtype"]]
    missing = {"<u2": BFLOAT16_NAN, "u1": 0}.get(kept_as, math.nan)
    arrays = [Array("grids", np.dtype(kept_as), (channels,), missing, rows)]
    if about["dtype"] == "int8":  # one row for each chunk of grids; a map's is that of its first
        arrays.append(Array("scales", np.dtype("<f2"), (2, channels), math.nan, 1))
    if about["kind"] == "regions":
        arrays += [
            Array("boxes", np.dtype("<f4"), (4,), math.nan, rows),
            Array("classes", np.dtype("<i4"), (), UNKNOWN_CLASS, rows),
            Array("scores", np.dtype("<f4"), (), UNKNOWN_SCORE, rows),
        ]
    return {array.name: array for array in arrays}


def shard_bytes(chunks: Mapping[int, bytes], count: int) -> bytes:
    """A shard file of ``count`` chunks, of which those that are not given are missing."""
    places = np.full((count, 2), EMPTY, dtype="<u8")
    offset = 0
    for number, chunk in chunks.items():
        places[number] = offset, len(chunk)
        offset += len(chunk)
    index = places.tobytes()
    check = google_crc32c.value(index).to_bytes(4, "little")
    return b"".join([*chunks.values(), index, check])


def index_bytes(count: int) -> int:
    """Bytes at the end of a shard file of ``count`` chunks that say where they lie."""
    return 16 * count + 4


def chunk_places(stored: bytes) -> np.ndarray:
    """Offset and bytes of each chunk, uint64 (chunks, 2), from the end of a shard file.

    Raises:
        ValueError: the checksum is another.
    """
    if google_crc32c.value(stored[:-4]) != int.from_bytes(stored[-4:], "little"):
        raise ValueError("the index of its shard has changed")
    return np.frombuffer(stored[:-4], dtype="<u8").reshape(-1, 2)


def array_rows(files: LocalFiles | RemoteFiles, name: str = "grids") -> tuple[int, int]:
    """Rows of an array, and of each of its shards.

    Raises:
        StoreError: the array's metadata cannot be read.
    """
    about = _metadata(files, name)
    return about["shape"][0], about["chunk_grid"]["configuration"]["chunk_shape"][0]


def grow(store: Path, arrays: Iterable[Array], chunks: int) -> None:
    """Give the arrays at least this many chunks."""
    for array in arrays:
        about = _metadata(LocalFiles(store), array.name)
        rows = chunks * array.chunk_rows
        if about["shape"][0] < rows:
            about["shape"][0] = rows
            write_whole(store / array.name / "zarr.json", sealed(about))


def _metadata(files: LocalFiles | RemoteFiles, array: str) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(files.read(f"{array}/zarr.json"))
        check_seal(about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{files.place}/{array}/zarr.json is damaged: {error}. Extract again."
        ) from error
    return about
