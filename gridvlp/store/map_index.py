"""Which maps a store has and where they lie, as columns, and whether all of it can be true."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gridvlp.store.arrays import MOST_ROWS, StoreLayout
from gridvlp.store.layout import DIGEST_BYTES, canonical_key

MAPS_AT_ONCE = 1 << 16  # that are checked


@dataclass(frozen=True)
class MapIndex:
    """The maps of a store as columns, in the order of their rows."""

    shards: np.ndarray  # uint64, numbers of the shards that count, ascending
    bindings: np.ndarray  # uint8 (shards, binding_bytes), ShardBinding of each
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

    def places_in(self, shard: int, shard_rows: int) -> slice:
        """The maps of a shard."""
        bounds = np.array([shard * shard_rows, (shard + 1) * shard_rows], dtype=np.uint64)
        return slice(*np.searchsorted(self.starts, bounds).tolist())

    def binding(self, shard: int) -> bytes:
        """What names a shard's files; empty in format 4."""
        return self.bindings[int(np.searchsorted(self.shards, np.uint64(shard)))].tobytes()


@dataclass(frozen=True)
class ShardBinding:
    """What a shard's index says of the files that belong to it."""

    facts: bytes  # digest of the file of facts
    arrays: dict[str, tuple[int, bytes]]  # of each array's file the bytes, and its tail's digest

    def pack(self) -> bytes:
        """Its bytes, the arrays in the order of the store's."""
        return self.facts + b"".join(
            struct.pack(f"<Q{DIGEST_BYTES}s", *found) for found in self.arrays.values()
        )

    @classmethod
    def unpack(cls, packed: bytes, names: Iterable[str]) -> ShardBinding:
        """From the bytes of ``pack`` and the names of the store's arrays."""
        files = struct.iter_unpack(f"<Q{DIGEST_BYTES}s", packed[DIGEST_BYTES:])
        return cls(packed[:DIGEST_BYTES], dict(zip(names, files, strict=True)))


def binding_bytes(layout: StoreLayout) -> int:
    """Bytes of a ShardBinding; none in format 4."""
    return (DIGEST_BYTES + (8 + DIGEST_BYTES) * len(layout.arrays)) * layout.attributes.is_bound


def key_hash(canonical: str) -> np.uint64:
    """The first 8 bytes of the canonical key's SHA-256, little-endian."""
    return np.uint64(int.from_bytes(_hash_bytes(canonical), "little"))


