"""The index, packed or not, finds the same maps, and a packed one that is wrong is not believed."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridvlp.store import FeatureStore, StoreWriter, canonical_key
from gridvlp.store.layout import checked_lines
from gridvlp.store.map_index import index_columns, key_hash
from gridvlp.store.verification import verify
from tests.store.test_faults import C, assert_holds, grid_map, write


def add(path: Path, seeds: range) -> None:
    with StoreWriter.open(path) as writer:
        for seed in seeds:
            writer.add(f"photo{seed}", grid_map(seed), seed=seed)
            writer.flush()


def unpacked(path: Path) -> list[tuple[str, int, int, int]]:
    """What the index files of the shards say, read without gridvlp."""
    rows = []
    for file in sorted((path / "index").glob("*.jsonl")):
        maps = json.loads(file.read_text().splitlines()[0])
        rows += zip(maps["key"], maps["height"], maps["width"], maps["start"], strict=True)
    return rows


@settings(max_examples=50, deadline=None)
@given(keys=st.lists(st.text(min_size=1), unique_by=canonical_key, max_size=40))
def test_every_key_is_found_and_no_other(keys: list[str]) -> None:
    sizes = range(1, len(keys) + 1)
    index = index_columns({0: b""}, keys, range(0, 20 * len(keys), 20), sizes, sizes)
    assert [key for key, _, _ in index.maps()] == keys
    for place, key in enumerate(keys):
        wanted = canonical_key(key)
        assert index.find(wanted, key_hash(wanted)) == place
        assert index.key(place) == key
    assert index.find("another", key_hash("another")) is None or "another" in keys


def test_two_keys_of_one_hash_are_told_apart() -> None:
    index = index_columns({0: b""}, ["a", "b"], [0, 20], [1, 2], [1, 2])
    same = key_hash("a")
    index.hashes[:] = same
    index.places[:] = [0, 1]
    assert index.find("a", same) == 0
    assert index.find("b", same) == 1
    assert index.find("c", same) is None


def test_the_packed_index_is_the_columns_of_the_shards(tmp_path: Path) -> None:
    write(tmp_path / "s", range(3))
    add(tmp_path / "s", range(3, 9))
    packed = FeatureStore(tmp_path / "s")
    (tmp_path / "s" / "index.bin").unlink()
    plain = FeatureStore(tmp_path / "s")
    said = [(key, height, width) for key, height, width, _ in unpacked(tmp_path / "s")]
    for store in (packed, plain):
        assert [(key, *store.shape(key)[1:]) for key in store.keys()] == said  # noqa: SIM118
        assert_holds(store, range(9))
    assert packed.fingerprint == plain.fingerprint


def test_shards_that_came_after_the_packing_are_read_too(tmp_path: Path) -> None:
    write(tmp_path / "s", range(3))
    old = (tmp_path / "s" / "index.bin").read_bytes()
    add(tmp_path / "s", range(3, 6))
    (tmp_path / "s" / "index.bin").write_bytes(old)  # as after a kill
    assert_holds(FeatureStore(tmp_path / "s"), range(6))
    add(tmp_path / "s", range(6, 7))
    assert (tmp_path / "s" / "index.bin").stat().st_size > len(old)
    assert_holds(FeatureStore(tmp_path / "s"), range(7))


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_changed_byte_of_the_packed_index_is_noticed_and_costs_no_map(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("packed") / "s"
    write(path, range(2))
    content = bytearray((path / "index.bin").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.sampled_from([len(content), place]))
    (path / "index.bin").write_bytes(content[:cut])
    with pytest.warns(UserWarning, match=r"index\.bin is damaged"):
        store = FeatureStore(path)
    assert_holds(store, range(2))
    (wrong,) = verify(store).values()
    assert "index.bin is damaged" in wrong
    with pytest.warns(UserWarning, match=r"index\.bin is damaged"):
        add(path, range(2, 3))
    assert verify(FeatureStore(path)) == {}
    assert_holds(FeatureStore(path), range(3))


def test_a_disk_that_is_full_for_the_packed_index_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write(tmp_path / "s", range(2))
    monkeypatch.setattr("gridvlp.store.index.pack_index", full)
    monkeypatch.setattr("gridvlp.store.writer.pack_index", full)
    add(tmp_path / "s", range(2, 4))
    assert_holds(FeatureStore(tmp_path / "s"), range(4))


def test_a_store_handed_on_shows_the_maps_that_it_showed_before(tmp_path: Path) -> None:
    write(tmp_path / "s", range(3))
    store = FeatureStore(tmp_path / "s")
    handed = pickle.dumps(store)
    add(tmp_path / "s", range(3, 5))
    copy = pickle.loads(handed)
    assert_holds(copy, range(3))
    assert copy.fingerprint == store.fingerprint
    assert "photo3" not in copy
    assert len(FeatureStore(tmp_path / "s")) == 5


def test_opening_holds_nothing_per_map(tmp_path: Path) -> None:
    """A store of many maps takes no more memory than one of few, but for mapped pages."""
    import tracemalloc

    from gridvlp.store.index import pack_index

    write(tmp_path / "s", range(1))
    lines = (tmp_path / "s" / "index" / "000000.jsonl").read_text().splitlines()
    columns = json.loads(lines[0])
    same = {name: columns[name] for name in ("store", "facts", "arrays")}
    rows = json.loads((tmp_path / "s" / "grids" / "zarr.json").read_text())["chunk_grid"]
    shard_rows = rows["configuration"]["chunk_shape"][0]
    used = []
    for shards in (1, 40):
        for number in range(1, shards):
            many = {
                "key": [f"{number}-{n}" for n in range(1000)],
                "start": [number * shard_rows + 20 * n for n in range(1000)],
                "height": [1] * 1000,
                "width": [1] * 1000,
                **same,
            }
            file = tmp_path / "s" / "index" / f"{number:06}.jsonl"
            file.write_bytes(checked_lines(many))
        pack_index(tmp_path / "s")
        tracemalloc.start()
        store = FeatureStore(tmp_path / "s")
        assert store.shape(columns["key"][0]) == (C, columns["height"][0], columns["width"][0])
        used.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert len(store) == 39_001
    assert used[1] - used[0] < 3 * 39_001  # the names of folders and a bit for each map while open
    np.testing.assert_array_equal(store.map("photo0"), grid_map(0))


def test_other_files_in_the_folders_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, range(2))
    for name in ("notes.txt", "000000 (copy).jsonl", "1.jsonl", "0000001.jsonl", ".DS_Store"):
        (path / "index" / name).write_text("mine")
        (path / "facts" / name).write_text("mine")
    assert_holds(FeatureStore(path), range(2))
    assert verify(FeatureStore(path)) == {}
    add(path, range(2, 3))
    assert_holds(FeatureStore(path), range(3))
