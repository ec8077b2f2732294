"""What a user relies on when a store is written and read undisturbed."""

import errno
import json
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridvlp.errors import UserError
from gridvlp.store import (
    DamagedMap,
    DuplicateKey,
    FeatureStore,
    MapError,
    StoreError,
    StoreUnreachable,
    StoreWriter,
    canonical_key,
)

C = 8


def grid_map(seed: int, height: int, width: int, channels: int = C) -> np.ndarray:
    """A map whose values float16 holds exactly."""
    rng = np.random.default_rng(seed)
    return rng.integers(-2048, 2049, (channels, height, width)).astype(np.float32)


def numbered(height: int, width: int) -> np.ndarray:
    """A map in which grid g holds g in each channel."""
    grids = np.arange(height * width, dtype=np.float32).reshape(1, height, width)
    return np.repeat(grids, C, axis=0)


def write(path: Path, maps: dict[str, np.ndarray], **options: Any) -> FeatureStore:
    with StoreWriter.create(path, channels=options.pop("channels", C), **options) as writer:
        for key, map_CHW in maps.items():
            writer.add(key, map_CHW)
    return FeatureStore(path)


def bytes_read() -> int:
    """Bytes that read() and its kin gave this process, whichever language called them."""
    counters = Path("/proc/self/io")
    if not counters.is_file():
        pytest.skip("the kernel does not count reads here")
    return int(counters.read_text().splitlines()[0].split()[1])


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


# What comes back


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.tuples(st.integers(1, 32), st.integers(1, 19)), min_size=1, max_size=6),
    channels=st.sampled_from([1, 3, 64]),
    dtype=st.sampled_from(["float16", "float32"]),
    flush_after=st.integers(0, 5),
    backwards=st.booleans(),
)
def test_a_store_gives_back_what_was_put_in(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[tuple[int, int]],
    channels: int,
    dtype: str,
    flush_after: int,
    backwards: bool,
) -> None:
    path = tmp_path_factory.mktemp("round") / "store"
    maps = {
        str(i): np.random.default_rng(i).standard_normal((channels, *size)).astype(np.float32)
        for i, size in enumerate(sizes)
    }
    with StoreWriter.create(path, channels=channels, dtype=dtype) as writer:
        for i, (key, map_CHW) in enumerate(maps.items()):
            writer.add(key, map_CHW)
            if i == flush_after:
                writer.flush()
    store = FeatureStore(path)
    assert store.keys() == list(maps)
    assert len(store) == len(maps)
    for key in reversed(maps) if backwards else maps:
        expected = maps[key].astype(dtype)
        back = store.map(key)
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, expected.astype(np.float32))
        assert store.shape(key) == back.shape == maps[key].shape
        half = store.map(key, dtype=np.float16)
        assert half.dtype == np.float16
        np.testing.assert_array_equal(half, expected.astype(np.float16))
        np.testing.assert_array_equal(store.grids(key), back.reshape(channels, -1).T)


def test_maps_fill_shards_one_after_another(tmp_path: Path) -> None:
    maps = {f"k{i}": np.full((C, 19, 32), i, np.float32) for i in range(70)}
    store = write(tmp_path / "s", maps)
    assert len(list((tmp_path / "s" / "index").glob("*.jsonl"))) > 1
    for i in range(70):
        np.testing.assert_array_equal(store.map(f"k{i}"), maps[f"k{i}"])


def test_a_map_of_zeros_comes_back_as_zeros(tmp_path: Path) -> None:
    store = write(tmp_path / "s", {"dark": np.zeros((C, 19, 32), np.float32)})
    assert not store.map("dark").any()
    assert store.sample("dark", 5).shape == (5, C)


def test_maps_of_float64_and_of_strided_arrays_are_taken(tmp_path: Path) -> None:
    map_HWC = np.random.default_rng(0).integers(0, 99, (5, 7, C)).astype(np.float64)
    store = write(tmp_path / "s", {"a": map_HWC.transpose(2, 0, 1)})
    np.testing.assert_array_equal(store.map("a"), map_HWC.transpose(2, 0, 1))


