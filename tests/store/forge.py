"""Stores that lie: files changed under checksums that are right again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gridvlp.store import FeatureStore, StoreError, StoreWriter
from gridvlp.store.layout import ORDER_SEED, checked_lines, grid_order, sealed

C = 5
SIZES = {"a": (4, 5), "b": (7, 9), "c": (1, 1), "d": (3, 20), "e": (6, 6)}

FUZZ = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**30]),
    st.floats(),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.lists(st.integers(0, 5), max_size=3),
)


def grid_map(key: str, add: float = 0) -> np.ndarray:
    """The map of a key, every number of it another."""
    height, width = SIZES[key]
    numbers = np.arange(C * height * width, dtype=np.float32).reshape(C, height, width)
    return numbers + 1000 * (1 + list(SIZES).index(key)) + add / 2


def write(path: Path, keys: str = "abcde", add: float = 0, **options: Any) -> Path:
    """A store of these maps, a shard for two of them."""
    options = {"channels": C, "max_grids": 100, "dtype": "float32", **options}
    with StoreWriter.create(path, **options) as writer:
        for number, key in enumerate(keys):
            writer.add(key, grid_map(key, add), photo=key, add=add)
            if number % 2:
                writer.flush()
    return path


def columns(path: Path, shard: int = 0) -> dict[str, Any]:
    """What a shard's index file says."""
    line = (path / "index" / f"{shard:06}.jsonl").read_bytes().splitlines()[0]
    found: dict[str, Any] = json.loads(line)
    return found


def write_columns(path: Path, entry: Any, shard: int = 0) -> None:
    """Let a shard's index file say something else, and drop the packed index."""
    (path / "index" / f"{shard:06}.jsonl").write_bytes(checked_lines(entry))
    (path / "index.bin").unlink(missing_ok=True)


def change_metadata(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a zarr.json under a right checksum."""
    document = json.loads(file.read_bytes())
    change(document)
    file.write_bytes(sealed(document))


def write_packed(path: Path, content: bytes) -> None:
    """An index.bin with these bytes and their checksum."""
    check = google_crc32c.value(content).to_bytes(4, "little")
    (path / "index.bin").write_bytes(content + check)


def assert_right_or_refused(path: Path, keys: str = "abcde") -> int:
    """Each map is that which was written, or an error says so; returns how many are right."""
    try:
        store = FeatureStore(path)
    except StoreError as error:
        assert_is_a_sentence(error)
        return 0
    right = 0
    for key in keys:
        try:
            found = store.map(key)
            sample_GC = store.sample(key, 30, np.random.default_rng(0))
            facts = store.record(key)
        except StoreError as error:
            assert_is_a_sentence(error)
            continue
        np.testing.assert_array_equal(found, grid_map(key))
        rows = {tuple(row) for row in grid_map(key).reshape(C, -1).T}
        assert {tuple(row) for row in sample_GC} <= rows
        assert facts == {"photo": key, "add": 0}
        right += 1
    return right


def assert_reads_what_the_index_says(path: Path) -> int:
    """An error, or an index that can be true and maps of the rows that it names.

    A lie that could be true is none that a reader can know of; this is the naive check of all
    others, and the naive way to the rows, by plain Zarr. Returns how many maps were read.
    """
    try:
        store = FeatureStore(path)
    except StoreError as error:
        assert_is_a_sentence(error)
        return 0
    (index,), (layout,) = store._index, store._layouts
    stored = zarr.open_array(path / "grids", mode="r", zarr_format=3)
    taken, read = set(), 0
    for place, (key, height, width) in enumerate(index.maps()):
        start, count = int(index.starts[place]), height * width
        shard = start // layout.shard_rows
        assert key
        assert shard in index.shards
        assert start % 20 == 0
        assert 1 <= count <= layout.attributes.max_grids
        assert (start + count - 1) // layout.shard_rows == shard
        assert taken.isdisjoint(range(start, start + count))
        taken |= set(range(start, start + count))
        try:
            found = store.map(key)
            store.sample(key, 7)
            store.record(key)
        except StoreError as error:
            assert_is_a_sentence(error)
            continue
        if store._place(key) == (0, place):  # and not the second map of a key
            rows_GC = np.empty((count, C), np.float32)
            rows_GC[grid_order(count, ORDER_SEED)] = stored[start : start + count]
            np.testing.assert_array_equal(found, rows_GC.T.reshape(C, height, width))
            read += 1
    return read


def assert_is_a_sentence(error: Exception) -> None:
    """One line, as the command line prints it."""
    text = str(error)
    assert text.strip()
    assert "\n" not in text
    assert text.endswith(".")


def copy(path: Path, name: str) -> Path:
    """A copy beside a store."""
    copied = path.with_name(name)
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(path, copied)
    return copied
