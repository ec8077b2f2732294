"""Begins a store: its folders and metadata, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from gridvlp.atomic import sync_folder, sync_tree
from gridvlp.store.arrays import Array, store_arrays
from gridvlp.store.attributes import StoreAttributes, checked_encoder
from gridvlp.store.errors import StoreError
from gridvlp.store.layout import (
    CHUNK_GRIDS,
    FORMAT_VERSION,
    ORDER_SEED,
    SHARD_BYTES,
    SHARD_CHUNKS,
    rows_taken,
    sealed,
)
from gridvlp.store.numbers import KEPT_AS

DIMENSIONS = {  # xarray opens no array without
    "grids": ("row", "channel"),
    "scales": ("chunk", "bound", "channel"),
    "boxes": ("row", "corner"),
    "classes": ("row",),
    "scores": ("row",),
}


class StoreExists(StoreError):
    """Where a store is to begin, something is already."""


def begin_store(
    path: Path, channels: int, max_grids: int, dtype: str, encoder: dict[str, Any], kind: str
) -> None:
    """Make an empty store; arguments as for ``StoreWriter.create``.

    Raises:
        StoreExists: something is at the path.
        StoreError: an argument is out of range, or the store cannot be made.
    """
    try:
        about = StoreAttributes.from_json(
            {
                "format_version": FORMAT_VERSION,
                "kind": kind,
                "dtype": dtype,
                "channels": channels,
                "max_grids": max_grids,
                "chunk_grids": CHUNK_GRIDS,
                "order_seed": ORDER_SEED,
                "encoder": checked_encoder(encoder),
            }
        )
    except ValueError as error:
        raise StoreError(f"{path} cannot be made: {error}.") from error
    if path.exists():
        raise StoreExists(f"{path} exists already: open it to add to it, or name another.")
    begun = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.new")
    shutil.rmtree(begun, ignore_errors=True)
    _make(begun, about)
    try:
        os.rename(begun, path)
    except OSError as error:
        shutil.rmtree(begun)
        if path.exists():  # another process was faster
            raise StoreExists(f"{path} exists already: open it to add to it.") from error
        raise StoreError(f"{path} cannot be made: {error.strerror}.") from error
    sync_folder(path.parent)


def _make(folder: Path, about: StoreAttributes) -> None:
    row_bytes = about.channels * np.dtype(KEPT_AS[about.dtype]).itemsize
    most = min(SHARD_BYTES // row_bytes, SHARD_CHUNKS * CHUNK_GRIDS)
    rows = rows_taken(max(most, about.max_grids), CHUNK_GRIDS)
    group: Any = zarr.open_group(folder, mode="w", zarr_format=3)
    group.attrs["gridvlp"] = about.stored
    for array in store_arrays(about).values():
        _make_array(group, array, rows // CHUNK_GRIDS)
    (folder / "index").mkdir()
    (folder / "facts").mkdir()
    for file in (folder / "zarr.json", *folder.glob("*/zarr.json")):
        file.write_bytes(sealed(json.loads(file.read_bytes())))
    sync_tree(folder)


def _make_array(group: Any, array: Array, chunks: int) -> None:
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