def test_the_writer_keeps_its_own_copy(tmp_path: Path) -> None:
    buffer = numbered(4, 5)
    with StoreWriter.create(tmp_path / "s", channels=C) as writer:
        writer.add("a", buffer)
        buffer[:] = -1
    np.testing.assert_array_equal(FeatureStore(tmp_path / "s").map("a"), numbered(4, 5))


def test_changing_what_was_read_changes_nothing_else(tmp_path: Path) -> None:
    store = write(tmp_path / "s", {"a": numbered(4, 5)})
    store.map("a")[:] = -1
    store.grids("a")[:] = -1
    store.sample("a", 100)[:] = -1
    np.testing.assert_array_equal(store.map("a"), numbered(4, 5))


# Samples


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    sizes = {"one": (1, 1), "odd": (7, 3), "mid": (10, 13), "full": (19, 32)}
    path = tmp_path_factory.mktemp("ragged") / "s"
    return write(path, {key: numbered(*size) for key, size in sizes.items()})


@settings(max_examples=60, deadline=None)
@given(
    key=st.sampled_from(["one", "odd", "mid", "full"]),
    n=st.integers(1, 700),
    seed=st.integers(0, 2**32),
)
def test_a_sample_is_distinct_grids_of_the_map(
    ragged: FeatureStore, key: str, n: int, seed: int
) -> None:
    _, height, width = ragged.shape(key)
    sample_GC = ragged.sample(key, n, np.random.default_rng(seed))
    assert sample_GC.shape == (min(n, height * width), C)
    assert sample_GC.dtype == np.float32
    assert (sample_GC == sample_GC[:, :1]).all()
    numbers = sample_GC[:, 0].astype(int)
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) <= set(range(height * width))
    again_GC = ragged.sample(key, n, np.random.default_rng(seed), dtype=np.float16)
    assert again_GC.dtype == np.float16
    np.testing.assert_array_equal(again_GC, sample_GC)


