"""Writes a store shard by shard, each whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from gridvlp.interrupt import interrupts_held
from gridvlp.store.files import LocalFiles, local_folder
from gridvlp.store.index import drop_stale_packed, pack_index, read_index
from gridvlp.store.layout import (
    CHUNK_GRIDS,
    FORMAT_VERSION,
    KINDS,
    ORDER_SEED,
    SHARD_BYTES,
    SHARD_CHUNKS,
    DuplicateKey,
    StoreError,
    canonical_key,
    grid_order,
    index_files,
    make_folders,
    numbered,
    read_attributes,
    rows_taken,
    sealed,
    sync_folder,
    sync_tree,
    write_checked,
    write_whole,
)
from gridvlp.store.locks import WriterLock, short_lock
from gridvlp.store.numbers import DTYPES, KEPT_AS, keep
from gridvlp.store.regions import region_rows
from gridvlp.store.shards import Array, array_rows, grow, shard_bytes, store_arrays

DIMENSIONS = {  # xarray opens no array without
    "grids": ("row", "channel"),
    "scales": ("chunk", "bound", "channel"),
    "boxes": ("row", "corner"),
    "classes": ("row",),
    "scores": ("row",),
}


class StoreExists(StoreError):
    """Where a store is to begin, something is already."""


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
        about = read_attributes(files)
        self.channels: int = about["channels"]
        self.max_grids: int = about["max_grids"]
        self.kind: str = about["kind"]
        self.dtype: str = about["dtype"]
        self.encoder: dict[str, Any] = about["encoder"]
        self._arrays = store_arrays(about)
        rows, self._shard_rows = array_rows(files)
        self._chunks: dict[str, dict[int, bytes]] = {name: {} for name in self._arrays}
        self._columns: dict[str, list[Any]] = {n: [] for n in ("key", "start", "height", "width")}
        self._facts: list[dict[str, Any]] = []
        self._used = 0
        drop_stale_packed(path)
        self._free = _free_shards(path, *part)
        self._shard = next(self._free)
        index = read_index(files, rows, self._shard_rows)
        self._known = {canonical_key(key) for key, _, _ in index.maps()}

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
    ) -> StoreWriter:
        """Begin a store.

        Args:
            path: a folder that does not exist yet.
            channels: C of every map.
            max_grids: the most grids H x W that a map may have (608 under 600/1000, stride 32), or
                regions of a photo.
            dtype: float16, bfloat16 or float32, to which numbers are rounded; or int8: a byte with
                a scale for each channel of a map.
            encoder: what made the maps, JSON values; "name" and "weights_sha256" identify it.
            kind: "grids", or "regions" for features with boxes.
            part: as for ``open``.
            exist_ok: go on with the store that is there, if it has the same kind, dtype and
                channels; its encoder is for the caller to compare. Of several processes that come
                at once, one begins the store.

        Raises:
            StoreError: the path exists, or holds another store; an argument is out of range;
                another process writes to it (see ``open``).
        """
        path = local_folder(path)
        try:
            _begin(path, channels, max_grids, dtype, encoder or {}, kind)
        except StoreExists:
            if not exist_ok:
                raise
        writer = cls.open(path, part=part)
        for name, asked in (("kind", kind), ("dtype", dtype), ("channels", channels)):
            found = getattr(writer, name)
            if found != asked:
                writer.close()
                raise StoreError(
                    f"{path} was made with {name} {found}, not {asked}: name another store, or go "
                    "on with what it was made with."
                )
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
            StoreError: there is none, it is of another version, or another process writes to it:
                any for a sole writer, the same part, or a part of another n.
        """
        path = local_folder(path)
        number, parts = part or (0, 1)
        if not 0 <= number < parts:
            raise StoreError(f"There is no part {number} of {parts}: give 0 to {parts - 1}.")
        read_attributes(LocalFiles(path))  # before a lock is made in a folder that is no store
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
            StoreError: wrong shape, not a finite number, regions without boxes, facts that are no
                JSON, or the disk is full.
        """
        if not key:
            raise StoreError("A map needs a key that is not empty.")
        if key in self:
            raise DuplicateKey(f"{self.path} has a map of {key} already.")
        if grid_map.ndim != 3 or grid_map.shape[0] != self.channels or 0 in grid_map.shape:
            raise StoreError(
                f"The map of {key} has shape {grid_map.shape}; ({self.channels}, H, W) is needed."
            )
        _, height, width = grid_map.shape
        count = height * width
        if count > self.max_grids:
            raise StoreError(
                f"The map of {key} has {count} grids; the store takes {self.max_grids}."
            )
        rows = self._region_rows(key, grid_map, boxes_N4, classes_N, scores_N)
        try:
            rows |= keep(self.dtype, grid_map.reshape(self.channels, -1).T)
        except ValueError as error:
            raise StoreError(f"The map of {key} has {error}.") from error
        try:
            json.dumps(facts, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(f"The facts of {key} are no JSON values: {error}.") from error
        if self._used + rows_taken(count) > self._shard_rows:
            self.flush()
        order = grid_order(count)
        for name, array in self._arrays.items():
            chunks = array.encode(rows[name] if name == "scales" else rows[name][order])
            self._chunks[name].update(enumerate(chunks, self._used // CHUNK_GRIDS))
        start = self._shard * self._shard_rows + self._used
        for name, value in zip(self._columns, (key, start, height, width), strict=True):
            self._columns[name].append(value)
        self._facts.append(facts)
        self._known.add(canonical_key(key))
        self._used += rows_taken(count)

    def _region_rows(
        self, key: str, grid_map: np.ndarray, boxes: Any, classes: Any, scores: Any
    ) -> dict[str, np.ndarray]:
        if self.kind == "regions":
            if grid_map.shape[1] != 1:
                raise StoreError(
                    f"The regions of {key} have shape {grid_map.shape}; ({self.channels}, 1, N) is "
                    "needed."
                )
            return region_rows(key, grid_map.shape[2], boxes, classes, scores)
        if any(given is not None for given in (boxes, classes, scores)):
            raise StoreError(
                f"{self.path} is a store of grids: boxes, classes and scores go into one that was "
                'created with kind="regions".'
            )
        return {}

    @interrupts_held()
    def flush(self) -> None:
        """Write what waits as one shard, which then is closed.

        Raises:
            StoreError: the shard cannot be written; the store stays as it was.
        """
        if not self._facts:
            return
        count = self._shard_rows // CHUNK_GRIDS
        try:
            with short_lock(self.path):
                grow(self.path, self._arrays.values(), (self._shard + 1) * count)
            for name, array in self._arrays.items():
                file = self.path / array.file(self._shard)
                make_folders(file.parent)
                write_whole(file, shard_bytes(self._chunks[name], count))
            write_checked(numbered(self.path / "facts", self._shard), self._facts)
            write_checked(numbered(self.path / "index", self._shard), self._columns)
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be written ({error}); it holds "
                f"{len(self._known) - len(self._facts)} whole maps and can be gone on with."
            ) from error
        for column in self._columns.values():
            column.clear()
        self._chunks = {name: {} for name in self._arrays}
        self._facts, self._used = [], 0
        self._shard = next(self._free)

    def close(self) -> None:
        """Let others write; what was not flushed is dropped."""
        with contextlib.suppress(OSError, StoreError):  # the shards' own index files are there
            pack_index(self.path, self._shard_rows)
        self._lock.release()

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


def _begin(
    path: Path, channels: int, max_grids: int, dtype: str, encoder: dict[str, Any], kind: str
) -> None:
    """Make an empty store, whole or not at all."""
    if channels <= 0 or max_grids <= 0:
        raise StoreError("A store needs channels and max_grids above 0.")
    if dtype not in DTYPES:
        raise StoreError(f"A store holds {' or '.join(DTYPES)}, not {dtype}.")
    if kind not in KINDS:
        raise StoreError(f"A store holds {' or '.join(KINDS)}, not {kind}.")
    if path.exists():
        raise StoreExists(f"{path} exists already: open it to add to it, or name another.")
    row_bytes = channels * np.dtype(KEPT_AS[dtype]).itemsize
    most = min(SHARD_BYTES // row_bytes, SHARD_CHUNKS * CHUNK_GRIDS)
    rows = rows_taken(max(most, max_grids))
    begun = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.new")
    shutil.rmtree(begun, ignore_errors=True)
    group: Any = zarr.open_group(begun, mode="w", zarr_format=3)
    about: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "dtype": dtype,
        "channels": channels,
        "max_grids": max_grids,
        "chunk_grids": CHUNK_GRIDS,
        "order_seed": ORDER_SEED,
        "encoder": encoder,
    }
    group.attrs["gridvlp"] = about
    for array in store_arrays(about).values():
        _create(group, array, rows // CHUNK_GRIDS)
    (begun / "index").mkdir()
    (begun / "facts").mkdir()
    for file in (begun / "zarr.json", *begun.glob("*/zarr.json")):
        file.write_bytes(sealed(json.loads(file.read_bytes())))
    sync_tree(begun)
    try:
        os.rename(begun, path)
    except OSError as error:
        shutil.rmtree(begun)
        if path.exists():  # another process was faster
            raise StoreExists(f"{path} exists already: open it to add to it.") from error
        raise StoreError(f"{path} cannot be made: {error.strerror}.") from error
    sync_folder(path.parent)


def _create(group: Any, array: Array, chunks: int) -> None:
    group.create_array(
        array.name,
        shape=(0, *array.row_shape),
        shards=(chunks * array.chunk_rows, *array.row_shape),
        chunks=(array.chunk_rows, *array.row_shape),
        dtype=array.dtype,
        dimension_names=DIMENSIONS[array.name],
        fill_value=array.fill,
        # for readers; the bytes are made in gridvlp.store.chunks
        compressors=BloscCodec(
            typesize=array.dtype.itemsize, cname="zstd", clevel=1, shuffle="shuffle", blocksize=0
        ),
    )


def _free_shards(path: Path, part: int, parts: int) -> Iterator[int]:
    """The numbers of a part's shards that are not written yet."""
    written = {int(file.stem) for file in index_files(path)}
    return (number for number in itertools.count(part, parts) if number not in written)
