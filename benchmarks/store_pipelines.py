"""Ways to read the chunks of one store: zarr-python, zarrs, tensorstore, and the reader of gridvlp.

    pip install tensorstore zarrs
    python benchmarks/store_pipelines.py --features store.zarr

Each takes the same maps in the same order: 100 rows that follow each other from a map's first row
on, and all rows of a map. The page cache is warm, the ways alternate; the median of the rounds
counts. A way that is not installed is left out and said. Without --features it renders and encodes
photos of the sample world.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from made_features import make_features

from gridvlp.store import FeatureStore

Rows = Callable[[int, int], np.ndarray]  # first row, rows -> (rows, C)


def by_zarr(path: Path, pipeline: str) -> Rows:
    """zarr-python with one of its codec pipelines."""
    import zarr

    settings: dict[str, Any] = {"codec_pipeline.path": pipeline, "threading.max_workers": 1}
    with zarr.config.set(settings):
        array: Any = zarr.open_array(path / "grids", mode="r")

    return lambda first, rows: array[first : first + rows]


def by_zarrs(path: Path) -> Rows:
    """zarr-python with the pipeline written in Rust."""
    import zarrs  # noqa: F401

    return by_zarr(path, "zarrs.ZarrsCodecPipeline")


def by_tensorstore(path: Path) -> Rows:
    """TensorStore's zarr3 driver."""
    import tensorstore

    context = tensorstore.Context({"data_copy_concurrency": {"limit": 1}})
    where = {"driver": "file", "path": str(path / "grids")}
    spec = {"driver": "zarr3", "kvstore": where, "recheck_cached_data": False}
    array = tensorstore.open(spec, read=True, context=context).result()
    return lambda first, rows: array[first : first + rows].read().result()


def by_gridvlp(path: Path) -> Rows:
    """The store's own reader: pread and zstandard."""
    store = FeatureStore(path)
    index = store._index[0]
    places = {int(start): place for place, start in enumerate(index.starts)}
    return lambda first, rows: store._rows(0, places[first], "grids", np.arange(rows))


WAYS: dict[str, Callable[[Path], Rows]] = {
    "gridvlp": by_gridvlp,
    "tensorstore": by_tensorstore,
    "zarrs": by_zarrs,
    "zarr-python": lambda path: by_zarr(path, "zarr.core.codec_pipeline.BatchedCodecPipeline"),
}


@click.command(context_settings={"show_default": True})
@click.option("--features", type=click.Path(path_type=Path), help="Store to read.")
@click.option("--reads", default=80, help="Maps that are read in a round.")
@click.option("--rounds", default=3, help="Rounds; the median counts.")
def main(features: Path | None, reads: int, rounds: int) -> None:
    """Read by all ways."""
    with tempfile.TemporaryDirectory() as temporary:
        compare(features or make_features(Path(temporary)), reads, rounds)


def compare(features: Path, reads: int, rounds: int) -> None:
    """Print the table."""
    index = FeatureStore(features)._index[0]
    sizes = index.heights.astype(int) * index.widths.astype(int)
    ways: dict[str, Rows] = {}
    for name, begin in WAYS.items():
        try:
            ways[name] = begin(features)
        except (ImportError, ValueError) as error:
            click.echo(f"{name}: left out ({error})")
    first = int(index.starts[0])
    for rows in ways.values():  # the ways read the same numbers
        np.testing.assert_array_equal(rows(first, 100), ways["gridvlp"](first, 100))
    for kind in ("100 rows", "all rows"):
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for seed in range(rounds):
            chosen = np.random.default_rng(seed).choice(len(index), reads)
            for name, rows in ways.items():
                begun = time.perf_counter()
                for place in chosen:
                    rows(int(index.starts[place]), 100 if kind == "100 rows" else int(sizes[place]))
                rates[name].append(reads / (time.perf_counter() - begun))
        ours = statistics.median(rates["gridvlp"])
        click.echo(kind)
        for name, found in rates.items():
            rate = statistics.median(found)
            click.echo(f"  {name:12} {rate:7.0f} maps/s   gridvlp x{ours / rate:5.2f}")


if __name__ == "__main__":
    main()