def test_a_sample_is_scattered_over_the_image(ragged: FeatureStore) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        rows, columns = np.divmod(ragged.sample("full", 100, rng)[:, 0].astype(int), 32)
        assert {0, 1, 2} == {row // 7 for row in rows}
        assert np.unique(columns // 8).tolist() == [0, 1, 2, 3]
        assert np.bincount(rows // 10, minlength=2).min() > 20


@pytest.mark.parametrize("key", ["one", "full"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_sample_of_no_grids_is_empty(ragged: FeatureStore, key: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    sample_GC = ragged.sample(key, 0, rng, dtype)
    assert sample_GC.shape == (0, C)
    assert sample_GC.dtype == dtype
    np.testing.assert_array_equal(  # and draws nothing
        ragged.sample(key, 5, rng), ragged.sample(key, 5, np.random.default_rng(0))
    )
    with pytest.raises(StoreError, match="no map of zebra"):
        ragged.sample("zebra", 0)


@pytest.mark.parametrize("n", [-1, -100, 1.5, 3.0, "3", None, np.float32(2), float("nan")])
def test_a_sample_of_what_is_no_number_of_grids_is_refused(ragged: FeatureStore, n: Any) -> None:
    with pytest.raises(StoreError, match=r"sample\(\) needs a whole number n of 0"):
        ragged.sample("full", n)
    assert len(ragged.sample("full", np.int64(3))) == 3


def test_samples_differ_without_a_generator(ragged: FeatureStore) -> None:
    drawn = {tuple(ragged.sample("full", 5)[:, 0]) for _ in range(20)}
    assert len(drawn) > 5


# What it costs


def test_small_maps_cost_in_proportion_on_disk_and_to_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def size(side: int) -> tuple[int, int]:
        path = tmp_path / str(side)
        maps = {
            str(i): rng.standard_normal((256, side, side)).astype(np.float32) for i in range(10)
        }
        store = write(path, maps, channels=256)
        store.map("0")
        before = bytes_read()
        store.map("1")
        read = bytes_read() - before
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()), read

    small, small_read = size(10)
    large, large_read = size(20)
    assert 2.5 < large / small < 5
    assert large_read > 2 * small_read


# Keys


def test_both_spellings_of_a_coco_name_find_the_map(tmp_path: Path) -> None:
    store = write(
        tmp_path / "s",
        {"COCO_val2014_000000262148": numbered(2, 3), "000000000009": numbered(3, 3)},
    )
    for key in ("COCO_val2014_000000262148", "000000262148", "COCO_train2014_000000262148"):
        assert key in store
        np.testing.assert_array_equal(store.map(key), numbered(2, 3))
    assert store.shape("COCO_train2014_000000000009") == (C, 3, 3)
    assert "262148" not in store
    assert 262148 not in store


@pytest.mark.parametrize(
    ("stem", "key"),
    [
        ("COCO_val2014_000000262148", "000000262148"),
        ("COCO_test2015_000000000001", "000000000001"),
        ("000000262148", "000000262148"),
        ("2345", "2345"),
        ("COCO_val2014_00000026214", "COCO_val2014_00000026214"),
        ("my_COCO_val2014_000000262148", "my_COCO_val2014_000000262148"),
        ("COCO_val2014_000000262148\n", "COCO_val2014_000000262148\n"),
        ("dev-10-0-img0", "dev-10-0-img0"),
    ],
)
def test_canonical_keys(stem: str, key: str) -> None:
    assert canonical_key(stem) == key
    assert canonical_key(key) == key


ODD_KEYS = ["../x", "/etc/passwd", "a b", "ключ", "🦓", "a\nb", 'q"uote', ".", "\udcff", "x" * 500]


def test_any_text_may_be_a_key_and_none_is_a_path(tmp_path: Path) -> None:
    maps = {key: np.full((C, 2, 2), i, np.float32) for i, key in enumerate(ODD_KEYS)}
    (tmp_path / "deep").mkdir()
    store = write(tmp_path / "deep" / "s", maps)
    assert store.keys() == ODD_KEYS
    for i, key in enumerate(ODD_KEYS):
        np.testing.assert_array_equal(store.map(key), np.full((C, 2, 2), i))
    assert len(store.fingerprint) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["s"]


def test_a_photo_is_taken_once_under_any_spelling(tmp_path: Path) -> None:
    with StoreWriter.create(tmp_path / "s", channels=C) as writer:
        writer.add("COCO_val2014_000000262148", numbered(2, 3))
        assert "000000262148" in writer
        for flushed in (False, True):
            with pytest.raises(DuplicateKey, match="000000262148"):
                writer.add("000000262148", numbered(2, 3))
            if not flushed:
                writer.flush()
        assert len(writer) == 1
    with StoreWriter.open(tmp_path / "s") as writer, pytest.raises(DuplicateKey):
        writer.add("COCO_train2014_000000262148", numbered(2, 3))
    assert len(FeatureStore(tmp_path / "s")) == 1


# What is refused


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((C + 1, 2, 2), np.float32), "shape"),
        (np.zeros((C, 4), np.float32), "shape"),
        (np.zeros((1, C, 2, 2), np.float32), "shape"),
        (np.zeros((C, 0, 2), np.float32), "shape"),
        (np.zeros((C, 21, 29), np.float32), "609 grids"),
        (np.full((C, 2, 2), np.nan, np.float32), "finite"),
        (np.full((C, 2, 2), np.inf, np.float32), "finite"),
        (np.full((C, 2, 2), 70000, np.float32), "float16"),
    ],
)
def test_a_bad_map_is_refused_and_the_next_is_taken(
    tmp_path: Path, bad: np.ndarray, message: str
) -> None:
    with StoreWriter.create(tmp_path / "s", channels=C) as writer:
        with pytest.raises(StoreError, match=message) as caught:
            writer.add("photo7", bad)
        assert "photo7" in str(caught.value)
        assert "photo7" not in writer
        writer.add("photo7", numbered(2, 2))
    assert FeatureStore(tmp_path / "s").keys() == ["photo7"]


def test_float32_stores_what_float16_cannot(tmp_path: Path) -> None:
    large = np.full((C, 2, 2), 70001.25, np.float32)
    store = write(tmp_path / "s", {"a": large}, dtype="float32")
    np.testing.assert_array_equal(store.map("a"), large)


@pytest.mark.parametrize("key", ["", None, 5, b"a", Path("a")])
def test_a_key_that_is_not_a_text_is_refused(tmp_path: Path, key: Any) -> None:
    with StoreWriter.create(tmp_path / "s", channels=C) as writer:
        with pytest.raises(MapError, match="A map's key is a text"):
            writer.add(key, numbered(2, 2))
        writer.add("a", numbered(2, 2))
    store = FeatureStore(tmp_path / "s")
    assert key not in store
    with pytest.raises(StoreError, match="There is no map of"):
        store.map(key)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_numbers_that_are_not_real_are_refused(tmp_path: Path, dtype: str) -> None:
    with StoreWriter.create(tmp_path / "s", channels=C, dtype=dtype) as writer:
        for bad in (numbered(2, 2) + 1j, numbered(2, 2).astype(object), numbered(2, 2).astype(str)):
            with pytest.raises(MapError, match="not real numbers"):
                writer.add("a", bad)
        writer.add("a", numbered(2, 2).astype(int))
    np.testing.assert_array_equal(FeatureStore(tmp_path / "s").map("a").argmax(1).shape, (C, 2))


def test_what_is_wrong_with_a_map_is_told_apart_from_what_is_wrong_with_the_store(
    tmp_path: Path,
) -> None:
    with StoreWriter.create(tmp_path / "s", channels=C) as writer:
        writer.add("a", numbered(2, 2))
        for key, bad, facts in (
            ("a", numbered(2, 2), {}),
            ("b", numbered(2, 2)[:3], {}),
            ("b", numbered(30, 30), {}),
            ("b", np.full((C, 1, 1), np.nan), {}),
            ("b", numbered(2, 2), {"x": {1, 2}}),
            ("b", numbered(2, 2), {"x": nested(10_000)}),
        ):
            with pytest.raises(MapError):
                writer.add(key, bad, **facts)
        with pytest.raises(DuplicateKey):
            writer.add("a", numbered(2, 2))
    for wrong in (
        lambda: StoreWriter.create(tmp_path / "s", channels=C),
        lambda: StoreWriter.open(tmp_path / "none"),
        lambda: FeatureStore(tmp_path / "none"),
    ):
        with pytest.raises(StoreError) as caught:
            wrong()
        assert not isinstance(caught.value, MapError)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EMFILE, StoreUnreachable),
        (errno.EACCES, StoreUnreachable),
        (errno.ESTALE, StoreUnreachable),
        (errno.ENOENT, DamagedMap),
        (errno.EIO, DamagedMap),
    ],
)
def test_a_disk_that_cannot_be_read_now_is_told_apart_from_a_damaged_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type
) -> None:
    store = write(tmp_path / "s", {"a": numbered(2, 2)})

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr("gridvlp.store.files.os.open", fail)
        with pytest.raises(kind, match=r"grids/c/0/0"):
            store.map("a")
    np.testing.assert_array_equal(store.map("a"), numbered(2, 2))


