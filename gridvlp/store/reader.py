"""Reads stores: whole maps, or random grids at the cost of the chunks that hold them."""

from __future__ import annotations

import errno
import hashlib
import json
import operator
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.store.arrays import read_layout
from gridvlp.store.errors import DamagedMap, StoreError, StoreUnreachable
from gridvlp.store.files import location, store_files
from gridvlp.store.index import damaged_files, read_index, shard_file
from gridvlp.store.layout import canonical_key, checked_json, digest, grid_order
from gridvlp.store.map_index import ShardBinding, key_hash
from gridvlp.store.numbers import converted, from_bfloat16, from_bytes, holding
from gridvlp.store.recipe import differences_text, recipe_differences, recipe_digest
from gridvlp.store.regions import UNKNOWN_CLASS, Regions
from gridvlp.store.sampling import sampled_rows
from gridvlp.store.shards import EMPTY, ShardTail, tail_bytes
from gridvlp.store.versions import damaged_versions, read_versions

TAILS_KEPT = 4096
# of a file that is gone, or on a bad place of the disk; others are no fault of the file's
OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EINVAL}


class FeatureStore:
    """One store, or several read as one; maps are found under either spelling of a COCO name.

    Safe to share among threads, to pickle and to fork: no file and no thread is kept.

    Args:
        paths: folders or URLs. Where several have a map of one photo, the first one's counts.

    Raises:
        StoreError: there is no store, or one of an unknown version or damaged; or several whose
            recipes differ.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path]) -> None:
        listed = [paths] if isinstance(paths, str | Path) else list(paths)
        if not listed:
            raise StoreError("Give at least one feature store.")
        self.paths = [location(path) for path in listed]
        self._files = [store_files(path) for path in self.paths]
        self._layouts = [read_layout(files) for files in self._files]
        self._about = [layout.attributes for layout in self._layouts]
        first = self._about[0]
        for files, about in zip(self._files[1:], self._about[1:], strict=True):
            differences = recipe_differences(first.recipe, about.recipe)
            if differences:
                raise StoreError(
                    f"{self._files[0].place} and {files.place} cannot be read as one, their "
                    f"recipes differ: {differences_text(differences)}."
                )
        self.kind = first.kind  # "grids" or "regions"
        self.channels = first.channels
        self.encoder = first.encoder
        self.recipe = first.recipe  # what can change a number (gridvlp.store.recipe)
        self.stored_as = first.dtype
        self.dtype = holding(first.dtype)  # holds every number of the stores
        self._index = [
            read_index(files, layout)
            for files, layout in zip(self._files, self._layouts, strict=True)
        ]
        self._hidden = [self._hidden_in(number) for number in range(len(self._index))]
        self._tails: dict[tuple[int, str], ShardTail] = {}
        self._facts: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for note in self.notes:
            warnings.warn(note, stacklevel=2)

    def __getstate__(self) -> dict[str, Any]:
        # What was read is read again, of the same shards: maps written meanwhile stay unseen.
        seen = [index.shards.copy() for index in self._index]
        return {**vars(self), "_index": seen, "_tails": {}, "_facts": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._index = [
            read_index(files, layout, only=seen)
            for files, layout, seen in zip(self._files, self._layouts, state["_index"], strict=True)
        ]

    def __len__(self) -> int:
        return sum(map(len, self._index)) - sum(map(len, self._hidden))

    def __contains__(self, key: object) -> bool:
        return self._place(key) is not None

    def keys(self) -> list[str]:
        """All keys, in the order of the stores and their shards."""
        return [key for key, _, _ in self._maps()]

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over what the stores say of themselves and over all keys and sizes.

        The order of the maps does not matter, which several writers leave to chance.
        """
        attributes = [about.stored for about in self._about]
        hashed = hashlib.sha256(json.dumps(attributes, sort_keys=True).encode())
        for line in sorted(f"{key} {height} {width}\n" for key, height, width in self._maps()):
            hashed.update(line.encode(errors="surrogatepass"))
        return hashed.hexdigest()

    @property
    def recipe_digest(self) -> str:
        """Hex sha256 of the recipe."""
        return recipe_digest(self.recipe)

    @property
    def format_versions(self) -> list[int]:
        """The stores' format versions."""
        return [about.format_version for about in self._about]

    @property
    def notes(self) -> list[str]:
        """What stores of an old format cannot promise, a sentence each; empty in most cases."""
        return [
            note
            for files, about in zip(self._files, self._about, strict=True)
            for note in about.notes(files.place)
        ]

    @property
    def versions(self) -> list[dict[str, str]]:
        """Versions of the libraries that wrote to the stores, each set once; none over a URL.

        Raises:
            StoreError: a file of them is damaged.
        """
        recorded = [versions for files in self._files for versions in read_versions(files)]
        return [versions for n, versions in enumerate(recorded) if versions not in recorded[:n]]

    @property
    def shards(self) -> int:
        """How many shards the stores have."""
        return sum(len(index.shards) for index in self._index)

    def stored_bytes(self) -> int | None:
        """Bytes of all files of the stores; None if one of them is read over a URL."""
        sizes = [files.size() for files in self._files]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def damaged_index_files(self) -> dict[str, str]:
        """What is wrong with files of the index, and of the versions, by name.

        Where two index files hold the same, one suffices to read.
        """
        damaged: dict[str, str] = {}
        for files, layout in zip(self._files, self._layouts, strict=True):
            damaged |= damaged_files(files, layout) | damaged_versions(files)
        return damaged

    def record(self, key: str) -> dict[str, Any]:
        """The facts that were kept with a map.

        Raises:
            StoreError: there is no such map, or the file of its facts is damaged.
        """
        number, place = self._find(key)
        shard_rows = self._layouts[number].shard_rows
        shard = int(self._index[number].starts[place]) // shard_rows
        facts = self._facts.get((number, shard))
        maps = self._index[number].places_in(shard, shard_rows)
        if facts is None:
            facts = self._read_facts(number, shard, maps.stop - maps.start)
            if len(self._facts) >= TAILS_KEPT:
                self._facts.clear()
            self._facts[number, shard] = facts
        return dict(facts[place - maps.start])

    def shape(self, key: str) -> tuple[int, int, int]:
        """(C, H, W) of a map."""
        return self.channels, *self._size(*self._find(key))

    def map(self, key: str, dtype: Any = np.float32) -> np.ndarray:
        """The map (C, H, W).

        Raises:
            StoreError: there is no such map.
            DamagedMap: its bytes are not those that were written.
        """
        number, place = self._find(key)
        height, width = self._size(number, place)
        grids_GC = self._grids(number, place, height * width, dtype)
        return np.ascontiguousarray(grids_GC.T).reshape(-1, height, width)

    def grids(self, key: str, dtype: Any = np.float32) -> np.ndarray:
        """All grids (H * W, C) in row-major order; errors as for ``map``."""
        number, place = self._find(key)
        height, width = self._size(number, place)
        return self._grids(number, place, height * width, dtype)

    def regions(self, key: str, dtype: Any = np.float32) -> Regions:
        """The regions of a photo, in the order in which they were added.

        Raises:
            StoreError: there is no such photo, or this is a store of grids.
            DamagedMap: the bytes are not those that were written.
        """
        if self.kind != "regions":
            raise StoreError(
                f"{self._files[0].place} holds grids, not regions: read them with map()."
            )
        number, place = self._find(key)
        _, count = self._size(number, place)
        order = grid_order(count, self._about[number].order_seed)
        rows = {}
        for name in ("boxes", "classes", "scores"):
            stored = self._rows(number, place, name, np.arange(count))
            rows[name] = np.empty_like(stored)
            rows[name][order] = stored
        return Regions(
            features_NC=self._grids(number, place, count, dtype),
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
        height, width = self._size(number, place)
        for name in self._layouts[number].arrays:
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
        fewer chunks than are needed is read whole, and every set of n grids is as likely.

        Raises:
            StoreError: n is not a whole number of 0 or above; and as for ``map``.
            DamagedMap: as for ``map``.
        """
        number, place = self._find(key)
        height, width = self._size(number, place)
        chunk_grids = self._about[number].chunk_grids
        try:
            n = operator.index(n)
        except TypeError:
            n = -1
        if n < 0:
            raise StoreError("sample() needs a whole number n of 0 or above.")
        if n == 0:
            return np.empty((0, self.channels), dtype)
        rng = rng or np.random.default_rng()
        rows = sampled_rows(height * width, n, chunk_grids, rng)
        return converted(self._numbers(number, place, rows), dtype)

    def _size(self, number: int, place: int) -> tuple[int, int]:
        """H and W of a map."""
        index = self._index[number]
        return int(index.heights[place]), int(index.widths[place])

    def _grids(self, number: int, place: int, count: int, dtype: Any) -> np.ndarray:
        """All grids of a map, in row-major order."""
        stored_GC = self._numbers(number, place, np.arange(count))
        row_of_grid = np.argsort(grid_order(count, self._about[number].order_seed))
        return converted(stored_GC.take(row_of_grid, 0), dtype)

    def _find(self, key: str) -> tuple[int, int]:
        """Which store holds a map, and its place in that store's index."""
        found = self._place(key)
        if found is None:
            paths = ", ".join(str(files.place) for files in self._files)
            raise StoreError(f"There is no map of {key} in {paths}.")
        return found

    def _place(self, key: object) -> tuple[int, int] | None:
        if not isinstance(key, str):
            return None
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
        match self.stored_as:
            case "bfloat16":
                return from_bfloat16(kept_GC)
            case "int8":
                return from_bytes(kept_GC, self._rows(number, place, "scales", np.zeros(1, int))[0])
        return kept_GC

    def _rows(self, number: int, place: int, name: str, rows: np.ndarray) -> np.ndarray:
        """Stored rows of a map in one array, ascending, from their chunks and no others."""
        layout = self._layouts[number]
        array, chunk_grids = layout.arrays[name], layout.attributes.chunk_grids
        shard, first = divmod(int(self._index[number].starts[place]), layout.shard_rows)
        chunks, part = np.unique(rows // array.chunk_rows, return_inverse=True)
        try:
            tail = self._tail(number, name, shard)
            chunks += first // chunk_grids
            stored = self._fetch(number, array.file(shard), tail.places[chunks].tolist())
            checks = None if tail.checks is None else tail.checks[chunks].tolist()
            decoded = array.decode(stored, checks)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in OF_THE_FILE:
                raise StoreUnreachable(
                    f"{self._files[number].place}/{array.file(shard)} cannot be read: {error}."
                ) from error
            raise DamagedMap(
                f"The map of {self._index[number].key(place)} in {self._files[number].place} is "
                f"damaged: {array.file(shard)}: {error}. Extract that photo again into a new store."
            ) from error
        wanted = part * array.chunk_rows + rows % array.chunk_rows
        if wanted[-1] - wanted[0] + 1 == len(wanted):  # ascending: nothing is left out
            return decoded[wanted[0] : wanted[-1] + 1]
        return decoded[wanted]

    def _fetch(self, number: int, name: str, places: list[list[int]]) -> list[memoryview]:
        """The bytes of chunks of a shard, in one read where they adjoin."""
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

    def _tail(self, number: int, name: str, shard: int) -> ShardTail:
        """What the end of a shard's file says of its chunks, if it is the file that belongs here.

        Raises:
            OSError: the file is not there, or cannot be read.
            ValueError: it is another file, or damaged.
        """
        layout = self._layouts[number]
        array = layout.arrays[name]
        file = array.file(shard)
        tail = self._tails.get((number, file))
        if tail is None:
            size, named = None, b""
            if layout.attributes.is_bound:
                size, named = self._binding(number, shard).arrays[name]
            stored = self._files[number].tail(
                file, tail_bytes(layout.shard_chunks, size is not None), size
            )
            if size is not None and digest(stored) != named:
                raise ValueError(f"it is not the file that {shard_file('index', shard)} names")
            tail = ShardTail.from_bytes(stored, layout.shard_chunks, array.chunk_bytes, size)
            if len(self._tails) >= TAILS_KEPT:
                self._tails.clear()
            self._tails[number, file] = tail
        return tail

    def _binding(self, number: int, shard: int) -> ShardBinding:
        return ShardBinding.unpack(self._index[number].binding(shard), self._layouts[number].arrays)

    def _read_facts(self, number: int, shard: int, count: int) -> list[dict[str, Any]]:
        """The facts of a shard's maps.

        Raises:
            StoreError: their file is damaged.
        """
        name = shard_file("facts", shard)
        full = f"{self._files[number].place}/{name}"
        try:
            content = self._files[number].read(name)
        except OSError as error:
            raise StoreError(f"{full} is damaged: {error}.") from error
        is_bound = self._about[number].is_bound
        if is_bound and digest(content) != self._binding(number, shard).facts:
            raise StoreError(
                f"{full} is damaged: it is not the file that {shard_file('index', shard)} names."
            )
        facts = checked_json(full, content)
        if (
            not isinstance(facts, list)
            or len(facts) != count
            or not all(isinstance(one, dict) for one in facts)
        ):
            raise StoreError(f"{full} is damaged: it does not have an object for each map.")
        return facts
