"""Reads stores: whole maps, or random grids at the cost of the chunks that hold them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

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
from gridvlp.store.regions import UNKNOWN_CLASS, Regions
from gridvlp.store.shards import (
    EMPTY,
    chunk_places,
    index_bytes,
    shard_rows,
    store_arrays,
)

INDEXES_KEPT = 4096


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
            for name in ("channels", "kind"):
                if about[name] != first[name]:
                    raise StoreError(f"{self.paths[0]} and {path} differ in {name}.")
        self.kind: str = first["kind"]  # "grids" or "regions"
        self.channels: int = first["channels"]
        self.encoder: dict[str, Any] = first["encoder"]
        self._arrays = [store_arrays(about) for about in self._about]
        self._shard_rows = [shard_rows(path) for path in self.paths]
        self.dtype = self._arrays[0]["grids"].dtype  # in which the numbers are kept
        self._chunks: dict[Path, list[tuple[int, int]]] = {}
        self._facts: dict[Path, list[dict[str, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_chunks": {}, "_facts": {}}  # what was read can be read again

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and canonical_key(key) in self._place

    def keys(self) -> list[str]:
        """All keys, in the order of the stores and their shards."""
        return [self._index[number].keys[place] for number, place in self._place.values()]

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over what the stores say of themselves and over all keys and sizes.

        The order of the maps does not matter, which several writers leave to chance.
        """
        digest = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode())
        for key in sorted(self.keys()):
            _, height, width = self.shape(key)
            digest.update(f"{key} {height} {width}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def record(self, key: str) -> dict[str, Any]:
        """The facts that were kept with a map.

        Raises:
            StoreError: there is no such map, or the file of its facts is damaged.
        """
        number, place = self._find(key)
        starts, rows = self._index[number].starts, self._shard_rows[number]
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

    def regions(self, key: str, dtype: Any = np.float32) -> Regions:
        """The regions of a photo, in the order in which they were added.

        Raises:
            StoreError: there is no such photo, or this is a store of grids.
            DamagedMap: the bytes are not those that were written.
        """
        if self.kind != "regions":
            raise StoreError(f"{self.paths[0]} holds grids, no regions: read them with map().")
        _, height, width = self.shape(key)
        count = height * width
        rows = {}
        for name in ("boxes", "classes", "scores"):
            stored = self._rows(key, 0, count, name)
            rows[name] = np.empty_like(stored)
            rows[name][grid_order(count)] = stored
        return Regions(
            features_NC=self.grids(key, dtype),
            boxes_N4=rows["boxes"],
            classes_N=None if rows["classes"][0] == UNKNOWN_CLASS else rows["classes"],
            scores_N=None if np.isnan(rows["scores"][0]) else rows["scores"],
        )

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

    def _rows(self, key: str, first: int, last: int, name: str = "grids") -> np.ndarray:
        """Stored rows of a map in one array, from the chunks that hold them and no others."""
        number, place = self._find(key)
        chunk_rows: int = self._about[number]["chunk_grids"]
        array, rows = self._arrays[number][name], self._shard_rows[number]
        shard, offset = divmod(int(self._index[number].starts[place]) + first, rows)
        chunks = range(offset // chunk_rows, -(-(offset + last - first) // chunk_rows))
        try:
            stored = self._fetch(array.file(self.paths[number], shard), chunks, rows // chunk_rows)
            skipped = offset - chunks.start * chunk_rows
            return array.decode(stored, chunk_rows)[skipped : skipped + last - first]
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            raise DamagedMap(
                f"The map of {key} in {self.paths[number]} is damaged: {error}. "
                "Extract that photo again into a new store."
            ) from error

    def _fetch(self, path: Path, chunks: Iterable[int], count: int) -> list[bytes]:
        """The bytes of some chunks of a shard that has ``count``."""
        with path.open("rb") as file:
            places = self._chunk_places(path, file.fileno(), count)
            return [_read_exactly(file.fileno(), *places[chunk]) for chunk in chunks]

    def _chunk_places(self, path: Path, file: int, count: int) -> list[tuple[int, int]]:
        """(offset, bytes) of each chunk of a shard."""
        if path not in self._chunks:
            length = index_bytes(count)
            stored = _read_exactly(file, os.fstat(file).st_size - length, length)
            if len(self._chunks) >= INDEXES_KEPT:
                self._chunks.clear()
            self._chunks[path] = chunk_places(stored)
        return self._chunks[path]


def _read_exactly(file: int, offset: int, size: int) -> bytes:
    if offset == EMPTY or offset < 0:
        raise ValueError("a chunk is missing")
    found = os.pread(file, size, offset)
    if len(found) != size:
        raise ValueError("its shard is cut short")
    return found
