"""The bytes of a shard's file: chunks, a checksum of each, then where they lie.

The bytes are those of Zarr's ``sharding_indexed`` codec, whose readers pass over the checksums.
They are made and read here and not through Zarr, whose calls cost a small map more than its bytes
do (docs/history.md), and whose thread pools hang in a forked child.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import google_crc32c
import numpy as np

from gridvlp.store.chunks import CHECK_BYTES, HEADER

EMPTY = 2**64 - 1  # where a shard has no chunk
FURTHEST = 2**62  # of offsets in a file whose size is not known


@dataclass(frozen=True)
class ShardTail:
    """What the end of a shard's file says of its chunks."""

    places: np.ndarray  # uint64 (chunks, 2): offset and bytes
    checks: np.ndarray | None  # bytes (chunks,): of each its checksum; none in format 4

    @classmethod
    def from_bytes(
        cls, stored: bytes, chunks: int, chunk_bytes: int, file_bytes: int | None
    ) -> ShardTail:
        """Read it, and see that no chunk is larger than it can be or lies outside of the file.

        Args:
            stored: the last ``tail_bytes`` of the file.
            chunks: of a shard.
            chunk_bytes: of a chunk's numbers.
            file_bytes: of the shard's file; None in format 4, which has no checksums.

        Raises:
            ValueError: the checksum is another, or a chunk is where none can be.
        """
        table = 0 if file_bytes is None else CHECK_BYTES * chunks
        index = stored[table:]
        if google_crc32c.value(index[:-4]) != int.from_bytes(index[-4:], "little"):
            raise ValueError("the index of its shard has changed")
        places = np.frombuffer(index[:-4], dtype="<u8").reshape(chunks, 2)
        offsets, sizes = places[(places != EMPTY).any(1)].T
        most = HEADER.size + chunk_bytes + chunk_bytes // 128 + 1024  # zstd adds less
        end = FURTHEST if file_bytes is None else file_bytes - len(stored)
        if (
            (sizes <= HEADER.size).any()
            or (sizes > most).any()
            or (offsets > end).any()
            or (offsets + sizes > end).any()
        ):
            raise ValueError("the index of its shard has a chunk that cannot be")
        checks = np.frombuffer(stored[:table], dtype=f"V{CHECK_BYTES}") if table else None
        return cls(places, checks)


def shard_bytes(chunks: Mapping[int, bytes], count: int) -> tuple[bytes, bytes]:
    """A shard file of ``count`` chunks, some of them missing: all of it, and its tail."""
    places = np.full((count, 2), EMPTY, dtype="<u8")
    checks = bytearray(CHECK_BYTES * count)
    offset = 0
    for number, chunk in chunks.items():
        places[number] = offset, len(chunk)
        checks[CHECK_BYTES * number : CHECK_BYTES * (number + 1)] = chunk[-CHECK_BYTES:]
        offset += len(chunk)
    index = places.tobytes()
    tail = bytes(checks) + index + google_crc32c.value(index).to_bytes(4, "little")
    return b"".join([*chunks.values(), tail]), tail


def tail_bytes(chunks: int, has_checks: bool) -> int:
    """Bytes at the end of a shard's file that say where its chunks lie and what they are."""
    return (16 + CHECK_BYTES * has_checks) * chunks + 4