@pytest.mark.parametrize("facts", [{"path": Path("x")}, {"size": np.int64(3)}, {"r": float("nan")}])
def test_facts_that_json_cannot_hold_are_refused_at_once(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    with StoreWriter.create(tmp_path / "s", channels=C) as writer:
        with pytest.raises(StoreError, match="facts of a"):
            writer.add("a", numbered(2, 2), **facts)
        writer.add("b", numbered(2, 2))
    assert FeatureStore(tmp_path / "s").keys() == ["b"]


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 0},
        {"channels": 2**20 + 1},
        {"channels": 8.0},
        {"channels": True},
        {"max_grids": 0},
        {"max_grids": 2**20, "channels": 2048},
        {"dtype": "float64"},
        {"dtype": "float8"},
        {"kind": "boxes"},
        {"encoder": {"name": np.float32(1)}},
        {"encoder": {"mean": float("nan")}},
        {"encoder": {"deep": nested(40)}},
        {"encoder": {"deep": nested(10_000)}},
    ],
)
def test_a_store_is_not_begun_with_bad_settings(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(StoreError):
        StoreWriter.create(tmp_path / "s", **options)
    assert not list(tmp_path.iterdir())


def test_create_overwrites_nothing(tmp_path: Path) -> None:
    write(tmp_path / "s", {"a": numbered(2, 2)})
    with pytest.raises(StoreError, match="exists"):
        StoreWriter.create(tmp_path / "s", channels=C)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="exists"):
        StoreWriter.create(tmp_path / "file", channels=C)
    assert (tmp_path / "file").read_text() == "mine"
    assert FeatureStore(tmp_path / "s").keys() == ["a"]


