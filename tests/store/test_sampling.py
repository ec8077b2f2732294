"""What a sample promises: each grid equally likely, pairs nearly so, few bytes read."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridvlp.store import FeatureStore, StoreWriter
from gridvlp.store.layout import ORDER_SEED, grid_order
from gridvlp.store.sampling import sampled_rows

CHUNK = 20
SIZES = {"one": (1, 1), "small": (5, 9), "ragged": (7, 17), "even": (10, 20), "full": (19, 32)}


def numbered(height: int, width: int) -> np.ndarray:
    grids = np.arange(height * width, dtype=np.float32).reshape(1, height, width)
    return np.repeat(grids, 4, axis=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    path = tmp_path_factory.mktemp("sampling") / "s"
    with StoreWriter.create(path, channels=4) as writer:
        for key, size in SIZES.items():
            writer.add(key, numbered(*size))
    return FeatureStore(path)


def drawn(store: FeatureStore, key: str, n: int, draws: int, seed: int) -> np.ndarray:
    """Which grids were drawn, bool (draws, G)."""
    rng = np.random.default_rng(seed)
    _, height, width = store.shape(key)
    found = np.zeros((draws, height * width), bool)
    for row in found:
        row[store.sample(key, n, rng)[:, 0].astype(int)] = True
    return found


@pytest.mark.parametrize(
    ("key", "n"), [("small", 16), ("ragged", 7), ("ragged", 100), ("even", 100), ("full", 100)]
)
def test_every_grid_is_equally_likely(store: FeatureStore, key: str, n: int) -> None:
    draws = 2000
    found = drawn(store, key, n, draws, seed=n)
    assert (found.sum(1) == n).all()
    share = n / found.shape[1]
    deviation = (found.sum(0) - draws * share) / (draws * share * (1 - share)) ** 0.5
    assert np.abs(deviation).max() < 4.5  # of up to 608 grids; p < 0.005
    # Grids of one chunk come together: chi-square of as many independent chunks, widened.
    assert (deviation**2).mean() == pytest.approx(1, abs=0.45)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 650), n=st.integers(1, 650), seed=st.integers(0, 2**32))
def test_rows_are_distinct_ascending_and_of_few_chunks(count: int, n: int, seed: int) -> None:
    rows = sampled_rows(count, n, CHUNK, np.random.default_rng(seed))
    assert len(rows) == min(n, count)
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < count
    assert len(np.unique(rows // CHUNK)) <= max(5, -(-n // CHUNK)) + 1


@pytest.mark.parametrize(("count", "n"), [(608, 100), (608, 16), (119, 100), (200, 150), (45, 16)])
def test_the_probabilities_are_exactly_equal(count: int, n: int) -> None:
    """The two ways a sample can go, weighed by hand: a row of either kind has n / count."""
    whole, short = divmod(count, CHUNK)
    rng = np.random.default_rng(0)
    draws = 20000
    in_short = sum(
        int((sampled_rows(count, n, CHUNK, rng) >= whole * CHUNK).sum()) for _ in range(draws)
    )
    expected = short * n / count * draws
    assert abs(in_short - expected) <= 5 * (short * expected) ** 0.5 + 1e-9


def test_pairs_are_nearly_equally_likely(store: FeatureStore) -> None:
    draws, n, count = 4000, 100, 608
    found = drawn(store, "full", n, draws, seed=1).astype(np.float32)
    together = found.T @ found / draws
    chunk = np.empty(count, int)
    chunk[grid_order(count, ORDER_SEED)] = np.arange(count) // CHUNK
    pair = ~np.eye(count, dtype=bool)
    same = (chunk[:, None] == chunk[None]) & pair
    uniform = n * (n - 1) / (count * (count - 1))
    apart = together[pair & ~same]
    assert same.sum() / pair.sum() == pytest.approx(0.031, abs=0.001)
    assert together[same].mean() == pytest.approx(0.16, abs=0.01)
    assert apart.mean() == pytest.approx(0.0225, abs=0.0005)
    assert 0.8 < apart.mean() / uniform < 1
    # No pair of different chunks is left out: each is a binomial draw around the mean.
    assert np.abs(apart - apart.mean()).max() < 6 * (apart.mean() / draws) ** 0.5


def test_a_small_map_is_sampled_as_by_full_shuffling(store: FeatureStore) -> None:
    draws, n, count = 4000, 16, 45
    found = drawn(store, "small", n, draws, seed=2).astype(np.float32)
    together = (found.T @ found / draws)[~np.eye(count, dtype=bool)]
    uniform = n * (n - 1) / (count * (count - 1))
    assert np.abs(together - uniform).max() < 5 * (uniform / draws) ** 0.5


def test_the_blocks_do_not_widen_the_spread_of_an_image_mean(tmp_path: Path) -> None:
    """On a smooth field, where neighbours resemble each other, against exact uniform draws."""
    rows, columns = np.mgrid[0:19, 0:32] / 5.0
    field = np.stack([np.sin(rows + phase) * np.cos(columns - phase) for phase in range(4)])
    with StoreWriter.create(tmp_path / "s", channels=4, dtype="float32") as writer:
        writer.add("a", field)
    store, rng = FeatureStore(tmp_path / "s"), np.random.default_rng(0)
    grids_GC = store.grids("a")
    ours = [store.sample("a", 100, rng).mean(0) for _ in range(2000)]
    exact = [grids_GC[rng.choice(608, 100, replace=False)].mean(0) for _ in range(2000)]
    np.testing.assert_allclose(np.mean(ours, 0), grids_GC.mean(0), atol=0.01)
    ratio = np.var(ours, 0).mean() / np.var(exact, 0).mean()
    assert 0.6 < ratio < 1.6


# What it costs


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each read that the store makes, from the system's own answers."""
    sizes: list[int] = []
    real = os.pread

    def counted(*arguments: Any) -> bytes:
        found = real(*arguments)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(os, "pread", counted)
    return sizes


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_hundred_of_608_grids_cost_a_fifth_of_the_bytes_at_most(
    tmp_path: Path, reads: list[int], dtype: str
) -> None:
    rng = np.random.default_rng(0)
    with StoreWriter.create(tmp_path / "s", channels=2048, dtype=dtype) as writer:
        writer.add("a", np.maximum(rng.standard_normal((2048, 19, 32)), 0).astype(np.float32))
    store = FeatureStore(tmp_path / "s")
    store.map("a")  # the shard's index is read once
    reads.clear()
    store.map("a")
    whole = sum(reads)
    assert whole > 300_000
    for _ in range(30):
        reads.clear()
        store.sample("a", 100, rng)
        assert 0 < sum(reads) <= 0.2 * whole


def test_small_maps_cost_small_bytes(tmp_path: Path, reads: list[int]) -> None:
    rng = np.random.default_rng(0)
    costs = {}
    with StoreWriter.create(tmp_path / "s", channels=256) as writer:
        for height, width in ((2, 3), (6, 8), (12, 16), (19, 32)):
            writer.add(f"{height * width}", rng.standard_normal((256, height, width)))
    store = FeatureStore(tmp_path / "s")
    store.map("6")
    for key in store.keys():  # noqa: SIM118 - a store is no dict
        reads.clear()
        store.map(key)
        costs[int(key)] = sum(reads)
    assert all(costs[grids] / grids < 1.2 * costs[608] / 608 for grids in costs)
