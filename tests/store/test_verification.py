"""Every damaged map is named, and no whole one is."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridvlp.store import DamagedMap, FeatureStore
from gridvlp.store.verification import verify
from tests.store.test_faults import grid_map, shards, write

MAPS = range(30)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "store.zarr"
    write(path, MAPS)
    return path


def test_a_whole_store_has_no_damaged_map(whole):
    told = []
    assert verify(FeatureStore(whole), advance=told.append) == {}
    assert sum(told) == len(MAPS)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_changed_byte_is_named_or_changes_nothing(whole, data):
    (shard,) = shards(whole)
    original = shard.read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(original)
    changed[place] ^= 1 << bit
    shard.write_bytes(changed)
    try:
        store = FeatureStore(whole)
        damaged = verify(store)
        for seed in MAPS:
            if f"photo{seed}" in damaged:
                with pytest.raises(DamagedMap):
                    store.map(f"photo{seed}")
            else:
                np.testing.assert_array_equal(store.map(f"photo{seed}"), grid_map(seed))
    finally:
        shard.write_bytes(original)


@pytest.mark.parametrize("folder", ["index", "facts"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_changed_byte_of_the_index_or_the_facts_is_noticed(whole, folder, data):
    (file,) = (whole / folder).iterdir()
    original = file.read_bytes()
    changed = bytearray(original)
    changed[data.draw(st.integers(0, len(original) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(changed)
    try:
        if folder == "index":
            (wrong,) = verify(FeatureStore(whole)).values()
            assert "000000.jsonl is damaged" in wrong
        else:
            assert len(verify(FeatureStore(whole))) == len(MAPS)
    finally:
        file.write_bytes(original)


def test_a_lost_shard_damages_all_its_maps(tmp_path):
    write(tmp_path / "store.zarr", MAPS)
    shards(tmp_path / "store.zarr")[0].unlink()
    damaged = verify(FeatureStore(tmp_path / "store.zarr"))
    assert sorted(damaged) == sorted(f"photo{seed}" for seed in MAPS)
    assert "photo3" in damaged["photo3"]
