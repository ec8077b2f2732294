"""Writes a store shard by shard, each whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from gridvlp.store.layout import (
    CHUNK_GRIDS,
    DTYPES,
    FORMAT_VERSION,
    ORDER_SEED,
    SHARD_BYTES,
    SHARD_CHUNKS,
    DuplicateKey,
    StoreError,
    canonical_key,
    grid_order,
    index_files,
    numbered,
    read_attributes,
    read_index,
    rows_taken,
    write_checked,
)

ZSTD_LEVEL = 1


class StoreWriter:
    """Adds maps to a store; made by ``create`` or ``open``, used in a ``with`` block.

    Maps wait in memory until a shard is full (about 64 MiB) or the block ends; a shard appears
    whole. After a kill, ``open`` goes on behind the last whole shard.
    """

    def __init__(self, path: Path, lock: Any) -> None:
        self.path, self._lock = path, lock
        about = read_attributes(path)
        self.channels: int = about["channels"]
        self.max_grids: int = about["max_grids"]
        self.encoder: dict[str, Any] = about["encoder"]
        grids: Any = zarr.open_group(path, mode="r+", zarr_format=3)["grids"]
        self._grids = grids
        self._dtype = np.dtype(self._grids.dtype)
        self._shard_rows: int = self._grids.shards[0]
        self._maps: list[np.ndarray] = []
        self._columns: dict[str, list[Any]] = {n: [] for n in ("key", "start", "height", "width")}
        self._facts: list[dict[str, Any]] = []
        self._used = 0
        self._shard = len(index_files(path))
        self._known = {canonical_key(key) for key in read_index(path).keys}

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        channels: int = 2048,
        max_grids: int = 608,
        dtype: str = "float16",
        encoder: dict[str, Any] | None = None,
    ) -> StoreWriter:
        """Begin a store.

        Args:
            path: a folder that does not exist yet.
            channels: C of every map.
            max_grids: the most grids H x W that a map may have (608 under 600/1000, stride 32).
            dtype: float16 or float32.
            encoder: what made the maps, JSON values; "name" and "weights_sha256" identify it.

        Raises:
            StoreError: the path exists, or an argument is out of range.
        """
        path = Path(path)
        if path.exists():
            raise StoreError(f"{path} exists already: open it to add to it, or name another.")
        if channels <= 0 or max_grids <= 0:
            raise StoreError("A store needs channels and max_grids above 0.")
        if dtype not in DTYPES:
            raise StoreError(f"A store holds {' or '.join(DTYPES)}, not {dtype}.")
        row_bytes = channels * np.dtype(dtype).itemsize
        shard_rows = min(SHARD_BYTES // row_bytes, SHARD_CHUNKS * CHUNK_GRIDS)
        shard_rows = rows_taken(max(shard_rows, max_grids))
        begun = path.with_name(f".{path.name}.{os.getpid()}.new")
        shutil.rmtree(begun, ignore_errors=True)
        group = zarr.open_group(begun, mode="w", zarr_format=3)
        group.attrs["gridvlp"] = {
            "format_version": FORMAT_VERSION,
            "channels": channels,
            "max_grids": max_grids,
            "chunk_grids": CHUNK_GRIDS,
            "order_seed": ORDER_SEED,
            "encoder": encoder or {},
        }
        group.create_array(
            "grids",
            shape=(0, channels),
            shards=(shard_rows, channels),
            chunks=(CHUNK_GRIDS, channels),
            dtype=dtype,
            fill_value=float("nan"),  # no map has a NaN: what is missing cannot pass for zeros
            # zstd's own checksum: not all readers check crc32c where they read part of a shard
            compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=True),
        )
        (begun / "index").mkdir()
        (begun / "facts").mkdir()
        os.rename(begun, path)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> StoreWriter:
        """Go on with a store.

        Raises:
            StoreError: there is none, it is of another version, or another process writes to it.
        """
        path = Path(path)
        read_attributes(path)  # before the lock file would be made in a folder that is no store
        lock = (path / ".writer.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise StoreError(
                f"{path} is being written by another process ({lock.read().strip()}): wait for it, "
                "or stop it."
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        return cls(path, lock)

    def __contains__(self, key: str) -> bool:
        return canonical_key(key) in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, key: str, grid_map: np.ndarray, **facts: Any) -> None:
        """Add one map.

        Args:
            key: the photo file's stem.
            grid_map: (C, H, W), floating point.
            facts: JSON values to keep with it (source, original_size, ...).

        Raises:
            DuplicateKey: the store has a map of that photo.
            StoreError: wrong shape, not a finite number, facts that are no JSON, or the disk is
                full.
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
        if height * width > self.max_grids:
            raise StoreError(
                f"The map of {key} has {height * width} grids; the store takes {self.max_grids}."
            )
        stored_GC = grid_map.reshape(self.channels, -1).T[grid_order(height * width)]
        with np.errstate(over="ignore"):
            stored_GC = np.ascontiguousarray(stored_GC, dtype=self._dtype)
        if not np.isfinite(stored_GC).all():
            raise StoreError(f"The map of {key} has values that are no finite {self._dtype}.")
        try:
            json.dumps(facts, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(f"The facts of {key} are no JSON values: {error}.") from error
        if self._used + rows_taken(height * width) > self._shard_rows:
            self.flush()
        start = self._shard * self._shard_rows + self._used
        for name, value in zip(self._columns, (key, start, height, width), strict=True):
            self._columns[name].append(value)
        self._facts.append(facts)
        self._maps.append(stored_GC)
        self._known.add(canonical_key(key))
        self._used += rows_taken(height * width)

    def flush(self) -> None:
        """Write what waits as one shard, which then is closed.

        Raises:
            StoreError: the shard cannot be written; the store stays as it was.
        """
        if not self._maps:
            return
        rows = np.zeros((self._shard_rows, self.channels), dtype=self._dtype)
        first = self._shard * self._shard_rows
        for start, stored_GC in zip(self._columns["start"], self._maps, strict=True):
            rows[start - first :][: len(stored_GC)] = stored_GC
        try:
            # What a kill left without an index is no part of the store; Zarr would read it first.
            (self.path / "grids" / "c" / str(self._shard) / "0").unlink(missing_ok=True)
            self._grids.resize((first + self._shard_rows, self.channels))
            self._grids[first : first + self._shard_rows] = rows
            with (self.path / "grids" / "c" / str(self._shard) / "0").open("rb") as shard:
                os.fsync(shard.fileno())  # before the index that makes it count
            write_checked(numbered(self.path / "facts", self._shard), self._facts)
            write_checked(numbered(self.path / "index", self._shard), self._columns)
        except (OSError, RuntimeError) as error:  # the codecs raise RuntimeError on a full disk
            raise StoreError(
                f"{self.path} cannot be written ({error}); it holds "
                f"{len(self._known) - len(self._maps)} whole maps and can be gone on with."
            ) from error
        for column in self._columns.values():
            column.clear()
        self._maps, self._facts, self._used = [], [], 0
        self._shard += 1

    def close(self) -> None:
        """Let others write; what was not flushed is dropped."""
        with contextlib.suppress(OSError):
            self._lock.close()

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
