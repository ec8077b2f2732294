"""The feature store against the formats that others ship, on the same maps.

    pip install h5py lmdb        # or: make bench
    python benchmarks/store.py --features store.zarr --maps 324
    python benchmarks/store.py --features store.zarr --maps 324 --folder /tmp/formats --readers 4

Writes the maps of a store (repeated up to --maps) as: the store itself; a compressed float16 .npz
per image; a float32 .pth per image; HDF5 with gzip and with lzf, one float16 dataset per image;
LMDB with float16 values; LXMERT's TSV (base64, float32). Reads them back at random, alternating
between formats, cold (page cache dropped with posix_fadvise) and warm, from one or more processes
that share the maps among them. A sampled read is 100 random grids of a map, a full read all of
them; both end as float32. Prints bytes per image, reads per second, seconds to open and the peak
memory of a reader, and what the disk gives. With --folder the files stay there and are read again
by the next run, so that the whole can be measured in parts. Without --features it renders and
encodes photos of the sample world.
"""

from __future__ import annotations

import base64
import csv
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from made_features import make_features
from memory import peak_mb

from gridvlp.store import FeatureStore, StoreWriter

GRIDS = 100
KINDS = ("sampled", "full")
Maps = Iterator[tuple[str, np.ndarray]]
Reader = Callable[[str], np.ndarray]  # key -> (H * W, C)


