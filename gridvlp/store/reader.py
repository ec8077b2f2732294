"""Reads stores: whole maps, or random grids at the cost of the chunks that hold them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.store.files import location, store_files
from gridvlp.store.index import damaged_files, key_hash, read_index, shard_file
from gridvlp.store.layout import (
    DamagedMap,
    StoreError,
    canonical_key,
    checked_json,
    grid_order,
    read_attributes,
)
from gridvlp.store.numbers import converted, from_bfloat16, from_bytes, holding
from gridvlp.store.regions import UNKNOWN_CLASS, Regions
from gridvlp.store.sampling import sampled_rows
from gridvlp.store.shards import EMPTY, array_rows, chunk_places, index_bytes, store_arrays

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
        self.paths = [location(path) for path in listed]
        self._files = [store_files(path) for path in self.paths]
        self._about = [read_attributes(files) for files in self._files]
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
        self.stored_as = " and ".join(sorted({about["dtype"] for about in self._about}))
        # holds every number of the stores
        self.dtype = np.result_type(*(holding(about["dtype"]) for about in self._about))
        rows = [array_rows(files) for files in self._files]
        self._shard_rows = [of_shard for _, of_shard in rows]
        self._index = [read_index(files, *of) for files, of in zip(self._files, rows, strict=True)]
        self._hidden = [self._hidden_in(number) for number in range(len(self._index))]
        self._chunks: dict[tuple[int, str], np.ndarray] = {}
        self._facts: dict[tuple[int, int], list[dict[str, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # What was read is read again, of the same shards: maps written meanwhile stay unseen.
        seen = [index.shards.copy() for index in self._index]
        return {**vars(self), "_index": seen, "_chunks": {}, "_facts": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._index = [
            read_index(files, *array_rows(files), only=seen)
            for files, seen in zip(self._files, state["_index"], strict=True)
        ]

    def __len__(self) -> int:
        return sum(map(len, self._index)) - sum(map(len, self._hidden))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._place(key) is not None

    def keys(self) -> list[str]:
        """All keys, in the order of the stores and their shards."""
        return [key for key, _, _ in self._maps()]

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over what the stores say of themselves and over all keys and sizes.

        The order of the maps does not matter, which several writers leave to chance.
        """
        digest = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode())
        for line in sorted(f"{key} {height} {width}\n" for key, height, width in self._maps()):
            digest.update(line.encode(errors="surrogatepass"))
        return digest.hexdigest()

    @property
    def shards(self) -> int:
        """How many shards the stores have."""
        return sum(len(index.shards) for index in self._index)

    def stored_bytes(self) -> int | None:
        """Bytes of all files of the stores; None if one of them is read over a URL."""
        sizes = [files.size() for files in self._files]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def damaged_index_files(self) -> dict[str, str]:
        """What is wrong with files of the index and of the arrays' metadata, by name.

        Where two index files hold the same, one suffices to read; the metadata serve other readers.
        """
        damaged: dict[str, str] = {}
        for files, arrays in zip(self._files, self._arrays, strict=True):
            for name in arrays:
                try:
                    array_rows(files, name)
                except StoreError as error:
                    damaged[f"{files.place}/{name}/zarr.json"] = str(error)
        for files, index in zip(self._files, self._index, strict=True):
            damaged |= damaged_files(files, index.shards)
        return damaged

    def record(self, key: str) -> dict[str, Any]:
        """The facts that were kept with a map.

        Raises:
            StoreError: there is no such map, or the file of its facts is damaged.
        """
        number, place = self._find(key)
        starts, rows = self._index[number].starts, self._shard_rows[number]
        shard = int(starts[place]) // rows
        facts = self._facts.get((number, shard))
        if facts is None:
            name, files = shard_file("facts", shard), self._files[number]
            try:
                facts = checked_json(f"{files.place}/{name}", files.read(name))
            except OSError as error:
                raise StoreError(f"{files.place}/{name} is damaged: {error}.") from error
            if len(self._facts) >= INDEXES_KEPT:
                self._facts.clear()
            self._facts[number, shard] = facts
        return dict(facts[place - int(np.searchsorted(starts, np.uint64(shard * rows)))])

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
        stored_GC = self._numbers(*self._find(key), np.arange(count))
        row_of_grid = np.argsort(grid_order(count))
        return converted(stored_GC.take(row_of_grid, 0), dtype)

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
        number, at = self._find(key)
        rows = {}
        for name in ("boxes", "classes", "scores"):
            stored = self._rows(number, at, name, np.arange(count))
            rows[name] = np.empty_like(stored)
            rows[name][grid_order(count)] = stored
        return Regions(
            features_NC=self.grids(key, dtype),
            boxes_N4=rows["boxes"],
            classes_N=None if rows["classes"][0] == UNKNOWN_CLASS else rows["classes"],
            scores_N=None if np.isnan(rows["scores"][0]) else rows["scores"],
        )

    def check(self, key: str) -> None:
        """Read all that is kept of a map, its facts too, and compare the checksums.

        Raises:
            StoreError: there is no such map, or something of it is damaged.
        """
        number, place = self._find(key)
        _, height, width = self.shape(key)
        for name in self._arrays[number]:
            self._rows(number, place, name, np.arange(1 if name == "scales" else height * width))
        self.record(key)

    def sample(
        self,
        key: str,
        n: int = 100,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ) -> np.ndarray:
        """Random grids (min(n, H * W), C), each equally likely, without replacement.

        Reads about n grids' worth of chunks, at least five, drawn at random; two grids of one chunk
        meet in a sample more often than two of different chunks (docs/store-format.md). A map of
        fewer chunks than are needed is read whole, and every set of n grids is as likely. Errors as
        for ``map``.
        """
        number, place = self._find(key)
        _, height, width = self.shape(key)
        chunk_grids: int = self._about[number]["chunk_grids"]
        rng = rng or np.random.default_rng()
        rows = sampled_rows(height * width, n, chunk_grids, rng)
        return converted(self._numbers(number, place, rows), dtype)

    def _find(self, key: str) -> tuple[int, int]:
        """Which store holds a map, and its place in that store's index."""
        found = self._place(key)
        if found is None:
            paths = ", ".join(map(str, self.paths))
            raise StoreError(f"There is no map of {key} in {paths}.")
        return found

    def _place(self, key: str) -> tuple[int, int] | None:
        canonical = canonical_key(key)
        hash = key_hash(canonical)
        for number, index in enumerate(self._index):
            place = index.find(canonical, hash)
            if place is not None:
                return number, place
        return None

    def _hidden_in(self, number: int) -> list[int]:
        """Places of a store's maps that an earlier store, or an earlier place, has too."""
        index = self._index[number]
        again = np.zeros(len(index), dtype=bool)
        again[1:] = index.hashes[1:] == index.hashes[:-1]
        for earlier in self._index[:number]:
            again |= np.isin(index.hashes, earlier.hashes)
        suspects = sorted(index.places[again].tolist())
        return [place for place in suspects if self._find(index.key(place)) != (number, place)]

    def _maps(self) -> Iterator[tuple[str, int, int]]:
        """(key, height, width) of every map, in order."""
        for index, hidden in zip(self._index, self._hidden, strict=True):
            unseen = set(hidden)
            for place, found in enumerate(index.maps()):
                if place not in unseen:
                    yield found

    def _numbers(self, number: int, place: int, rows: np.ndarray) -> np.ndarray:
        """Stored rows of a map as floating-point numbers."""
        kept_GC = self._rows(number, place, "grids", rows)
        match self._about[number]["dtype"]:
            case "bfloat16":
                return from_bfloat16(kept_GC)
            case "int8":
                return from_bytes(kept_GC, self._rows(number, place, "scales", np.zeros(1, int))[0])
        return kept_GC

    def _rows(self, number: int, place: int, name: str, rows: np.ndarray) -> np.ndarray:
        """Stored rows of a map in one array, ascending, from their chunks and no others."""
        array, of_shard = self._arrays[number][name], self._shard_rows[number]
        chunk_grids: int = self._about[number]["chunk_grids"]
        shard, first = divmod(int(self._index[number].starts[place]), of_shard)
        chunks, part = np.unique(rows // array.chunk_rows, return_inverse=True)
        try:
            stored = self._fetch(
                number, array.file(shard), first // chunk_grids + chunks, of_shard // chunk_grids
            )
            wanted = part * array.chunk_rows + rows % array.chunk_rows
            decoded = array.decode(stored)
            if wanted[-1] - wanted[0] + 1 == len(wanted):  # ascending: nothing is left out
                return decoded[wanted[0] : wanted[-1] + 1]
            return decoded[wanted]
        except (OSError, ValueError, IndexError) as error:
            raise DamagedMap(
                f"The map of {self._index[number].key(place)} in {self.paths[number]} is damaged: "
                f"{error}. Extract that photo again into a new store."
            ) from error

    def _fetch(self, number: int, name: str, chunks: np.ndarray, count: int) -> list[memoryview]:
        """The bytes of chunks of a shard that has ``count``, in one read where they adjoin."""
        places = self._chunk_places(number, name, count)[chunks].tolist()
        runs: list[tuple[int, int]] = []
        for offset, size in places:
            if offset == EMPTY:
                raise ValueError("a chunk is missing")
            if runs and sum(runs[-1]) == offset:
                runs[-1] = runs[-1][0], runs[-1][1] + size
            else:
                runs.append((offset, size))
        parts: list[memoryview] = []
        for (_, length), run in zip(runs, self._files[number].ranges(name, runs), strict=True):
            view, taken = memoryview(run), 0
            while taken < length:
                size = places[len(parts)][1]
                parts.append(view[taken : taken + size])
                taken += size
        return parts

    def _chunk_places(self, number: int, name: str, count: int) -> np.ndarray:
        """Offset and bytes of each chunk of a shard."""
        places = self._chunks.get((number, name))
        if places is None:
            places = chunk_places(self._files[number].tail(name, index_bytes(count)))
            if len(self._chunks) >= INDEXES_KEPT:
                self._chunks.clear()
            self._chunks[number, name] = places
        return places
