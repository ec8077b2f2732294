"""A chunk's frame: any Blosc reads it, and no changed byte goes unnoticed."""

import struct

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numcodecs import blosc  # type: ignore[import-untyped]

from gridvlp.store.chunks import decode, encode

NUMBERS = st.sampled_from(["u1", "<u2", "<f2", "<f4", "<i4"]).flatmap(
    lambda dtype: arrays.arrays(dtype, st.tuples(st.integers(1, 21), st.integers(1, 300)))
)


@given(numbers=NUMBERS)
@example(numbers=np.zeros((1, 14), "<u2"))  # as long packed as unpacked, but for the extra block
def test_blosc_and_the_own_reader_give_what_was_written(numbers: np.ndarray) -> None:
    frame = encode(numbers)
    found, others = np.empty_like(numbers), np.empty_like(numbers)
    decode(frame, found)
    blosc.decompress(frame, others)
    assert found.tobytes() == others.tobytes() == numbers.tobytes()


def features(dtype: str) -> np.ndarray:
    """As behind a ReLU, of an encoder that runs in bfloat16."""
    numbers = np.maximum(np.random.default_rng(0).normal(size=(20, 256)), 0).astype(np.float32)
    return (numbers.view("u4") & 0xFFFF0000).view("f4").astype(dtype)


@pytest.mark.parametrize("dtype", ["u1", "<f2", "<f4"])
def test_no_flipped_bit_gives_other_numbers(dtype: str) -> None:
    numbers = features(dtype)
    frame, unchanged = encode(numbers), 0
    for place in range(len(frame)):
        flipped = bytearray(frame)
        flipped[place] ^= 1 << place % 8
        found = np.empty_like(numbers)
        try:
            decode(bytes(flipped), found)
        except ValueError:
            continue
        assert found.tobytes() == numbers.tobytes()
        unchanged += 1
    assert unchanged <= len(frame) // 100  # bits that zstd's format does not use


def test_a_frame_of_other_numbers_or_cut_or_longer_is_refused() -> None:
    numbers = features("<f2")
    frame = encode(numbers)
    for wrong in (frame[:-1], frame[:20], b"", frame + b"\0", encode(numbers[:19])):
        with pytest.raises(ValueError, match="chunk"):
            decode(wrong, np.empty_like(numbers))
    with pytest.raises(ValueError, match="header"):
        decode(frame, np.empty(numbers.shape, "<u4"))


def test_a_frame_without_a_checksum_of_its_content_is_refused() -> None:
    """Nothing would protect its numbers."""
    numbers = features("<f2")
    planes = numbers.view("u1").reshape(-1, 2).T.tobytes()
    for has_checksum in (True, False):
        content = zstandard.ZstdCompressor(write_checksum=has_checksum).compress(planes)
        sizes = (numbers.nbytes, numbers.nbytes, 24 + len(content), 20, len(content))
        frame = struct.pack("<BBBBIIIII", 2, 1, 0x91, 2, *sizes) + content
        found = np.empty_like(numbers)
        if has_checksum:
            decode(frame, found)
            np.testing.assert_array_equal(found, numbers)
        else:
            with pytest.raises(ValueError, match="no checksum"):
                decode(frame, found)


def test_a_frame_is_that_of_its_checksum() -> None:
    numbers = features("<f2")
    frame, found = encode(numbers), np.empty_like(numbers)
    decode(frame, found, frame[-4:])
    for other in (b"\0\0\0\0", frame[-5:-1], frame[-3:]):
        with pytest.raises(ValueError, match="not the one that its shard names"):
            decode(frame, found, other)


def test_it_is_smaller_than_zstd_and_blosc_make_it() -> None:
    """The reason for a frame of our own."""
    from numcodecs import Blosc, Zstd

    numbers = features("<f2")
    own = len(encode(numbers))
    for level in (1, 9):
        assert own < 0.97 * len(Zstd(level).encode(numbers))
        assert own < 0.97 * len(Blosc("zstd", level, Blosc.SHUFFLE).encode(numbers))
