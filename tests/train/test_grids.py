"""Stores of every type through training: the numbers that are stored are those that are read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gridvlp.store import FeatureStore, StoreWriter
from gridvlp.store.numbers import DTYPES
from gridvlp.train.grids import read_grids
from gridvlp.train.pretraining import pretrain
from tests.squares import CHANNELS, write_store
from tests.train.test_endurance import losses, silent

LARGE = 3e6  # beyond float16, which ends at 65,504


def copy(source, path, dtype, **larger):
    """The maps of a store in another type; those named are scaled."""
    store = FeatureStore(source)
    with StoreWriter.create(
        path, channels=CHANNELS, max_grids=16, dtype=dtype, encoder=store.encoder
    ) as writer:
        for key in store.keys():  # noqa: SIM118 - a store is no dict
            writer.add(key, store.map(key) * larger.get(f"of_{key}", 1.0))
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", [None, 3])
def test_the_grids_of_a_batch_are_the_stores_own_numbers(squares, tmp_path, dtype, sample):
    store = FeatureStore(copy(squares / "store.zarr", tmp_path / "s", dtype))
    keys = ["000000000001", "000000000040"]
    seen = read_grids(store, keys, sample, [1])
    assert seen["grids_IGC"].dtype == (torch.float16 if dtype == "float16" else torch.float32)
    for image, key in enumerate(keys):
        stored = {row.tobytes() for row in store.grids(key, np.float32)}
        rows = seen["grids_IGC"][image][seen["grid_mask_IG"][image]].float().numpy()
        assert len(rows) == (len(store.grids(key)) if sample is None else sample)
        assert {row.tobytes() for row in rows} <= stored


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_numbers_beyond_float16_stay_numbers(squares, tmp_path, dtype):
    key = "000000000001"
    path = copy(squares / "store.zarr", tmp_path / "s", dtype, of_000000000001=LARGE)
    largest = read_grids(FeatureStore(path), [key], None, [])["grids_IGC"].max()
    assert torch.isfinite(largest)
    assert largest == pytest.approx(
        LARGE * FeatureStore(squares / "store.zarr").map(key).max(), rel=0.01
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "float32"])
def test_a_store_of_another_type_trains_as_one_of_float16(options, squares, tmp_path, dtype):
    options = replace(options, dropout=0.0)
    pretrain(options, silent)
    other = replace(
        options,
        features=(copy(squares / "store.zarr", tmp_path / "s", dtype),),
        run=tmp_path / "other",
    )
    pretrain(other, silent)
    assert losses(other.run) == pytest.approx(losses(options.run), rel=0.05)


def test_a_store_of_regions_keeps_its_numbers(tmp_path):
    write_store(tmp_path / "regions", kind="regions")
    seen = read_grids(FeatureStore(tmp_path / "regions"), ["000000000001"], None, [])
    assert seen["boxes_IG4"].dtype == torch.float32
    assert seen["grids_IGC"].dtype == torch.float16
