"""The figures of a store against a count of what was written."""

import numpy as np
import pytest

from gridvlp.store import FeatureStore, StoreWriter
from gridvlp.store.summary import summarize


def test_counts_and_statistics_are_those_of_the_maps(tmp_path):
    rng = np.random.default_rng(0)
    maps = {f"p{n}": np.maximum(rng.standard_normal((16, 2 + n % 3, 5)), 0) for n in range(9)}
    for grid_map in maps.values():
        grid_map[3] = 0
    with StoreWriter.create(tmp_path / "s.zarr", channels=16, encoder={"name": "test"}) as writer:
        for key, grid_map in maps.items():
            writer.add(key, grid_map)
    found = summarize(FeatureStore(tmp_path / "s.zarr"))
    values = np.concatenate([m.ravel() for m in maps.values()])
    assert (found.maps, found.shards, found.channels, found.dtype) == (9, 1, 16, "float16")
    assert found.grids == values.size // 16
    assert found.raw_bytes == 2 * values.size
    assert found.stored_bytes > 0
    assert sorted(found.sizes) == [(2, 5, 3), (3, 5, 3), (4, 5, 3)]
    assert found.sparsity == pytest.approx((values == 0).mean())
    assert found.mean == pytest.approx(values.mean(), rel=1e-3)
    assert found.maximum == pytest.approx(values.max(), rel=1e-3)
    assert found.dead_channels == 1
    text = "\n".join(found.lines())
    assert "encoder name" in text
    assert "2 x 5" in text


def test_an_empty_store_is_summed_up(tmp_path):
    StoreWriter.create(tmp_path / "s.zarr", channels=4).close()
    found = summarize(FeatureStore(tmp_path / "s.zarr"))
    assert (found.maps, found.grids, found.sampled) == (0, 0, 0)
    assert found.lines()
