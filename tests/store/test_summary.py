"""The figures of a store against a count of what was written."""

import re

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
    by_channel = np.concatenate([m.reshape(16, -1) for m in maps.values()], 1)
    np.testing.assert_allclose(found.zeros_C, (by_channel == 0).mean(1))
    np.testing.assert_allclose(found.mean_C, by_channel.mean(1), rtol=1e-3)
    np.testing.assert_allclose(found.maximum_C, by_channel.max(1), rtol=1e-3)
    text = "\n".join(found.lines())
    assert "encoder name" in text
    assert re.search(r"2 x 5 +3 #+", text)
    assert re.search(rf"  maximum .*{found.maximum:.3g}\n", text)


def test_an_empty_store_is_summed_up(tmp_path):
    StoreWriter.create(tmp_path / "s.zarr", channels=4).close()
    found = summarize(FeatureStore(tmp_path / "s.zarr"))
    assert (found.maps, found.grids, found.sampled) == (0, 0, 0)
    assert found.lines()


def test_regions_are_counted_and_drawn_with_and_without_their_photo(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    from click.testing import CliRunner

    from gridvlp.cli import cli

    monkeypatch.chdir(tmp_path)
    image.new("RGB", (60, 40), "navy").save("a.png")
    boxes = [[0.1, 0.1, 0.5, 0.9], [0.4, 0.2, 0.9, 0.6], [0, 0, 1, 1]]
    with StoreWriter.create(tmp_path / "s.zarr", channels=4, kind="regions") as writer:
        more = {"classes_N": [3, 4, 5], "scores_N": [0.9, 0.8, 0.1]}
        writer.add("a", np.ones((4, 1, 3)), boxes, source="a.png", **more)
        writer.add("b", np.ones((4, 1, 3)), boxes, source="gone.png")
    assert "regions" in "\n".join(summarize(FeatureStore("s.zarr")).lines())
    for key in "ab":
        shown = CliRunner().invoke(cli, ["inspect", "s.zarr", "--image", key, "--picture", "p.png"])
        assert shown.exit_code == 0, shown.output
        assert ("is gone" in shown.output) == (key == "b")
        with image.open("p.png") as picture:
            assert picture.width > 400
        assert not list(tmp_path.glob(".*.tmp"))
