"""Stores of format 4, as the release before wrote them, still open and say what they lack."""

import json
import pickle
import shutil
import tarfile
import warnings
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from click.testing import CliRunner

from gridvlp.cli import cli
from gridvlp.store import DamagedMap, FeatureStore, StoreError, StoreWriter
from gridvlp.store.layout import checked_lines
from gridvlp.store.verification import verify

SIZES = ((2, 3), (5, 9), (1, 1))
FINGERPRINTS = {  # as that release printed them
    "grids": "9cc95df352f3f6f74d6a2f7fec36dcb20aaaaf767abdf729a064ef36310353d6",
    "regions": "0a685af1103a286bc1d9ac0b32ea70d97538319516255bf7ed28aed12eb58771",
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with grids.zarr (float16) and regions.zarr (int8), two shards each."""
    with tarfile.open(Path(__file__).with_name("format_4.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def opened(path: Path) -> FeatureStore:
    with pytest.warns(UserWarning, match=r"has store format 4.*another store.*Extract again"):
        return FeatureStore(path)


def map_of(photo: int, kind: str) -> np.ndarray:
    height, width = SIZES[photo]
    if kind == "regions":
        height, width = 1, height * width
    return np.arange(3 * height * width, dtype=np.float32).reshape(3, height, width) + photo


@pytest.mark.parametrize("kind", ["grids", "regions"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_it_reads_as_it_did(old: Path, kind: str, is_packed: bool) -> None:
    path = old / f"{kind}.zarr"
    if not is_packed:
        (path / "index.bin").unlink()
    store = opened(path)
    assert store.fingerprint == FINGERPRINTS[kind]
    assert store.keys() == ["photo0", "photo1", "photo2"]
    assert store.format_versions == [4]
    assert store.encoder["versions"] == {"torch": "2.8"}
    assert "versions" not in store.recipe["encoder"]
    for photo, key in enumerate(store.keys()):
        step = 0.5 * map_of(photo, kind).max() / 127 if kind == "regions" else 0
        np.testing.assert_allclose(store.map(key), map_of(photo, kind), atol=step)
        assert store.record(key) == {"seed": photo}
    if kind == "regions":
        regions = store.regions("photo1")
        boxes_N4 = np.linspace(0, 1, 180, dtype=np.float32).reshape(45, 4)
        np.testing.assert_array_equal(regions.boxes_N4, boxes_N4)
        assert regions.classes_N is not None
        assert regions.classes_N.tolist() == list(range(45))
    assert verify(store) == {}


def test_it_says_once_what_it_cannot_promise(old: Path) -> None:
    store = opened(old / "grids.zarr")
    assert len(store.notes) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(pickle.dumps(store))  # workers need not repeat it
        StoreWriter.create(old / "new.zarr", channels=3).close()
        assert FeatureStore(old / "new.zarr").notes == []
    for command in ("verify", "inspect"):
        with pytest.warns(UserWarning, match="format 4"):
            shown = CliRunner().invoke(cli, [command, str(old / "grids.zarr")])
        assert shown.exit_code == 0, shown.output
        assert "a shard or a file of facts of another store" in shown.output


def test_nothing_is_added_to_it(old: Path) -> None:
    before = sorted(old.rglob("*"))
    for begin in (
        lambda: StoreWriter.open(old / "grids.zarr"),
        lambda: StoreWriter.open(old / "grids.zarr", part=(0, 2)),
        lambda: StoreWriter.create(old / "grids.zarr", channels=3, max_grids=60, exist_ok=True),
    ):
        with pytest.raises(StoreError, match="has store format 4, which is read and not added to"):
            begin()
    assert sorted(old.rglob("*")) == before


def test_it_is_read_as_one_with_a_new_store_of_its_recipe(old: Path) -> None:
    encoder = {"name": "old", "weights_sha256": "ab"}
    for name, other in (("same", {}), ("other", {"precision": "float32"})):
        with StoreWriter.create(old / name, channels=3, encoder={**encoder, **other}) as writer:
            writer.add("new", np.zeros((3, 1, 1), np.float32))
    with pytest.warns(UserWarning, match="format 4"):
        both = FeatureStore([old / "same", old / "grids.zarr"])
    assert both.keys() == ["new", "photo0", "photo1", "photo2"]
    assert both.format_versions == [5, 4]
    np.testing.assert_array_equal(both.map("photo1"), map_of(1, "grids"))
    with pytest.raises(StoreError, match=r"encoder\.precision: 'float32' and None"):
        FeatureStore([old / "other", old / "grids.zarr"])


def test_all_that_it_can_notice_is_noticed(old: Path) -> None:
    path = old / "grids.zarr"
    shard, index = path / "grids/c/0/0", path / "index/000000.jsonl"
    whole, line = shard.read_bytes(), index.read_bytes()
    shard.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(DamagedMap, match=r"photo0.*grids/c/0/0"):
        opened(path).map("photo0")
    shard.write_bytes(whole)
    (path / "index.bin").unlink()
    columns = json.loads(line.splitlines()[0])
    index.write_bytes(checked_lines({**columns, "start": [0, 7]}))
    with pytest.raises(StoreError, match=r"000000\.jsonl is damaged.*photo1 does not begin"):
        FeatureStore(path)
    index.write_bytes(checked_lines({**columns, "width": [3, 90]}))
    with pytest.raises(StoreError, match=r"000000\.jsonl is damaged.*not from 1 to 60"):
        FeatureStore(path)


def test_a_packed_index_of_the_other_format_is_not_believed(old: Path) -> None:
    path = old / "grids.zarr"
    with StoreWriter.create(old / "new", channels=3) as writer:
        writer.add("new", np.zeros((3, 1, 1), np.float32))
    shutil.copy(old / "new" / "index.bin", path)
    with pytest.warns(UserWarning, match=r"index\.bin is damaged \(it is of another"):
        assert len(FeatureStore(path)) == 3
    content = b"gvlpidx1" + (old / "new" / "index.bin").read_bytes()[8:-4]
    (path / "index.bin").write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))
    with pytest.warns(UserWarning, match=r"index\.bin is damaged"):
        assert len(FeatureStore(path)) == 3