def index_columns(
    bindings: Mapping[int, bytes], keys: list[str], starts: Any, heights: Any, widths: Any
) -> MapIndex:
    """An index from columns, and the bindings of its shards by their numbers."""
    encoded = [key.encode("utf-8", "surrogatepass") for key in keys]
    hashes = np.frombuffer(b"".join(_hash_bytes(canonical_key(key)) for key in keys), dtype="<u8")
    order = np.argsort(hashes, kind="stable")
    packed = np.frombuffer(b"".join(bindings.values()), dtype="u1")
    return MapIndex(
        shards=np.array(list(bindings), dtype="<u8"),
        bindings=packed.reshape(len(bindings), len(packed) // max(len(bindings), 1)),
        starts=np.array(starts, dtype="<u8"),
        heights=np.array(heights, dtype="<u4"),
        widths=np.array(widths, dtype="<u4"),
        key_ends=np.cumsum([len(key) for key in encoded], dtype="<u8"),
        key_bytes=np.frombuffer(b"".join(encoded), dtype="u1"),
        hashes=hashes[order],
        places=order.astype("<u4"),
    )


def joined(first: MapIndex, second: MapIndex) -> MapIndex:
    """The maps of two indexes of different shards."""
    order = np.argsort(np.concatenate([first.starts, second.starts]), kind="stable")
    return _permuted(first, second, order, np.union1d(first.shards, second.shards))


def selected(index: MapIndex, only: np.ndarray, shard_rows: int) -> MapIndex:
    """The maps of some of an index's shards."""
    if np.array_equal(index.shards, only):
        return index
    kept = np.flatnonzero(np.isin(index.starts // np.uint64(shard_rows), only))
    return _permuted(index, index_columns({}, [], [], [], []), kept, np.asarray(only))


class IndexFault(ValueError):
    """An index says what cannot be true."""

    def __init__(self, text: str, place: int | None = None) -> None:
        super().__init__(text)
        self.place = place  # of the map


def check_index(index: MapIndex, layout: StoreLayout) -> None:
    """See that every map lies where a map of the store can lie, and no two in one place.

    Raises:
        IndexFault: one does not.
    """
    _check_columns(index)
    if len(index.shards) and int(index.shards[-1]) >= MOST_ROWS // layout.shard_rows:
        raise IndexFault("a shard has too high a number")
    for first in range(0, len(index), MAPS_AT_ONCE):
        # with the last map of the block before
        _check_places(index, slice(max(first - 1, 0), first + MAPS_AT_ONCE), layout)


def _check_places(index: MapIndex, part: slice, layout: StoreLayout) -> None:
    about, shard_rows = layout.attributes, np.uint64(layout.shard_rows)
    starts, heights = index.starts[part], index.heights[part]
    numbers = starts // shard_rows
    counts = heights * index.widths[part].astype(np.uint64)

    def refuse(is_wrong: np.ndarray, what: str) -> None:
        if is_wrong.any():
            # a comparison of neighbours is of the second one
            place = part.start + int(is_wrong.argmax()) + len(starts) - len(is_wrong)
            raise IndexFault(f"the map of {index.key(place)} {what}", place)

    is_other = np.diff(numbers, prepend=~numbers[:1]) != 0  # than the shard before
    is_other[is_other] = ~np.isin(numbers[is_other], index.shards)
    refuse(is_other, "is in a shard that the index does not list")
    refuse(counts == 0, "has no grids")
    refuse(counts > about.max_grids, f"has more than {about.max_grids} grids")
    if about.kind == "regions":
        refuse(heights != 1, "is not one row of regions")
    refuse(starts % np.uint64(about.chunk_grids) != 0, "does not begin at a chunk's first row")
    refuse(starts - numbers * shard_rows + counts > shard_rows, "crosses its shard's end")
    refuse(starts[1:] < starts[:-1] + counts[:-1], "begins before the one before it ends")


def _check_columns(index: MapIndex) -> None:
    """The columns among themselves: keys, hashes and shards."""
    count = len(index.starts)
    if {len(c) for c in (index.heights, index.widths, index.key_ends, index.hashes)} != {count}:
        raise IndexFault("its columns have different lengths")
    if (index.shards[1:] <= index.shards[:-1]).any():
        raise IndexFault("its shards are not in ascending order")
    ends = index.key_ends
    if (ends[1:] <= ends[:-1]).any() or (count and not ends[0]):
        raise IndexFault("a key is empty")
    if (int(ends[-1]) if count else 0) != len(index.key_bytes):
        raise IndexFault("its keys have another length than it says")
    if (index.hashes[1:] < index.hashes[:-1]).any():
        raise IndexFault("the hashes of its keys are not in ascending order")
    seen = np.zeros(count, dtype=bool)
    if len(index.places) != count or (index.places >= count).any():
        raise IndexFault("a hash belongs to no map")
    seen[index.places] = True
    if not seen.all():
        raise IndexFault("a map has no hash")
    _check_keys(index)


def _check_keys(index: MapIndex) -> None:
    """Every key is UTF-8 by itself."""
    if not len(index) or index.key_bytes.max() < 0x80:
        return
    begins = np.concatenate([[0], index.key_ends[:-1].astype(np.int64)])
    within_a_sign = (index.key_bytes[begins] & 0xC0) == 0x80
    try:
        if within_a_sign.any():
            raise UnicodeError
        for first in range(0, len(index), MAPS_AT_ONCE):
            last = min(first + MAPS_AT_ONCE, len(index)) - 1
            _text(index.key_bytes[begins[first] : int(index.key_ends[last])].tobytes())
    except UnicodeError as error:
        raise IndexFault("a key is not UTF-8") from error


def _permuted(first: MapIndex, second: MapIndex, order: np.ndarray, shards: np.ndarray) -> MapIndex:
    """Some maps of two indexes, in some order, and their shards."""

    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(first, name), getattr(second, name)])

    key_bytes = both("key_bytes")
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
    bindings = [index.bindings for index in (first, second) if len(index.shards)]
    all_shards = both("shards")
    rows = np.argsort(all_shards, kind="stable")
    rows = rows[np.isin(all_shards[rows], shards)]
    return MapIndex(
        shards=shards.astype("<u8"),
        bindings=np.concatenate(bindings)[rows] if bindings else first.bindings,
        starts=both("starts")[order],
        heights=both("heights")[order],
        widths=both("widths")[order],
        key_ends=new_ends.astype("<u8"),
        key_bytes=key_bytes[letters],
        hashes=hashes[places],
        places=places.astype("<u4"),
    )


def _hash_bytes(canonical: str) -> bytes:
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()[:8]


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")
