"""Which maps a store has and where they lie, without a Python object for each.

A shard counts from the moment that index/NNNNNN.jsonl names its maps. Because a large store has
tens of thousands of these files, a writer packs them, when it ends, into index.bin, which
is mapped and searched by the keys' hashes. The packed file is only a shorter way to the same
columns: shards that it lacks are read from their own files, and without it all are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from gridvlp.store.files import LocalFiles, RemoteFiles
from gridvlp.store.layout import (
    StoreError,
    StoreUnreachable,
    canonical_key,
    checked_json,
    sync_folder,
)

PACKED = "index.bin"
MAGIC = b"gvlpidx1"
_SHARD_FILE = re.compile(r"\d{6,}\.jsonl")


@dataclass(frozen=True)
class MapIndex:
    """The maps of a store as columns, in the order of their rows."""

    shards: np.ndarray  # uint64, numbers of the shards that count, ascending
    starts: np.ndarray  # uint64, first row of each map
    heights: np.ndarray  # uint32
    widths: np.ndarray  # uint32
    key_ends: np.ndarray  # uint64, where each key ends in key_bytes
    key_bytes: np.ndarray  # uint8, the keys in UTF-8 one behind the other
    hashes: np.ndarray  # uint64, key_hash of the canonical keys, ascending
    places: np.ndarray  # uint32, the map of each hash

    def __len__(self) -> int:
        return len(self.starts)

    def key(self, place: int) -> str:
        """The key of a map."""
        first = int(self.key_ends[place - 1]) if place else 0
        return _text(self.key_bytes[first : int(self.key_ends[place])].tobytes())

    def maps(self, block: int = 4096) -> Iterator[tuple[str, int, int]]:
        """(key, height, width) of each map, in order."""
        for first in range(0, len(self), block):
            part = slice(first, first + block)
            begin = int(self.key_ends[first - 1]) if first else 0
            ends = (self.key_ends[part] - np.uint64(begin)).tolist()
            keys = self.key_bytes[begin : begin + ends[-1]].tobytes()
            sizes = zip(self.heights[part].tolist(), self.widths[part].tolist(), strict=True)
            for start, end, size in zip([0, *ends[:-1]], ends, sizes, strict=True):
                yield _text(keys[start:end]), *size

    def find(self, canonical: str, hash: np.uint64) -> int | None:
        """The place of the (first) map of a canonical key with that hash."""
        at = int(np.searchsorted(self.hashes, hash))
        while at < len(self.hashes) and self.hashes[at] == hash:
            place = int(self.places[at])
            if canonical_key(self.key(place)) == canonical:
                return place
            at += 1
        return None


COLUMNS = {
    "hashes": "<u8",
    "starts": "<u8",
    "key_ends": "<u8",
    "shards": "<u8",
    "places": "<u4",
    "heights": "<u4",
    "widths": "<u4",
    "key_bytes": "u1",
}


def key_hash(canonical: str) -> np.uint64:
    """The first 8 bytes of the canonical key's SHA-256, little-endian."""
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))