def test_a_missing_map_names_key_and_store(tmp_path: Path) -> None:
    store = write(tmp_path / "s", {"a": numbered(2, 2)})
    for ask in (store.map, store.grids, store.sample, store.shape, store.record):
        with pytest.raises(StoreError, match="zebra") as caught:
            ask("zebra")
        assert str(tmp_path / "s") in str(caught.value)
        assert isinstance(caught.value, UserError)


def test_a_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="gridvlp extract"):
        FeatureStore(tmp_path / "none")
    with pytest.raises(StoreError, match="no feature store"):
        StoreWriter.open(tmp_path / "none")
    with pytest.raises(StoreError):
        FeatureStore([])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        '{"zarr_format": 3, "node_type": "group", "attributes": {}}',
        '{"zarr_format": 3, "node_type": "group"}',
        '{"zarr_format": 3, "node_type": "group", "attributes": {"gridvlp": 1}}',
        "not json",
        "[]",
    ],
)
def test_what_is_no_store_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match=str(tmp_path)):
        FeatureStore(tmp_path)
    with pytest.raises(StoreError, match=str(tmp_path)):
        StoreWriter.open(tmp_path)


def test_an_unknown_version_is_refused_by_both_sides(tmp_path: Path) -> None:
    write(tmp_path / "s", {"a": numbered(2, 2)})
    about = tmp_path / "s" / "zarr.json"
    content = json.loads(about.read_text())
    content["attributes"]["gridvlp"]["format_version"] = 99
    about.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="format 99"):
        FeatureStore(tmp_path / "s")
    with pytest.raises(StoreError, match="format 99"):
        StoreWriter.open(tmp_path / "s")


# What a store knows of itself


def test_facts_encoder_and_sizes_are_kept(tmp_path: Path) -> None:
    encoder = {"name": "x101", "weights_sha256": "ab" * 32, "resize": [600, 1000]}
    facts = {"source": "val2014/Zürich.jpg", "original_size": [480, 640]}
    with StoreWriter.create(tmp_path / "s", channels=C, encoder=encoder) as writer:
        writer.add("a", numbered(2, 2), **facts)
        writer.add("b", numbered(2, 2))
        assert writer.encoder == encoder
    store = FeatureStore(str(tmp_path / "s"))
    assert store.encoder == encoder
    assert store.channels == C
    assert store.record("a") == facts
    assert store.record("b") == {}


