"""Reads stores: whole maps, or random grids at the cost of the chunks that hold them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

from gridvlp.store.layout import (
    DamagedMap,
    StoreError,
    canonical_key,
    grid_order,
    numbered,
    read_attributes,
    read_checked,
    read_index,
)

# Chunks are read here and not through Zarr, whose calls cost a small map more than its bytes do
# (docs/benchmarks.md), and whose thread pools hang in a forked child.
ZSTD = Zstd()
INDEXES_KEPT = 4096
EMPTY = 2**64 - 1  # where a shard has no chunk


class FeatureStore:
    """One store, or several read as one; maps are found under either spelling of a COCO name.

    Safe to share among threads, to pickle and to fork: no file and no thread is kept.

    Raises:
        StoreError: no store, an unknown version, or stores of different encoders.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path]) -> None:
        listed = [paths] if isinstance(paths, str | Path) else list(paths)
        if not listed:
            raise StoreError("Give at least one feature store.")
        self.paths = [Path(path) for path in listed]
        self._about = [read_attributes(path) for path in self.paths]
        self._index = [read_index(path) for path in self.paths]
        self._place: dict[str, tuple[int, int]] = {}  # canonical key: store, place in its index
        for number, index in enumerate(self._index):
            for place, key in enumerate(index.keys):
                self._place.setdefault(canonical_key(key), (number, place))
        first = self._about[0]
        for path, about in zip(self.paths, self._about, strict=True):
            for name in ("name", "weights_sha256"):
                if about["encoder"].get(name) != first["encoder"].get(name):
                    raise StoreError(
                        f"{self.paths[0]} and {path} hold maps of different encoders "
                        f"({name}): they cannot be read as one."
                    )
            if about["channels"] != first["channels"]:
                raise StoreError(f"{self.paths[0]} and {path} differ in channels.")
        self.channels: int = first["channels"]
        self.encoder: dict[str, Any] = first["encoder"]
        self._arrays = [_read_array(path) for path in self.paths]
        self.dtype = self._arrays[0].dtype  # in which the numbers are kept
        self._chunks: dict[Path, list[tuple[int, int]]] = {}
        self._facts: dict[Path, list[dict[str, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_chunks": {}, "_facts": {}}  # what was read can be read again

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and canonical_key(key) in self._place

    def keys(self) -> list[str]:
        """All keys, in the order in which they were written."""
        return [self._index[number].keys[place] for number, place in self._place.values()]

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over what the stores say of themselves and over all keys and sizes."""
        digest = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode())
        for key in self.keys():
            _, height, width = self.shape(key)
            digest.update(f"{key} {height} {width}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def record(self, key: str) -> dict[str, Any]:
        """The facts that were kept with a map.

        Raises:
            StoreError: there is no such map, or the file of its facts is damaged.
        """
        number, place = self._find(key)
        starts, rows = self._index[number].starts, self._arrays[number].shard_rows
        shard = int(starts[place]) // rows
        path = numbered(self.paths[number] / "facts", shard)
        if path not in self._facts:
            if len(self._facts) >= INDEXES_KEPT:
                self._facts.clear()
            self._facts[path] = read_checked(path)
        return dict(self._facts[path][place - int(np.searchsorted(starts, shard * rows))])

    def shape(self, key: str) -> tuple[int, int, int]:
        """(C, H, W) of a map."""
        number, place = self._find(key)
        index = self._index[number]
        return self.channels, int(index.heights[place]), int(index.widths[place])

    def map(self, key: str, dtype: Any = np.float32) -> np.ndarray:
        """The map (C, H, W).

        Raises:
            StoreError: there is no such map.
            DamagedMap: its bytes are not those that were written.
        """
        _, height, width = self.shape(key)
        return np.ascontiguousarray(self.grids(key, dtype).T).reshape(-1, height, width)

    def grids(self, key: str, dtype: Any = np.float32) -> np.ndarray:
        """All grids (H * W, C) in row-major order; errors as for ``map``."""
        _, height, width = self.shape(key)
        count = height * width
        stored_GC = self._rows(key, 0, count)
        grids_GC = np.empty(stored_GC.shape, dtype=dtype)
        grids_GC[grid_order(count)] = stored_GC
        return grids_GC

    def sample(
        self,
        key: str,
        n: int = 100,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ) -> np.ndarray:
        """Random grids (min(n, H * W), C), each equally likely, without replacement.

        Takes ``n`` rows that follow each other in the stored pseudo-random order, from a random
        row on, so that only their chunks are read. Errors as for ``map``.
        """
        _, height, width = self.shape(key)
        count = height * width
        first = int((rng or np.random.default_rng()).integers(count))
        if n >= count:
            return self._rows(key, 0, count).astype(dtype)
        last = min(first + n, count)
        parts = [self._rows(key, first, last)]
        if first + n > count:
            parts.append(self._rows(key, 0, first + n - count))
        return np.concatenate(parts).astype(dtype, copy=False)

    def _find(self, key: str) -> tuple[int, int]:
        """Which store holds a map, and its place in that store's index."""
        try:
            return self._place[canonical_key(key)]
        except KeyError:
            paths = ", ".join(map(str, self.paths))
            raise StoreError(f"There is no map of {key} in {paths}.") from None

    def _rows(self, key: str, first: int, last: int) -> np.ndarray:
        """Stored rows of a map, from the chunks that hold them and no others."""
        number, place = self._find(key)
        chunk_rows: int = self._about[number]["chunk_grids"]
        layout = self._arrays[number]
        shard, offset = divmod(int(self._index[number].starts[place]) + first, layout.shard_rows)
        chunks = range(offset // chunk_rows, -(-(offset + last - first) // chunk_rows))
        path = self.paths[number] / "grids" / "c" / str(shard) / "0"
        try:
            with path.open("rb") as file:
                places = self._chunk_places(path, file.fileno(), layout.shard_rows // chunk_rows)
                parts = [
                    ZSTD.decode(_read_exactly(file.fileno(), *places[chunk])) for chunk in chunks
                ]
            values = np.frombuffer(b"".join(parts), dtype=layout.dtype)
            rows_GC = values.reshape(len(chunks) * chunk_rows, self.channels)
            skipped = offset - chunks.start * chunk_rows
            return rows_GC[skipped : skipped + last - first]
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            raise DamagedMap(
                f"The map of {key} in {self.paths[number]} is damaged: {error}. "
                "Extract that photo again into a new store."
            ) from error

    def _chunk_places(self, path: Path, file: int, chunks: int) -> list[tuple[int, int]]:
        """(offset, bytes) of each chunk of a shard, which Zarr keeps at the file's end."""
        if path not in self._chunks:
            length = 16 * chunks
            stored = _read_exactly(file, os.fstat(file).st_size - length - 4, length + 4)
            if google_crc32c.value(stored[:length]) != int.from_bytes(stored[length:], "little"):
                raise ValueError("the index of its shard has changed")
            if len(self._chunks) >= INDEXES_KEPT:
                self._chunks.clear()
            places = np.frombuffer(stored[:length], dtype="<u8").reshape(-1, 2)
            self._chunks[path] = [(int(offset), int(size)) for offset, size in places]
        return self._chunks[path]


@dataclass(frozen=True)
class _Array:
    """What grids/zarr.json says of the rows."""

    dtype: np.dtype
    shard_rows: int


def _read_array(path: Path) -> _Array:
    try:
        about = json.loads((path / "grids" / "zarr.json").read_text(encoding="utf-8"))
        dtype = np.dtype(about["data_type"]).newbyteorder("<")
        return _Array(dtype, about["chunk_grid"]["configuration"]["chunk_shape"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(f"{path}/grids is no Zarr v3 array: {error}. Extract again.") from error


def _read_exactly(file: int, offset: int, size: int) -> bytes:
    if offset == EMPTY or offset < 0:
        raise ValueError("a chunk is missing")
    found = os.pread(file, size, offset)
    if len(found) != size:
        raise ValueError("its shard is cut short")
    return found