def read_index(
    files: LocalFiles | RemoteFiles, rows: int, shard_rows: int, only: np.ndarray | None = None
) -> MapIndex:
    """The index of a store: of the shards that count, or of some of them.

    Args:
        files: the store's.
        rows: of its arrays; more than this no shard has.
        shard_rows: rows of a shard.
        only: leave out all shards but these.

    Raises:
        StoreError: an index file is damaged.
    """
    packed = _read_packed(files)  # before the names: a writer may add to both
    try:
        listed = files.names("index")
    except OSError as error:
        raise StoreError(f"{files.place} lacks its index: {error}. Extract again.") from error
    if listed is not None:
        numbers = [int(name[:-6]) for name in listed if _SHARD_FILE.fullmatch(name)]
    else:
        numbers = list(range(rows // shard_rows))
    if packed is not None and listed is not None and not np.isin(packed.shards, numbers).all():
        packed = None  # the files of shards decide which of them count
    have = set() if packed is None else set(packed.shards.tolist())
    missing = sorted(set(numbers) - have)
    if only is not None:
        missing = sorted(set(missing) & set(only.tolist()))
    index = _merged(packed, _read_shards(files, missing))
    return index if only is None else _selected(index, only, shard_rows)


def shard_file(folder: str, shard: int) -> str:
    """The file of a shard in index/ or facts/."""
    return f"{folder}/{shard:06}.jsonl"


def index_columns(
    shards: list[int], keys: list[str], starts: Any, heights: Any, widths: Any
) -> MapIndex:
    """An index from columns."""
    encoded = [key.encode("utf-8", "surrogatepass") for key in keys]
    hashes = np.array([key_hash(canonical_key(key)) for key in keys], dtype="<u8")
    order = np.argsort(hashes, kind="stable")
    return MapIndex(
        shards=np.array(shards, dtype="<u8"),
        starts=np.array(starts, dtype="<u8"),
        heights=np.array(heights, dtype="<u4"),
        widths=np.array(widths, dtype="<u4"),
        key_ends=np.cumsum([len(key) for key in encoded], dtype="<u8"),
        key_bytes=np.frombuffer(b"".join(encoded), dtype="u1"),
        hashes=hashes[order],
        places=order.astype("<u4"),
    )


def damaged_files(files: LocalFiles | RemoteFiles, shards: np.ndarray) -> dict[str, str]:
    """What is wrong with index files, by their names; they may be damaged while the store reads.

    Args:
        files: the store's.
        shards: numbers of those that count.
    """
    damaged: dict[str, str] = {}
    for name in [PACKED, *(shard_file("index", number) for number in shards.tolist())]:
        full = f"{files.place}/{name}"
        try:
            if name == PACKED:
                files.checked(name)
            else:
                checked_json(full, files.read(name))
        except FileNotFoundError:
            if name != PACKED:
                damaged[full] = f"{full} is not there."
        except (OSError, ValueError) as error:
            damaged[full] = f"{full} is damaged: {error}."
        except StoreUnreachable:
            raise
        except StoreError as error:
            damaged[full] = str(error)
    return damaged


def drop_stale_packed(folder: Path) -> None:
    """Delete a packed index of shards that no longer count, before their numbers are used again."""
    packed = _read_packed(LocalFiles(folder))
    if packed is not None:
        names = [folder / shard_file("index", number) for number in packed.shards.tolist()]
        if not all(name.exists() for name in names):
            (folder / PACKED).unlink(missing_ok=True)


def pack_index(folder: Path, shard_rows: int) -> None:
    """Write a store's packed index, whole or not at all, if shards have come since the last one.

    Raises:
        OSError: it cannot be written.
        StoreError: an index file is damaged.
    """
    files = LocalFiles(folder)
    index, packed = read_index(files, 0, shard_rows), _read_packed(files)
    if packed is not None and np.array_equal(packed.shards, index.shards):
        return
    counts = np.array([len(index), len(index.shards), len(index.key_bytes)], dtype="<u8")
    parts = [MAGIC, counts.tobytes()]
    parts += [getattr(index, name).astype(kind).tobytes() for name, kind in COLUMNS.items()]
    content = b"".join(parts)
    # Another writer may pack at the same time: whichever file stays, the shards that it lacks are
    # read from their own.
    temporary = folder / f".index.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(content + google_crc32c.value(content).to_bytes(4, "little"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / PACKED)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(folder)


def _read_packed(files: LocalFiles | RemoteFiles) -> MapIndex | None:
    try:
        content = files.checked(PACKED)
        if bytes(content[:8]) != MAGIC:
            raise ValueError("it is of another kind")
        maps, shards, letters = np.frombuffer(content, "<u8", count=3, offset=8).tolist()
        lengths = {"shards": shards, "key_bytes": letters}
        offset, columns = 32, {}
        for name, kind in COLUMNS.items():
            count = lengths.get(name, maps)
            columns[name] = np.frombuffer(content, kind, count=count, offset=offset)
            offset += columns[name].nbytes
        return MapIndex(**columns)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{files.place}/{PACKED} is damaged ({error}); each shard's own index is read in its "
            "place, which takes longer. The next writer makes it again.",
            stacklevel=4,
        )
        return None


def _read_shards(files: LocalFiles | RemoteFiles, numbers: list[int]) -> MapIndex:
    names = [shard_file("index", number) for number in numbers]
    found: list[bytes | None]
    if isinstance(files, RemoteFiles):
        found = files.read_some(names)
    else:
        try:
            found = [files.read(name) for name in names]
        except OSError as error:
            raise StoreError(f"{files.place} is damaged: {error}. Extract again.") from error
    shards: list[int] = []
    columns: dict[str, list[Any]] = {name: [] for name in ("key", "start", "height", "width")}
    for number, name, content in zip(numbers, names, found, strict=True):
        if content is None:
            continue
        maps = checked_json(f"{files.place}/{name}", content)
        try:
            for column, values in columns.items():
                values += maps[column]
        except (TypeError, KeyError) as error:
            raise StoreError(f"{files.place}/{name} is damaged: {error}. Extract again.") from error
        shards.append(number)
    return index_columns(
        shards, columns["key"], columns["start"], columns["height"], columns["width"]
    )


def _merged(packed: MapIndex | None, rest: MapIndex) -> MapIndex:
    if packed is None or not len(rest.shards):
        return rest if packed is None else packed
    return _permuted(
        packed,
        rest,
        np.argsort(np.concatenate([packed.starts, rest.starts]), kind="stable"),
        np.union1d(packed.shards, rest.shards),
    )


def _selected(index: MapIndex, only: np.ndarray, shard_rows: int) -> MapIndex:
    if np.array_equal(index.shards, only):
        return index
    kept = np.flatnonzero(np.isin(index.starts // np.uint64(shard_rows), only))
    return _permuted(index, index_columns([], [], [], [], []), kept, np.asarray(only))


def _permuted(first: MapIndex, second: MapIndex, order: np.ndarray, shards: np.ndarray) -> MapIndex:
    """Some maps of two indexes, in some order."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(first, name), getattr(second, name)])

    key_bytes = joined("key_bytes")
    ends = np.concatenate(
        [first.key_ends, second.key_ends + np.uint64(len(first.key_bytes))]
    ).astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    begins = (ends - lengths)[order]
    new_ends = np.cumsum(lengths[order])
    letters = np.arange(new_ends[-1] if len(order) else 0)
    letters += np.repeat(begins - (new_ends - lengths[order]), lengths[order])
    by_place = np.empty(len(ends), dtype="<u8")
    by_place[first.places] = first.hashes
    by_place[second.places.astype(np.int64) + len(first)] = second.hashes
    hashes = by_place[order]
    places = np.argsort(hashes, kind="stable")
    return MapIndex(
        shards=shards.astype("<u8"),
        starts=joined("starts")[order],
        heights=joined("heights")[order],
        widths=joined("widths")[order],
        key_ends=new_ends.astype("<u8"),
        key_bytes=key_bytes[letters],
        hashes=hashes[places],
        places=places.astype("<u4"),
    )


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")
