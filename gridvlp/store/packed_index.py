"""The index of all shards in one file, which is mapped into memory and searched as it lies."""

from __future__ import annotations

from pathlib import Path

import google_crc32c
import numpy as np

from gridvlp.atomic import whole_file
from gridvlp.store.arrays import StoreLayout
from gridvlp.store.files import LocalFiles, RemoteFiles
from gridvlp.store.map_index import MapIndex, binding_bytes, check_index

PACKED = "index.bin"
MAGIC, OLD_MAGIC = b"gvlpidx2", b"gvlpidx1"  # the old one in format 4
COLUMNS = {
    "hashes": "<u8",
    "starts": "<u8",
    "key_ends": "<u8",
    "shards": "<u8",
    "bindings": "u1",
    "places": "<u4",
    "heights": "<u4",
    "widths": "<u4",
    "key_bytes": "u1",
}


def read_packed(files: LocalFiles | RemoteFiles, layout: StoreLayout) -> MapIndex:
    """The columns of a store's packed index.

    Raises:
        OSError, StoreUnreachable: it is not there, or cannot be read.
        ValueError: it is damaged, or of another store, or says what cannot be.
    """
    content = files.checked(PACKED)
    head = _head(layout)
    if bytes(content[: len(head)]) != head:
        is_old = bytes(content[:8]) in (MAGIC, OLD_MAGIC)
        raise ValueError("it is of another store" if is_old else "it is of another kind")
    offset = len(head) + 24
    if len(content) < offset:
        raise ValueError("it is cut short")
    maps, shards, letters = np.frombuffer(content, "<u8", count=3, offset=len(head)).tolist()
    width = binding_bytes(layout)
    lengths = {"shards": shards, "bindings": shards * width, "key_bytes": letters}
    counts = {name: lengths.get(name, maps) for name in COLUMNS}
    sizes = [counts[name] * np.dtype(kind).itemsize for name, kind in COLUMNS.items()]
    if offset + sum(sizes) != len(content):
        raise ValueError("its columns have other lengths than it says")
    columns = {}
    for (name, kind), size in zip(COLUMNS.items(), sizes, strict=True):
        columns[name] = np.frombuffer(content[offset : offset + size], kind)
        offset += size
    columns["bindings"] = columns["bindings"].reshape(shards, width)
    index = MapIndex(**columns)
    check_index(index, layout)
    return index


def write_packed(folder: Path, index: MapIndex, layout: StoreLayout) -> None:
    """Write a store's packed index, whole or not at all.

    Several writers may do so at a time: whichever file stays, the shards that it lacks are read
    from their own.

    Raises:
        OSError: it cannot be written.
    """
    counts = np.array([len(index), len(index.shards), len(index.key_bytes)], dtype="<u8")
    parts = [_head(layout), counts.tobytes()]
    parts += [getattr(index, name).astype(kind).tobytes() for name, kind in COLUMNS.items()]
    content = b"".join(parts)
    with whole_file(folder / PACKED) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.write(google_crc32c.value(content).to_bytes(4, "little"))


def _head(layout: StoreLayout) -> bytes:
    if not layout.attributes.is_bound:
        return OLD_MAGIC
    return MAGIC + bytes.fromhex(layout.attributes.digest)
