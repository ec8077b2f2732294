"""The bytes of a chunk: one Blosc frame, in it the numbers' byte planes as one zstd frame.

Zarr's core codec ``blosc`` (zstd, byte shuffle) reads it. It is made here because what Blosc or
zstd make at any level is a tenth larger and slower to unpack: in features almost nothing repeats
but by chance, and each short repeat that an encoder takes costs more than its bytes' own codes. So
zstd gets the smallest table and the longest least match, which leaves entropy coding, and each
plane begins a block, with codes of its own (docs/history.md).
"""

from __future__ import annotations

import struct
import threading

import numpy as np
import zstandard

ZSTD = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    min_match=7,
    hash_log=zstandard.HASHLOG_MIN,
    chain_log=zstandard.CHAINLOG_MIN,
    search_log=1,
    target_length=0,  # above 0 this strategy does not code literals at all
    window_log=18,
    write_checksum=True,
    write_content_size=True,
)
# Blosc 1: versions of its format and of the codec's, flags, bytes of a number, of the content, of a
# block, of the frame; where the block begins, and its bytes
HEADER = struct.Struct("<BBBBIIIII")
SHUFFLED, UNDIVIDED, OF_ZSTD = 1, 1 << 4, 4 << 5
# a zstd frame ends in the low half of its content's XXH64, which it says in its header's fifth byte
CHECK_BYTES, HAS_CHECKSUM = 4, 1 << 2
# in a frame just as long as its content, which Blosc would take for the content itself
EMPTY_BLOCK = bytes(3)

_own = threading.local()  # contexts of zstd serve one thread at a time


def encode(numbers: np.ndarray) -> bytes:
    """The frame of some numbers, little-endian and C-contiguous."""
    compressor = getattr(_own, "compressor", None)
    if compressor is None:
        compressor = _own.compressor = zstandard.ZstdCompressor(compression_params=ZSTD)
    stream = compressor.compressobj(size=numbers.nbytes)
    parts = []
    for plane in _planes(numbers):
        parts += [stream.compress(plane.tobytes()), stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    parts.append(stream.flush())
    if sum(map(len, parts)) == numbers.nbytes:
        parts.insert(2, EMPTY_BLOCK)
    content = b"".join(parts)
    return _header(numbers, len(content)) + content


def decode(frame: bytes | memoryview, numbers: np.ndarray, check: bytes | None = None) -> None:
    """Read a frame into the array that says what it holds.

    Args:
        frame: the bytes.
        numbers: little-endian and C-contiguous.
        check: the last CHECK_BYTES that the frame must have.

    Raises:
        ValueError: the bytes are not those of such a frame; the array's content is undefined.
    """
    decompressor = getattr(_own, "decompressor", None)
    if decompressor is None:
        decompressor = _own.decompressor = zstandard.ZstdDecompressor()
    content = memoryview(frame)[HEADER.size :]
    # zstd's checksum does not cover the header, of which nothing is left to chance
    if frame[: HEADER.size] != _header(numbers, len(content)):
        raise ValueError("a chunk has another header")
    if check is not None and content[-CHECK_BYTES:] != check:
        raise ValueError("a chunk is not the one that its shard names")
    if len(content) < 5 or not content[4] & HAS_CHECKSUM:
        raise ValueError("a chunk has no checksum")
    try:
        if zstandard.frame_content_size(content) != numbers.nbytes:
            raise ValueError("a chunk has another size")
        planes = decompressor.decompress(content, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"a chunk cannot be unpacked: {error}") from error
    for plane, read in zip(
        _planes(numbers), np.frombuffer(planes, "u1").reshape(numbers.itemsize, -1), strict=True
    ):
        plane[:] = read


def _planes(numbers: np.ndarray) -> np.ndarray:
    """The first bytes of all numbers, then the second ones, ...; a view."""
    assert numbers.flags.c_contiguous
    return numbers.reshape(-1).view("u1").reshape(-1, numbers.itemsize).T


def _header(numbers: np.ndarray, length: int) -> bytes:
    flags = OF_ZSTD | UNDIVIDED | (SHUFFLED if numbers.itemsize > 1 else 0)
    size = numbers.nbytes
    return HEADER.pack(
        *(2, 1, flags, numbers.itemsize, size, size, HEADER.size + length, HEADER.size - 4, length)
    )
