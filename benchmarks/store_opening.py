"""Opening a store of a million maps, and what a worker holds of it.

    python benchmarks/store_opening.py
    python benchmarks/store_opening.py --maps 1000 --maps 1000000

The index names as many maps as are asked for, 26 in a shard as at 600x1000; only one is there.
Each figure is from a fresh process: seconds to open, the memory that this added at its peak, and
after 10,000 look-ups. Private memory does not count mapped pages, which are the page cache's and
shared by all workers. Once with the packed index, once without.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import google_crc32c
import numpy as np
from memory import peak_mb

from gridvlp.store import FeatureStore, StoreWriter
from gridvlp.store.index import pack_index

IN_SHARD = 26


def make(path: Path, maps: int) -> None:
    """A store whose index names that many maps."""
    with StoreWriter.create(path, channels=2048) as writer:
        writer.add("first", np.zeros((2048, 19, 32), np.float32))
    about = json.loads((path / "grids" / "zarr.json").read_text())
    rows = about["chunk_grid"]["configuration"]["chunk_shape"][0]
    line = (path / "index" / "000000.jsonl").read_text().splitlines()[0]
    same = {name: json.loads(line)[name] for name in ("store", "facts", "arrays")}
    for shard, first in enumerate(range(0, maps, IN_SHARD)):
        numbers = range(first, min(first + IN_SHARD, maps))
        columns = {
            "key": [f"COCO_train2014_{number:012}" for number in numbers],
            "start": [shard * rows + 620 * place for place in range(len(numbers))],
            "height": [19] * len(numbers),
            "width": [32] * len(numbers),
            **same,
        }
        line = json.dumps(columns, separators=(",", ":")).encode()
        check = json.dumps({"crc32c": google_crc32c.value(line)}).encode()
        (path / "index" / f"{shard:06}.jsonl").write_bytes(line + b"\n" + check + b"\n")
    (path / "index.bin").unlink()


def private_mb() -> float:
    """Anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("The kernel tells no anonymous memory.")


def open_one(path: Path, results: Any) -> None:
    """Opens, looks up; sends seconds and MB."""
    peak, private = peak_mb(), private_mb()
    start = time.perf_counter()
    store = FeatureStore(path)
    seconds = time.perf_counter() - start
    opened = peak_mb() - peak, private_mb() - private
    maps = len(store)
    wanted = np.random.default_rng(0).integers(maps, size=10_000)
    start = time.perf_counter()
    for number in wanted:
        store.shape(f"COCO_train2014_{number:012}")
    each = (time.perf_counter() - start) / len(wanted)
    results.put((seconds, *opened, each, peak_mb() - peak, private_mb() - private))


@click.command(context_settings={"show_default": True})
@click.option("--maps", multiple=True, default=[1_000, 1_000_000], help="Maps in the index.")
@click.option("--rounds", default=3, help="Fresh processes; the median counts.")
def main(maps: tuple[int, ...], rounds: int) -> None:
    """Open stores of all sizes."""
    context = multiprocessing.get_context("spawn")
    for count in maps:
        path = Path(tempfile.mkdtemp()) / "s.zarr"
        make(path, count)
        for packed in (False, True):
            size = sum(file.stat().st_size for file in (path / "index").iterdir()) / 1e6
            if packed:
                start = time.perf_counter()
                pack_index(path)
                size = (path / "index.bin").stat().st_size / 1e6
                click.echo(f"packed in {time.perf_counter() - start:.2f} s")
            found = []
            for _ in range(rounds if packed else 1):
                results = context.Queue()
                process = context.Process(target=open_one, args=(path, results))
                process.start()
                found.append(results.get())
                process.join()
            seconds, peak, private, each, peak_after, private_after = np.median(found, axis=0)
            click.echo(
                f"{count:,} maps, {'packed index' if packed else 'index files of shards'}, "
                f"{size:.1f} MB: opens in {seconds:.3f} s, +{peak:.0f} MB at the peak "
                f"(+{private:.1f} private); a look-up takes {1e6 * each:.0f} us; after 10,000 "
                f"+{peak_after:.0f} MB (+{private_after:.1f} private)"
            )
        shutil.rmtree(path.parent)


if __name__ == "__main__":
    main()
