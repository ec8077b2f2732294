"""Which compressor the store should use: bytes and decoding speed on real maps.

    python benchmarks/compression.py --features store.zarr

Takes the maps of a store (of a float type), in the store's chunks: 20 grids in the stored order.
Each number type of the store (float16; bfloat16, kept as float32 whose low half is zero or as its
16 bits; int8, a byte with a scale for each channel of a map) goes through each codec that a plain
Zarr v3 reader knows (the store's own frames; zstd; blosc with or without shuffle), and some that
none knows (bytes in planes before zstd, channels first) for comparison. Prints bytes in percent of
raw float16, and how many MB of float16 a second are packed and unpacked by one thread, by its own
CPU time. Then, how far the numbers of each type are from the store's. Without --features it renders
and encodes photos of the sample world.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from made_features import make_features
from numcodecs import blosc
from numcodecs.blosc import Blosc
from numcodecs.lz4 import LZ4
from numcodecs.zlib import Zlib
from numcodecs.zstd import Zstd

from gridvlp.store import FeatureStore, chunks
from gridvlp.store.layout import CHUNK_GRIDS, ORDER_SEED, grid_order
from gridvlp.store.numbers import from_bfloat16, from_bytes, keep

Encode = Callable[[np.ndarray], bytes]
Decode = Callable[[bytes], object]


def this_store(size: int) -> tuple[Encode, Decode]:
    """Byte planes, entropy codes alone, in a frame of Blosc."""

    def decode(stored: bytes) -> object:
        numbers = np.empty(int.from_bytes(stored[4:8], "little") // size, f"u{size}")
        chunks.decode(stored, numbers)
        return numbers

    return chunks.encode, decode


def zstd(level: int) -> tuple[Encode, Decode]:
    codec = Zstd(level=level, checksum=True)
    return codec.encode, codec.decode


def shuffled(name: str, level: int, shuffle: int) -> Callable[[int], tuple[Encode, Decode]]:
    def make(size: int) -> tuple[Encode, Decode]:
        codec = Blosc(cname=name, clevel=level, shuffle=shuffle)
        return lambda chunk: codec.encode(chunk), codec.decode

    return make


def planes(level: int) -> Callable[[int], tuple[Encode, Decode]]:
    """All first bytes, then all second bytes, with NumPy, into zstd."""

    def make(size: int) -> tuple[Encode, Decode]:
        codec = Zstd(level=level, checksum=True)

        def encode(chunk: np.ndarray) -> bytes:
            return bytes(codec.encode(np.ascontiguousarray(chunk.view("u1").reshape(-1, size).T)))

        def decode(stored: bytes) -> object:
            return np.frombuffer(codec.decode(stored), "u1").reshape(size, -1).T.copy()

        return encode, decode

    return make


def channels_first(level: int) -> tuple[Encode, Decode]:
    codec = Zstd(level=level, checksum=True)
    return lambda chunk: bytes(codec.encode(np.ascontiguousarray(chunk.T))), codec.decode


CODECS: dict[str, Callable[[int], tuple[Encode, Decode]]] = {
    "this store": this_store,
    **{f"zstd {level}": lambda size, level=level: zstd(level) for level in (1, 3, 9)},  # type: ignore[misc]
    "zlib 6": lambda size: (Zlib(6).encode, Zlib(6).decode),
    "lz4": lambda size: (LZ4().encode, LZ4().decode),
    "blosc zstd 1, no shuffle": shuffled("zstd", 1, Blosc.NOSHUFFLE),
    "blosc zstd 1, shuffle": shuffled("zstd", 1, Blosc.SHUFFLE),
    "blosc zstd 3, shuffle": shuffled("zstd", 3, Blosc.SHUFFLE),
    "blosc zstd 9, shuffle": shuffled("zstd", 9, Blosc.SHUFFLE),
    "blosc zstd 1, bitshuffle": shuffled("zstd", 1, Blosc.BITSHUFFLE),
    "blosc lz4 5, shuffle": shuffled("lz4", 5, Blosc.SHUFFLE),
    "blosc lz4 5, bitshuffle": shuffled("lz4", 5, Blosc.BITSHUFFLE),
    "planes, zstd 1": planes(1),
    "planes, zstd 3": planes(3),
    "channels first, zstd 1": lambda size: channels_first(1),
}


def as_bfloat16(grids_GC: np.ndarray) -> np.ndarray:
    """Float32 of which the low half is zero."""
    return from_bfloat16(keep("bfloat16", grids_GC)["grids"])


def rounded(keep: int) -> Callable[[np.ndarray], np.ndarray]:
    """Float16 of which ``keep`` bits of the mantissa are kept (bit rounding, lossy)."""

    def convert(grids_GC: np.ndarray) -> np.ndarray:
        drop = 10 - keep
        bits = grids_GC.astype("<f2").view("<u2")
        half = (1 << (drop - 1)) - 1 + ((bits >> drop) & 1)
        return ((bits + half.astype("<u2")) & np.uint16(0xFFFF << drop & 0xFFFF)).view("<f2")

    return convert


TYPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "float16": lambda grids_GC: grids_GC.astype("<f2"),
    "float16, 7 bits of mantissa": rounded(7),
    "bfloat16 as float32": as_bfloat16,
    "bfloat16 as its bits": lambda grids_GC: keep("bfloat16", grids_GC)["grids"],
    "int8": lambda grids_GC: keep("int8", grids_GC)["grids"],
}


def chunks_of(values_GC: np.ndarray) -> list[np.ndarray]:
    """A map's chunks as the store cuts them."""
    stored_GC = values_GC[grid_order(len(values_GC), ORDER_SEED)]
    count = -(-len(stored_GC) // CHUNK_GRIDS)
    filled = np.zeros((count * CHUNK_GRIDS, stored_GC.shape[1]), stored_GC.dtype)
    filled[: len(stored_GC)] = stored_GC
    return list(filled.reshape(count, CHUNK_GRIDS, -1))


@click.command(context_settings={"show_default": True})
@click.option("--features", type=click.Path(path_type=Path), help="Store whose maps are used.")
@click.option("--maps", "count", default=20, help="Maps to take.")
@click.option("--rounds", default=3, help="Rounds of the clock; the median counts.")
def main(features: Path | None, count: int, rounds: int) -> None:
    """Print the table."""
    blosc.use_threads = False
    with tempfile.TemporaryDirectory() as temporary:
        store = FeatureStore(features or make_features(Path(temporary)))
        keys = store.keys()
        chosen = np.random.default_rng(0).choice(len(keys), min(count, len(keys)), replace=False)
        maps = [store.grids(keys[place]) for place in sorted(chosen)]
    values = sum(grids_GC.size for grids_GC in maps)
    zeros = sum(int((grids_GC == 0).sum()) for grids_GC in maps) / values
    raw = 2 * values
    precision = store.encoder.get("precision", "unknown")
    click.echo(
        f"{len(maps)} maps of {values / store.channels / len(maps):.0f} grids x {store.channels} "
        f"channels, {100 * zeros:.1f}% zeros, encoder in {precision}; one thread"
    )
    for type_name, convert in TYPES.items():
        parts = [chunk for grids_GC in maps for chunk in chunks_of(convert(grids_GC))]
        click.echo(f"{type_name:28} of raw float16     pack   unpack, MB/s")
        for name, make in CODECS.items():
            encode, decode = make(parts[0].itemsize)
            packing, unpacking = [], []
            for _ in range(rounds):
                start = time.process_time()
                stored = [encode(chunk) for chunk in parts]
                packing.append(time.process_time() - start)
                start = time.process_time()
                for chunk in stored:
                    decode(chunk)
                unpacking.append(time.process_time() - start)
            share = sum(map(len, stored)) / raw
            speeds = [raw / 1e6 / statistics.median(times) for times in (packing, unpacking)]
            click.echo(f"  {name:26} {100 * share:12.1f}% {speeds[0]:8.0f} {speeds[1]:8.0f}")
    report_errors(maps)


def report_errors(maps: list[np.ndarray]) -> None:
    """Relative L2 error over all numbers, and the cosine of the grids with the original ones."""
    click.echo("type        relative error   cosine of a grid: mean   1st percentile   least")
    for dtype in ("float16", "bfloat16", "int8"):
        wrong, right, cosines = 0.0, 0.0, []
        for grids_GC in maps:
            rows = keep(dtype, grids_GC)
            if dtype == "int8":
                found_GC = from_bytes(rows["grids"], rows["scales"][0])
            elif dtype == "bfloat16":
                found_GC = from_bfloat16(rows["grids"])
            else:
                found_GC = rows["grids"].astype(np.float32)
            wrong += float(((found_GC - grids_GC) ** 2).sum())
            right += float((grids_GC**2).sum())
            norms = np.linalg.norm(found_GC, axis=1) * np.linalg.norm(grids_GC, axis=1)
            cosines.append((found_GC * grids_GC).sum(1)[norms > 0] / norms[norms > 0])
        cosine = np.concatenate(cosines)
        click.echo(
            f"{dtype:10} {100 * (wrong / right) ** 0.5:14.4f}% {cosine.mean():24.6f} "
            f"{np.percentile(cosine, 1):16.6f} {cosine.min():7.5f}"
        )


if __name__ == "__main__":
    main()