def take(grids_GC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What other formats do for a sample: read all, keep some."""
    count = min(GRIDS, len(grids_GC))
    return grids_GC[rng.choice(len(grids_GC), count, replace=False)].astype(np.float32)


def as_grids(map_CHW: np.ndarray) -> np.ndarray:
    """A map's grids (H * W, C)."""
    return map_CHW.reshape(len(map_CHW), -1).T


def write_store(path: Path, maps: Maps) -> None:
    """This project's store."""
    first_key, first = next(maps)
    with StoreWriter.create(path, channels=len(first), max_grids=1024) as writer:
        writer.add(first_key, first)
        for key, map_CHW in maps:
            writer.add(key, map_CHW)


def write_pth(path: Path, maps: Maps) -> None:
    """grid-feats-vqa: one float32 tensor per image."""
    import torch

    path.mkdir()
    for key, map_CHW in maps:
        torch.save(torch.from_numpy(map_CHW)[None], path / f"{key}.pth")


def open_pth(path: Path) -> Reader:
    import torch

    return lambda key: as_grids(torch.load(path / f"{key}.pth", weights_only=True)[0].numpy())


def write_npz(path: Path, maps: Maps) -> None:
    path.mkdir()
    for key, map_CHW in maps:
        np.savez_compressed(path / f"{key}.npz", x=map_CHW.astype(np.float16))


def open_npz(path: Path) -> Reader:
    return lambda key: as_grids(np.load(path / f"{key}.npz")["x"])


def hdf5_writer(compression: str) -> Callable[[Path, Maps], None]:
    def write(path: Path, maps: Maps) -> None:
        import h5py

        with h5py.File(path, "w") as file:
            for key, map_CHW in maps:
                grids_GC = np.ascontiguousarray(as_grids(map_CHW), dtype=np.float16)
                file.create_dataset(key, data=grids_GC, compression=compression)

    return write


def open_hdf5(path: Path) -> Reader:
    import h5py

    file = h5py.File(path, "r")
    return lambda key: file[key][()]


def write_lmdb(path: Path, maps: Maps) -> None:
    import lmdb

    with lmdb.open(str(path), map_size=1 << 38, subdir=False, lock=False) as env:
        for key, map_CHW in maps:
            grids_GC = np.ascontiguousarray(as_grids(map_CHW), dtype=np.float16)
            header = np.array(grids_GC.shape, dtype=np.int32).tobytes()
            with env.begin(write=True) as transaction:
                transaction.put(key.encode(), header + grids_GC.tobytes())


def open_lmdb(path: Path) -> Reader:
    import lmdb

    env = lmdb.open(str(path), subdir=False, readonly=True, lock=False)

    transaction = env.begin(buffers=True)  # values are not copied: a sample reads its pages only

    def read(key: str) -> np.ndarray:
        value = transaction.get(key.encode())
        shape = np.frombuffer(value, dtype=np.int32, count=2)
        return np.frombuffer(value, dtype=np.float16, offset=8).reshape(shape)

    return read


def write_tsv(path: Path, maps: Maps) -> None:
    """LXMERT and bottom-up attention: base64 in a tab-separated file."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file, delimiter="\t")
        for key, map_CHW in maps:
            grids_GC = np.ascontiguousarray(as_grids(map_CHW), dtype=np.float32)
            lines.writerow([key, len(grids_GC), base64.b64encode(grids_GC).decode()])


def open_tsv(path: Path) -> Reader:
    """By byte offset, which is kinder than LXMERT's own loader: that one reads all into memory."""
    offsets, begin = {}, 0
    with path.open("rb") as file:
        for line in file:
            offsets[line.split(b"\t", 1)[0].decode()] = (begin, len(line))
            begin += len(line)
    handle = path.open("rb")

    def read(key: str) -> np.ndarray:
        begin, size = offsets[key]
        _, count, text = os.pread(handle.fileno(), size, begin).split(b"\t")
        return np.frombuffer(base64.b64decode(text), dtype=np.float32).reshape(int(count), -1)

    return read


WRITERS: dict[str, Callable[[Path, Maps], None]] = {
    "gridvlp": write_store,
    "npz": write_npz,
    "pth": write_pth,
    "hdf5-gzip": hdf5_writer("gzip"),
    "hdf5-lzf": hdf5_writer("lzf"),
    "lmdb": write_lmdb,
    "tsv": write_tsv,
}
OPENERS: dict[str, Callable[[Path], Reader]] = {
    "npz": open_npz,
    "pth": open_pth,
    "hdf5-gzip": open_hdf5,
    "hdf5-lzf": open_hdf5,
    "lmdb": open_lmdb,
    "tsv": open_tsv,
}


def files_of(path: Path) -> list[Path]:
    """All files of one format."""
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def drop_cache(path: Path) -> None:
    """Take a format's files out of the page cache."""
    for file in files_of(path):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_some(format: str, path: Path, keys: list[str], kind: str, seed: int, results: Any) -> None:
    """One reader: opens the format, reads some maps; sends (seconds to open, rate, MB)."""
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    if format == "gridvlp":
        store = FeatureStore(path)
    else:
        reader = OPENERS[format](path)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    for key in keys:
        if format == "gridvlp":
            _ = store.sample(key, GRIDS, rng) if kind == "sampled" else store.grids(key)
        else:
            grids_GC = reader(key)
            _ = take(grids_GC, rng) if kind == "sampled" else grids_GC.astype(np.float32)
    rate = len(keys) / (time.perf_counter() - start)
    results.put((opened, rate, peak_mb()))


def read_with(
    format: str, path: Path, keys: list[str], kind: str, readers: int, seed: int
) -> tuple[float, float, float]:
    """Several readers at once: (median seconds to open, summed reads/s, most MB of one)."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    started = [
        context.Process(
            target=read_some, args=(format, path, keys[n::readers], kind, seed + n, results)
        )
        for n in range(readers)
    ]
    for process in started:
        process.start()
    found = [results.get() for _ in started]
    for process in started:
        process.join()
    opened, rates, used = zip(*found, strict=True)
    return statistics.median(opened), sum(rates), max(used)


def disk_rate(path: Path) -> float:
    """MB/s of reading cold files one after another."""
    drop_cache(path)
    start, read = time.perf_counter(), 0
    for file in files_of(path):
        with file.open("rb", buffering=0) as handle:
            while block := handle.read(1 << 20):
                read += len(block)
    return read / 1e6 / (time.perf_counter() - start)


@click.command(context_settings={"show_default": True})
@click.option("--features", type=click.Path(path_type=Path), help="Store whose maps are used.")
@click.option("--maps", "count", default=300, help="Maps to write, by repetition if need be.")
@click.option("--reads", default=200, help="Different maps that are read in a round.")
@click.option("--format", "formats", multiple=True, default=tuple(WRITERS), help="Formats.")
@click.option("--readers", multiple=True, default=[1, 2, 4], help="Processes that read at once.")
@click.option("--rounds", default=3, help="Rounds; the median counts.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the files here.")
def main(
    features: Path | None,
    count: int,
    reads: int,
    formats: tuple[str, ...],
    readers: tuple[int, ...],
    rounds: int,
    folder: Path | None,
) -> None:
    """Write and read all formats."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(exist_ok=True)
        store = FeatureStore(features or make_features(place))
        given = store.keys()
        keys = [f"{number:06}-{given[number % len(given)]}" for number in range(count)]

        def maps() -> Maps:
            for key in keys:
                yield key, store.map(key.split("-", 1)[1])

        grids = sum(int(np.prod(store.shape(key.split("-", 1)[1])[1:])) for key in keys)
        raw = 2 * grids * store.channels / count
        click.echo(
            f"{count} maps of {len(given)} photos, {grids / count:.0f} grids of {store.channels} "
            f"channels on average, {raw / 1e3:.0f} kB raw in float16; {reads} reads a round, "
            f"{rounds} rounds; {os.cpu_count()} cores"
        )
        paths = {format: place / format for format in formats}
        for format, path in paths.items():
            start, rate = time.perf_counter(), "written before"
            if not path.exists():
                WRITERS[format](place / f"{format}.new", maps())
                (place / f"{format}.new").rename(path)
                rate = f"written at {count / (time.perf_counter() - start):.0f} maps/s"
            size = sum(file.stat().st_size for file in files_of(path)) / count
            click.echo(
                f"{format:10} {size / 1e3:8.1f} kB an image ({100 * size / raw:5.1f}% of raw), "
                + rate
            )
        click.echo(f"the disk, cold: {disk_rate(paths[formats[-1]]):.0f} MB/s one after another")
        for number in readers:
            for kind in KINDS:
                for state in ("cold", "warm"):
                    rows: dict[str, list[tuple[float, float, float]]] = {f: [] for f in formats}
                    for seed in range(rounds):
                        chosen = np.random.default_rng(seed).permutation(keys)[:reads].tolist()
                        for format, row in rows.items():
                            path = paths[format]
                            if state == "cold":
                                drop_cache(path)
                            elif not seed:  # what is warm has been read before
                                read_with(format, path, chosen, kind, number, seed)
                            row.append(read_with(format, path, chosen, kind, number, seed))
                    report(f"{kind} reads, {number} readers, {state}", rows)


def report(title: str, rows: dict[str, list[tuple[float, float, float]]]) -> None:
    """One line per format; the ratio is this store's rate over the format's."""
    click.echo(title)
    first = rows.get("gridvlp") or next(iter(rows.values()))
    ours = statistics.median(rate for _, rate, _ in first)
    for format, row in rows.items():
        opened, rate, used = (statistics.median(values) for values in zip(*row, strict=True))
        click.echo(
            f"  {format:10} {rate:8.0f} maps/s  gridvlp x{ours / rate:5.2f}   "
            f"opens in {1e3 * opened:6.1f} ms, {used:5.0f} MB"
        )


if __name__ == "__main__":
    main()
