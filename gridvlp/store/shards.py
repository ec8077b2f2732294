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
from numcodecs.zstd import Zstd
from zarr.codecs import ZstdCodec

from gridvlp.store.files import LocalFiles, RemoteFiles
from gridvlp.store.layout import StoreError, write_whole

EMPTY = 2**64 - 1  # where a shard has no chunk
ZSTD_LEVEL = 1
ZSTD = Zstd(level=ZSTD_LEVEL, checksum=True)


@dataclass(frozen=True)
class Array:
    """One array of a store: its shards and chunks hold the rows of the same maps as the others'."""

    name: str
    dtype: np.dtype  # little-endian
    row_shape: tuple[int, ...]
    fill: float  # where nothing was written

    def file(self, shard: int) -> str:
        """The file of a shard, by its name in the store."""
        return "/".join([self.name, "c", str(shard), *("0" for _ in self.row_shape)])

    def encode(self, rows: np.ndarray, chunk_rows: int) -> list[bytes]:
        """The chunks that hold some rows, the last one filled up with zeros."""
        count = -(-len(rows) // chunk_rows)
        filled = np.zeros((count, chunk_rows, *self.row_shape), dtype=self.dtype)
        filled.reshape(-1, *self.row_shape)[: len(rows)] = rows
        return [bytes(ZSTD.encode(chunk)) for chunk in filled]

    def decode(self, chunks: Sequence[bytes | memoryview], chunk_rows: int) -> np.ndarray:
        """The rows of some chunks.

        Raises:
            RuntimeError, ValueError: the bytes are not those of such chunks.
        """
        size = chunk_rows * math.prod(self.row_shape) * self.dtype.itemsize
        parts = [ZSTD.decode(chunk) for chunk in chunks]
        if any(len(part) != size for part in parts):
            raise ValueError("a chunk has another size")
        return np.frombuffer(b"".join(parts), dtype=self.dtype).reshape(-1, *self.row_shape)

    def create(self, group: Any, shard_rows: int, chunk_rows: int) -> None:
        """Make the empty Zarr array."""
        group.create_array(
            self.name,
            shape=(0, *self.row_shape),
            shards=(shard_rows, *self.row_shape),
            chunks=(chunk_rows, *self.row_shape),
            dtype=self.dtype,
            fill_value=self.fill,
            # zstd's own checksum: not all readers check crc32c where they read part of a shard
            compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=True),
        )


def store_arrays(about: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays that a store has, by the attributes of its group."""
    arrays = [Array("grids", np.dtype(about["dtype"]), (about["channels"],), math.nan)]
    if about["kind"] == "regions":
        arrays += [
            Array("boxes", np.dtype("<f4"), (4,), math.nan),
            Array("classes", np.dtype("<i4"), (), -1),
            Array("scores", np.dtype("<f4"), (), math.nan),
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


def array_rows(files: LocalFiles | RemoteFiles) -> tuple[int, int]:
    """Rows of a store's arrays, and of each shard; all arrays share them.

    Raises:
        StoreError: the array's metadata cannot be read.
    """
    about = _metadata(files, "grids")
    return about["shape"][0], about["chunk_grid"]["configuration"]["chunk_shape"][0]


def grow(store: Path, arrays: Iterable[str], rows: int) -> None:
    """Give the arrays at least this many rows."""
    for name in arrays:
        about = _metadata(LocalFiles(store), name)
        if about["shape"][0] < rows:
            about["shape"][0] = rows
            write_whole(store / name / "zarr.json", json.dumps(about, indent=2).encode())


def _metadata(files: LocalFiles | RemoteFiles, array: str) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(files.read(f"{array}/zarr.json"))
        rows = about["chunk_grid"]["configuration"]["chunk_shape"][0], about["shape"][0]
        if not all(isinstance(number, int) for number in rows):
            raise ValueError("no shape")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(
            f"{files.place}/{array} is no Zarr v3 array: {error}. Extract again."
        ) from error
    return about
