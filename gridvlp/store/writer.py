"""Writes a store shard by shard, each whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from gridvlp.atomic import make_folders, write_bytes
from gridvlp.run.signals import interrupts_held
from gridvlp.store.arrays import grow, read_layout
from gridvlp.store.creation import StoreExists, begin_store
from gridvlp.store.errors import DuplicateKey, MapError, StoreError
from gridvlp.store.files import LocalFiles, local_folder
from gridvlp.store.index import (
    drop_stale_packed,
    index_entry,
    listed_shards,
    pack_index,
    read_index,
    shard_file,
)
from gridvlp.store.layout import (
    FORMAT_VERSION,
    canonical_key,
    checked_lines,
    digest,
    grid_order,
    rows_taken,
)
from gridvlp.store.locks import WriterLock, claim_shard, free_shard, short_lock
from gridvlp.store.map_index import ShardBinding
from gridvlp.store.numbers import keep
from gridvlp.store.recipe import differences_text, recipe_differences, recipe_of
from gridvlp.store.regions import region_rows
from gridvlp.store.shards import shard_bytes
from gridvlp.store.versions import record_versions


class StoreWriter:
    """Adds maps to a store; made by ``create`` or ``open``, used in a ``with`` block.

    Several processes or machines fill one store at the same time when each opens a part of its own:
    part k of n writes whole shards whose numbers leave the remainder k.

    Maps wait in memory, compressed, until a shard is full (64 MiB of numbers, at most 20,480 grids)
    or the block ends; a shard appears whole. After a kill, ``open`` goes on behind the last whole
    shard.
    """

    def __init__(self, path: Path, lock: WriterLock, part: tuple[int, int]) -> None:
        self.path, self._lock = path, lock
        files = LocalFiles(path)
        self._layout = read_layout(files)
        about = self._layout.attributes
        self.channels = about.channels
        self.max_grids = about.max_grids
        self.kind = about.kind
        self.dtype = about.dtype
        self.encoder = about.encoder
        self.recipe = about.recipe  # what can change a number (gridvlp.store.recipe)
        self._chunks: dict[str, dict[int, bytes]] = {name: {} for name in self._layout.arrays}
        self._columns: dict[str, list[Any]] = {n: [] for n in ("key", "start", "height", "width")}
        self._facts: list[dict[str, Any]] = []
        self._used = 0
        drop_stale_packed(path)
        number, parts = part
        written = set(listed_shards(files, self._layout))
        self._free = (n for n in itertools.count(number, parts) if n not in written)
        self._shard = next(self._free)
        self._known = self._stored_keys()

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        channels: int = 2048,
        max_grids: int = 608,
        dtype: str = "float16",
        encoder: dict[str, Any] | None = None,
        kind: str = "grids",
        part: tuple[int, int] | None = None,
        exist_ok: bool = False,
        versions: Mapping[str, str] | None = None,
    ) -> StoreWriter:
        """Begin a store.

        Args:
            path: a folder that does not exist yet.
            channels: C of every map.
            max_grids: the most grids H x W that a map may have (608 under 600/1000, stride 32), or
                regions of a photo.
            dtype: float16, bfloat16 or float32, to which numbers are rounded; or int8: a byte with
                a scale for each channel of a map.
            encoder: what made the maps, JSON values: all that can change a number. Only stores
                whose encoders are equal are read as one (gridvlp.store.recipe).
            kind: "grids", or "regions" for features with boxes.
            part: as for ``open``.
            exist_ok: go on with the store that is there, if it has the same recipe (kind, dtype,
                channels and, where it is given, encoder) and takes maps of max_grids. Of several
                processes that come at once, one begins the store.
            versions: of the libraries that make the maps, as for ``record_versions``.

        Raises:
            StoreError: the path exists, or holds another store; an argument is out of range;
                another process writes to it (see ``open``).
        """
        path = local_folder(path)
        try:
            begin_store(path, channels, max_grids, dtype, encoder or {}, kind)
        except StoreExists:
            if not exist_ok:
                raise
        writer = cls.open(path, part=part)
        try:
            writer._refuse_other(kind=kind, dtype=dtype, channels=channels)
            now = (
                writer.recipe
                if encoder is None
                else recipe_of({**vars(writer), "encoder": encoder})
            )
            if differences := recipe_differences(writer.recipe, now):
                raise StoreError(
                    f"{path} was made by another recipe ({differences_text(differences)} now): "
                    "name another store, or go on as it was made."
                )
            if writer.max_grids < max_grids:
                raise StoreError(
                    f"{path} was made for maps of at most {writer.max_grids:,} grids, not "
                    f"{max_grids:,}: name another store, or go on with what it was made with."
                )
            if versions is not None:
                writer.record_versions(versions)
        except BaseException:
            writer.close()
            raise
        return writer

    @classmethod
    def open(cls, path: str | Path, *, part: tuple[int, int] | None = None) -> StoreWriter:
        """Go on with a store, alone or as one of several writers.

        Args:
            path: the store.
            part: (k, n): write part k of 0 .. n - 1 while others may write theirs. Each key belongs
                into one part only: a part knows the maps that were there when it was opened, and
                its own.

        Raises:
            StoreError: there is none, it is of an old format, or another process writes to it: any
                for a sole writer, the same part, or a part of another n.
        """
        path = local_folder(path)
        number, parts = part or (0, 1)
        if not 0 <= number < parts:
            raise StoreError(f"There is no part {number} of {parts}: give 0 to {parts - 1}.")
        about = read_layout(LocalFiles(path)).attributes  # before a lock is made in any folder
        if about.format_version != FORMAT_VERSION:
            raise StoreError(
                f"{path} has store format {about.format_version}, which is read and not added to: "
                "extract into a new store."
            )
        lock = WriterLock(path, part)
        try:
            return cls(path, lock, (number, parts))
        except BaseException:
            lock.release()
            raise

    def __contains__(self, key: str) -> bool:
        return canonical_key(key) in self._known

    def __len__(self) -> int:
        return len(self._known)

    @interrupts_held()  # a map that is half added would damage its shard
    def add(
        self,
        key: str,
        grid_map: np.ndarray,
        boxes_N4: np.ndarray | None = None,
        classes_N: np.ndarray | None = None,
        scores_N: np.ndarray | None = None,
        **facts: Any,
    ) -> None:
        """Add one map, or the regions of one photo.

        Args:
            key: the photo file's stem.
            grid_map: (C, H, W), floating point; (C, 1, N) for N regions.
            boxes_N4: of regions: x1, y1, x2, y2 as fractions of the photo's width and height.
            classes_N: of regions: integers of 0 or above, optional.
            scores_N: of regions: finite numbers, optional.
            facts: JSON values to keep with it (source, original_size, ...).

        Raises:
            DuplicateKey: the store has a map of that photo.
            MapError: a wrong shape, not a finite number, regions without boxes, facts that are not
                JSON; the next map can be added.
            StoreError: the store cannot be written.
        """
        if not isinstance(key, str) or not key:
            raise MapError(f"A map's key is a text that is not empty, not {key!r}.")
        if key in self:
            raise DuplicateKey(f"{self.path} has a map of {key} already.")
        if grid_map.ndim != 3 or grid_map.shape[0] != self.channels or 0 in grid_map.shape:
            raise MapError(
                f"The map of {key} has shape {grid_map.shape}; ({self.channels}, H, W) is needed."
            )
        _, height, width = grid_map.shape
        count = height * width
        if count > self.max_grids:
            raise MapError(f"The map of {key} has {count} grids; the store takes {self.max_grids}.")
        rows = self._region_rows(key, grid_map, boxes_N4, classes_N, scores_N)
        try:
            rows |= keep(self.dtype, grid_map.reshape(self.channels, -1).T)
        except ValueError as error:
            raise MapError(f"The map of {key} has {error}.") from error
        try:
            json.dumps(facts, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise MapError(f"The facts of {key} are not JSON values: {error}.") from error
        about = self._layout.attributes
        taken = rows_taken(count, about.chunk_grids)
        if self._used + taken > self._layout.shard_rows:
            self.flush()
        order = grid_order(count, about.order_seed)
        for name, array in self._layout.arrays.items():
            chunks = array.encode(rows[name] if name == "scales" else rows[name][order])
            self._chunks[name].update(enumerate(chunks, self._used // about.chunk_grids))
        for name, value in zip(self._columns, (key, self._used, height, width), strict=True):
            self._columns[name].append(value)
        self._facts.append(facts)
        self._known.add(canonical_key(key))
        self._used += taken

    def _region_rows(
        self, key: str, grid_map: np.ndarray, boxes: Any, classes: Any, scores: Any
    ) -> dict[str, np.ndarray]:
        if self.kind == "regions":
            if grid_map.shape[1] != 1:
                raise MapError(
                    f"The regions of {key} have shape {grid_map.shape}; ({self.channels}, 1, N) is "
                    "needed."
                )
            return region_rows(key, grid_map.shape[2], boxes, classes, scores)
        if any(extra is not None for extra in (boxes, classes, scores)):
            raise MapError(
                f"{self.path} is a store of grids: boxes, classes and scores go into one that was "
                'created with kind="regions".'
            )
        return {}

    def record_versions(self, versions: Mapping[str, str]) -> list[dict[str, str]]:
        """Keep the versions of the libraries that make the maps, by name.

        They are facts of the store's origin; it takes maps of other versions, too.

        Returns:
            What others recorded before and differs.

        Raises:
            StoreError: it cannot be written.
        """
        return record_versions(self.path, versions)

    @interrupts_held()
    def flush(self) -> None:
        """Write what waits as one shard, which then is closed.

        Raises:
            StoreError: the shard cannot be written; the store stays as it was.
        """
        if not self._facts:
            return
        try:
            self._claim()
            try:
                self._publish()
            finally:
                free_shard(self.path, self._shard)
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be written ({error}); it holds "
                f"{len(self._known) - len(self._facts)} whole maps and can be gone on with."
            ) from error
        for column in self._columns.values():
            column.clear()
        self._chunks = {name: {} for name in self._chunks}
        self._facts, self._used = [], 0
        self._shard = next(self._free)

    def _claim(self) -> None:
        """Take a shard's number that no one else writes."""
        if claim_shard(self.path, self._shard):
            return
        warnings.warn(
            f"Shard {self._shard} of {self.path} is another writer's, or was that of one which was "
            "killed elsewhere: the next one is written. Of a photo that two writers add, the lower "
            "shard's map counts.",
            stacklevel=3,
        )
        self._known |= self._stored_keys()
        while not claim_shard(self.path, self._shard):
            self._shard = next(self._free)

    def _publish(self) -> None:
        """Write the shard's files, its index file last."""
        shard, rows = self._shard, self._layout.shard_rows
        with short_lock(self.path):
            grow(self.path, self._layout.arrays.values(), (shard + 1) * self._layout.shard_chunks)
        tails = {}
        for name, array in self._layout.arrays.items():
            file = self.path / array.file(shard)
            make_folders(file.parent)
            content, tail = shard_bytes(self._chunks[name], self._layout.shard_chunks)
            write_bytes(file, content, own=False)
            tails[name] = (len(content), digest(tail))
        facts = checked_lines(self._facts)
        write_bytes(self.path / shard_file("facts", shard), facts, own=False)
        starts = [shard * rows + start for start in self._columns["start"]]
        binding = ShardBinding(digest(facts), tails)
        entry = index_entry({**self._columns, "start": starts}, binding, self._layout)
        write_bytes(self.path / shard_file("index", shard), checked_lines(entry), own=False)

    def close(self) -> None:
        """Let others write; what was not flushed is dropped."""
        with contextlib.suppress(OSError, StoreError):  # the shards' own index files are there
            index = pack_index(self.path)
            if len(index.shards):  # without locks, two writers may have grown the arrays at once
                chunks = (int(index.shards[-1]) + 1) * self._layout.shard_chunks
                with short_lock(self.path):
                    grow(self.path, self._layout.arrays.values(), chunks)
        self._lock.release()

    def _stored_keys(self) -> set[str]:
        index = read_index(LocalFiles(self.path), self._layout)
        return {canonical_key(key) for key, _, _ in index.maps()}

    def _refuse_other(self, **asked: str | int) -> None:
        for name, value in asked.items():
            if getattr(self, name) != value:
                raise StoreError(
                    f"{self.path} was made with {name} {getattr(self, name)}, not {value}: name "
                    "another store, or go on with what it was made with."
                )

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None or issubclass(kind, KeyboardInterrupt):
                self.flush()
        finally:
            self.close()
