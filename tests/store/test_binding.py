"""No file of another store, or of another time, is taken for one of this store."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gridvlp.store import DamagedMap, FeatureStore, StoreError, StoreWriter
from gridvlp.store.verification import verify
from tests.store import forge
from tests.store.forge import SIZES, assert_right_or_refused, columns, copy, grid_map, write


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and others that differ from it in one thing each."""
    folder = tmp_path_factory.mktemp("bound")
    write(folder / "own")
    write(folder / "values", add=1)  # other numbers
    write(folder / "order", keys="baedc")
    write(folder / "recipe", encoder={"name": "other"})
    write(folder / "most", max_grids=101)
    return folder


@pytest.fixture
def own(stores: Path, tmp_path: Path) -> Path:
    shutil.copytree(stores / "own", tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize("other", ["values", "order"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_shard_of_another_store_is_named_by_map_sample_and_verify(
    stores: Path, own: Path, other: str, is_packed: bool
) -> None:
    if not is_packed:
        (own / "index.bin").unlink()
    shutil.copy(stores / other / "grids/c/0/0", own / "grids/c/0/0")
    store = FeatureStore(own)
    for key in "ab":
        for read in (store.map, store.grids, store.sample, store.check):
            why = r"(it is not the file that index/000000\.jsonl names|its file has .* bytes, not)"
            with pytest.raises(DamagedMap, match=rf"map of {key} .*grids/c/0/0: {why}"):
                read(key)
    for key in "cde":
        np.testing.assert_array_equal(store.map(key), grid_map(key))
    assert sorted(verify(store)) == ["a", "b"]


def test_a_shard_under_another_number_is_refused(own: Path) -> None:
    shutil.copy(own / "grids/c/1/0", own / "grids/c/0/0")
    assert assert_right_or_refused(own) == 3
    shutil.copy(own / "facts/000001.jsonl", own / "facts/000000.jsonl")
    shutil.copy(own / "index/000001.jsonl", own / "index/000000.jsonl")
    (own / "index.bin").unlink()
    with pytest.raises(StoreError, match=r"000000\.jsonl is damaged: a start is not from 0"):
        FeatureStore(own)


@pytest.mark.parametrize("other", ["values", "order"])
def test_facts_of_another_store_are_refused(stores: Path, own: Path, other: str) -> None:
    shutil.copy(stores / other / "facts/000001.jsonl", own / "facts/000001.jsonl")
    store = FeatureStore(own)
    assert store.record("a") == {"photo": "a", "add": 0}
    for key in "cd":
        with pytest.raises(StoreError, match=r"facts/000001\.jsonl .*index/000001\.jsonl names"):
            store.record(key)
        np.testing.assert_array_equal(store.map(key), grid_map(key))
    assert sorted(verify(store)) == ["c", "d"]


@pytest.mark.parametrize("other", ["recipe", "most"])
def test_an_index_of_other_attributes_is_refused(stores: Path, own: Path, other: str) -> None:
    packed = (own / "index.bin").read_bytes()
    shutil.copy(stores / other / "index.bin", own / "index.bin")
    with pytest.warns(UserWarning, match=r"index\.bin is damaged \(it is of another store\)"):
        store = FeatureStore(own)
    assert any("of another store" in wrong for wrong in verify(store).values())
    (own / "index.bin").write_bytes(packed)
    shutil.copy(stores / other / "index/000000.jsonl", own / "index/000000.jsonl")
    assert any("other attributes" in wrong for wrong in verify(FeatureStore(own)).values())
    (own / "index.bin").unlink()
    with pytest.raises(StoreError, match=r"000000\.jsonl .*store of other attributes"):
        FeatureStore(own)


def test_a_packed_index_of_other_maps_gives_no_number_and_verify_names_it(
    stores: Path, own: Path
) -> None:
    shutil.copy(stores / "order" / "index.bin", own / "index.bin")
    assert assert_right_or_refused(own) == 0  # its digests are of other files
    wrong = verify(FeatureStore(own))
    assert "it and" in wrong[f"{own}/index.bin"]
    assert "differ" in wrong[f"{own}/index.bin"]


def test_a_whole_shard_of_a_store_made_alike_is_as_good(stores: Path, own: Path) -> None:
    """Its index file, its facts and its arrays together are right for their keys."""
    for name in ("grids/c/0/0", "facts/000000.jsonl", "index/000000.jsonl"):
        shutil.copy(stores / "order" / name, own / name)
    (own / "index.bin").unlink()
    store = FeatureStore(own)
    assert store.keys() == ["b", "a", "c", "d", "e"]
    assert assert_right_or_refused(own) == 5


@pytest.mark.parametrize(
    "change", [{"order_seed": 1}, {"max_grids": 1000}, {"encoder": {"name": "x"}}, {"new": 1}]
)
def test_attributes_that_were_changed_later_do_not_fit_the_index(own: Path, change: dict) -> None:
    forge.change_metadata(
        own / "zarr.json", lambda document: document["attributes"]["gridvlp"].update(change)
    )
    with (
        pytest.warns(UserWarning, match="of another store"),
        pytest.raises(StoreError, match=r"000000\.jsonl .*store of other attributes"),
    ):
        FeatureStore(own)


def test_chunks_that_were_exchanged_within_a_shard_are_noticed(own: Path) -> None:
    """The tail is right; two chunks of the same length have changed places."""
    path = own.with_name("alike")
    same = {"channels": 5, "max_grids": 100, "dtype": "float32"}
    with StoreWriter.create(path, **same) as writer:  # type: ignore[arg-type]
        rows = [np.full((5, 4, 5), value, np.float32) for value in (1, 2)]
        for key, map_CHW in zip("ab", rows, strict=True):
            writer.add(key, map_CHW)
    file = path / "grids/c/0/0"
    content = file.read_bytes()
    places = np.frombuffer(content[-20 * 1024 - 4 + 4 * 1024 : -4], "<u8").reshape(-1, 2)[:2]
    (first, size), (second, other_size) = places.tolist()
    assert size == other_size
    one, two = content[first : first + size], content[second : second + size]
    file.write_bytes(content.replace(one + two, two + one))
    store = FeatureStore(path)
    for key in "ab":
        with pytest.raises(DamagedMap, match="a chunk is not the one that its shard names"):
            store.map(key)


def test_a_file_that_grew_or_shrank_is_refused(own: Path) -> None:
    file = own / "grids/c/0/0"
    whole = file.read_bytes()
    for content in (whole + b"x", b"x" + whole, whole[1:], whole[:-1], whole + whole):
        file.write_bytes(content)
        store = FeatureStore(own)
        with pytest.raises(DamagedMap, match=f"has {len(content):,} bytes, not {len(whole):,}"):
            store.map("a")


def test_a_file_that_is_exchanged_while_it_is_read_gives_no_other_numbers(
    stores: Path, own: Path
) -> None:
    files = [(stores / name / "grids/c/0/0").read_bytes() for name in ("own", "values")]
    store, stop = FeatureStore(own), threading.Event()
    store.map("a")  # its tail is known from here on

    def exchange() -> None:
        turn = 0
        while not stop.is_set():
            new = own / "new"
            new.write_bytes(files[turn := 1 - turn])
            new.replace(own / "grids/c/0/0")

    outcomes = {"right": 0, "refused": 0}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(exchange)
        for _ in range(300):
            try:
                np.testing.assert_array_equal(store.map("b"), grid_map("b"))
                outcomes["right"] += 1
            except DamagedMap:
                outcomes["refused"] += 1
        stop.set()
        running.result()
    assert min(outcomes.values()) > 0


def test_regions_of_another_store_are_refused_array_by_array(tmp_path: Path) -> None:
    def make(path: Path, add: int) -> Path:
        with StoreWriter.create(path, channels=3, kind="regions", dtype="int8") as writer:
            for key, count in (("a", 5), ("b", 30)):
                boxes = np.linspace(0, 0.5 + add / 10, 4 * count).reshape(count, 4)
                classes = np.arange(count) + add
                map_CHW = np.arange(3 * count, dtype=np.float32).reshape(3, 1, count) ** (add + 1)
                writer.add(key, map_CHW, boxes, classes, classes / 2)
        return path

    first, second = make(tmp_path / "first", 0), make(tmp_path / "second", 1)
    for name in ("grids", "scales", "boxes", "classes", "scores"):
        mixed = copy(first, "mixed")
        (file,) = (file for file in (mixed / name / "c").rglob("*") if file.is_file())
        shutil.copy(second / file.relative_to(mixed), file)
        store = FeatureStore(mixed)
        for key in "ab":
            with pytest.raises(DamagedMap, match=f"{name}/c/0"):
                store.regions(key)
        assert sorted(verify(store)) == ["a", "b"]


def test_the_same_maps_make_the_same_bytes(stores: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again")
    for file in (stores / "own").rglob("*"):
        if file.is_file() and not file.name.startswith("."):
            assert (again / file.relative_to(stores / "own")).read_bytes() == file.read_bytes()


Lie = Callable[[dict], None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("store"), "other attributes"),
        (lambda entry: entry.pop("arrays"), r"arrays\.grids\.bytes is None"),
        (lambda entry: entry["arrays"].pop("grids"), r"arrays\.grids\.bytes is None"),
        (lambda entry: entry["arrays"]["grids"].update(bytes=True), "bytes is True"),
        (lambda entry: entry["arrays"]["grids"].update(bytes=-1), "bytes is -1"),
        (lambda entry: entry["arrays"]["grids"].update(bytes=2.0), "bytes is 2.0"),
        (lambda entry: entry["arrays"]["grids"].update(tail="AB"), "tail is 'AB'"),
        (lambda entry: entry["arrays"]["grids"].update(tail=None), "tail is None"),
        (lambda entry: entry.update(arrays=[1]), "bytes is None"),
        (lambda entry: entry.pop("facts"), "facts is None"),
        (lambda entry: entry.update(facts="g" * 32), "not 32 hex digits"),
    ],
)
def test_an_index_file_that_does_not_name_its_files_is_refused(
    own: Path, change: Lie, message: str
) -> None:
    entry = columns(own)
    change(entry)
    forge.write_columns(own, entry)
    with pytest.raises(StoreError, match=rf"000000\.jsonl is damaged: .*{message}"):
        FeatureStore(own)
    with pytest.raises(StoreError, match=r"000000\.jsonl is damaged"):
        StoreWriter.open(own)


def test_a_length_that_is_a_lie_reads_nothing_else(own: Path) -> None:
    for size in (0, 1, 100, 2**53):
        entry = columns(own)
        entry["arrays"]["grids"]["bytes"] = size
        forge.write_columns(own, entry)
        assert assert_right_or_refused(own) == 3


def test_sizes_are_those_of_the_maps(own: Path) -> None:
    store = FeatureStore(own)
    assert {key: store.shape(key)[1:] for key in store.keys()} == SIZES  # noqa: SIM118