def test_the_fingerprint_follows_content_and_not_place(tmp_path: Path) -> None:
    maps = {"a": numbered(2, 2), "b": numbered(3, 2)}
    prints = {
        name: write(tmp_path / name, chosen, **options).fingerprint
        for name, chosen, options in [
            ("s", maps, {}),
            ("moved", maps, {}),
            ("fewer", {"a": maps["a"]}, {}),
            ("turned", {"a": maps["a"], "b": numbered(2, 3)}, {}),
            ("encoder", maps, {"encoder": {"name": "x152"}}),
        ]
    }
    assert prints["s"] == prints["moved"] == FeatureStore(tmp_path / "s").fingerprint
    assert len(set(prints.values())) == 4
    assert len(prints["s"]) == 64


# Several stores


def test_several_stores_read_as_one(tmp_path: Path) -> None:
    encoder = {"name": "x101", "weights_sha256": "1"}
    write(tmp_path / "coco", {"COCO_val2014_000000000009": numbered(2, 2)}, encoder=encoder)
    write(
        tmp_path / "vg",
        {"2345": numbered(3, 3), "000000000009": numbered(5, 5)},
        encoder=encoder,
    )
    store = FeatureStore([tmp_path / "coco", tmp_path / "vg"])
    assert len(store) == 2
    assert store.keys() == ["COCO_val2014_000000000009", "2345"]
    assert store.shape("000000000009") == (C, 2, 2)  # the first store named wins
    np.testing.assert_array_equal(store.map("2345"), numbered(3, 3))
    np.testing.assert_array_equal(store.map("000000000009"), numbered(2, 2))


ENCODER = {
    "name": "x101",
    "weights_sha256": "1",
    "resize": {"shorter": 600, "longest": 1000},
    "precision": "bfloat16",
    "pixel_mean": [103.53, 116.28, 123.675],
    "channel_order": "BGR",
}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"encoder": {**ENCODER, "name": "x152"}}, "encoder.name: 'x101' and 'x152'"),
        ({"encoder": {**ENCODER, "weights_sha256": "2"}}, "weights_sha256: '1' and '2'"),
        ({"encoder": {**ENCODER, "resize": {"shorter": 448}}}, "shorter: 600 and 448.*longest"),
        ({"encoder": {**ENCODER, "precision": "float32"}}, "precision: 'bfloat16' and 'float32'"),
        ({"encoder": {**ENCODER, "pixel_mean": [0, 0, 0]}}, r"pixel_mean: \[103.53.*\[0, 0, 0\]"),
        ({"encoder": {**ENCODER, "channel_order": "RGB"}}, "channel_order: 'BGR' and 'RGB'"),
        ({"encoder": {**ENCODER, "new": 1}}, "encoder.new: None and 1"),
        ({"encoder": {}}, "encoder.name"),
        ({"channels": 4}, "channels: 8 and 4"),
        ({"dtype": "float32"}, "dtype: 'float16' and 'float32'"),
        ({"kind": "regions"}, "kind: 'grids' and 'regions'"),
    ],
)
def test_stores_of_different_recipes_are_not_read_as_one(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    write(tmp_path / "a", {}, encoder=ENCODER)
    write(tmp_path / "b", {}, **{"encoder": ENCODER, **other})
    with pytest.raises(StoreError, match=message) as caught:
        FeatureStore([tmp_path / "a", tmp_path / "b"])
    assert str(tmp_path / "b") in str(caught.value)


def test_stores_that_differ_in_versions_and_in_max_grids_are_read_as_one(tmp_path: Path) -> None:
    write(tmp_path / "a", {"a": numbered(1, 1)}, encoder={**ENCODER, "versions": {"torch": "2"}})
    write(tmp_path / "b", {"b": numbered(1, 2)}, encoder=ENCODER, max_grids=30)
    both = FeatureStore([tmp_path / "a", tmp_path / "b"])
    assert both.keys() == ["a", "b"]
    assert both.recipe == FeatureStore(tmp_path / "b").recipe
    assert both.recipe_digest == FeatureStore(tmp_path / "a").recipe_digest


# Many readers


def test_a_writer_may_add_while_others_read(tmp_path: Path) -> None:
    with StoreWriter.create(tmp_path / "s", channels=C) as writer:
        assert len(FeatureStore(tmp_path / "s")) == 0
        writer.add("a", numbered(2, 2))
        writer.flush()
        early = FeatureStore(tmp_path / "s")
        np.testing.assert_array_equal(early.map("a"), numbered(2, 2))
        for i in range(5):
            writer.add(f"b{i}", numbered(3, 3))
            assert f"b{i}" not in FeatureStore(tmp_path / "s")  # it waits for its shard
            writer.flush()
            np.testing.assert_array_equal(early.map("a"), numbered(2, 2))
            assert early.keys() == ["a"]
            np.testing.assert_array_equal(FeatureStore(tmp_path / "s").map(f"b{i}"), numbered(3, 3))
    assert len(FeatureStore(tmp_path / "s")) == 6


def test_threads_share_one_store(tmp_path: Path) -> None:
    maps = {f"k{i}": grid_map(i, 10, 12) for i in range(12)}
    store = write(tmp_path / "s", maps)
    together = threading.Barrier(8)

    def read(worker: int) -> bool:
        together.wait(timeout=60)
        same = True
        for i in range(24):
            key = f"k{(i + worker) % 12}"
            same &= np.array_equal(store.map(key), maps[key])
            same &= store.sample(key, 30).shape == (30, C)
        return same

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.timeout(60)
def test_a_forked_child_reads_after_its_parent_did(tmp_path: Path) -> None:
    maps = {f"k{i}": grid_map(i, 19, 32) for i in range(3)}
    store = write(tmp_path / "s", maps)
    for key in maps:  # whatever pools of threads there are run now
        store.map(key)
        store.sample(key, 100)
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(20)  # a hang ends as a failure
        status = 1
        try:
            status = 0 if all(np.array_equal(store.map(k), maps[k]) for k in maps) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(store.map("k0"), maps["k0"])


def test_a_pickled_store_reads_and_carries_no_maps(tmp_path: Path) -> None:
    maps = {f"k{i}": grid_map(i, 19, 32, channels=64) for i in range(3)}
    store = write(tmp_path / "s", maps, channels=64)
    store.map("k1")
    pickled = pickle.dumps(store)
    assert len(pickled) < 10_000
    copy = pickle.loads(pickled)
    np.testing.assert_array_equal(copy.map("k1"), maps["k1"])
    assert copy.fingerprint == store.fingerprint


def test_every_float16_is_read_as_numpy_converts_it(tmp_path: Path) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].astype(np.float32)
    maps = finite[: len(finite) // 1024 * 1024].reshape(-1, 64, 4, 4)
    store = write(tmp_path / "s", {str(i): m for i, m in enumerate(maps)}, channels=64)
    for i, map_CHW in enumerate(maps):
        found = store.map(str(i))
        np.testing.assert_array_equal(found.view(np.uint32), map_CHW.view(np.uint32))
        assert store.map(str(i), dtype=np.float16).dtype == np.float16


def test_a_larger_max_grids_than_the_store_was_made_for_is_refused(tmp_path: Path) -> None:
    StoreWriter.create(tmp_path / "s", channels=C, max_grids=100).close()
    for fine in (1, 100):
        StoreWriter.create(tmp_path / "s", channels=C, max_grids=fine, exist_ok=True).close()
    with pytest.raises(StoreError, match="at most 100 grids, not 101"):
        StoreWriter.create(tmp_path / "s", channels=C, max_grids=101, exist_ok=True)
    StoreWriter.open(tmp_path / "s").close()  # no lock was left behind
