"""Metadata under a right checksum are read right, or are one error that says both values."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from gridvlp.store import FeatureStore, StoreError, StoreWriter
from gridvlp.store.layout import sealed
from tests.store import forge
from tests.store.forge import (
    FUZZ,
    ODD,
    C,
    assert_right_or_refused,
    columns,
    copy,
    write,
)
from tests.store.test_format import z


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lies") / "whole")


# The arrays' and the group's metadata


GROUP = [
    ({"channels": 0}, "channels is 0, not a whole number from 1 to"),
    ({"channels": 10**12}, "channels is 1000000000000, not"),
    ({"channels": 5.0}, "channels is 5.0, not"),
    ({"channels": True}, "channels is True, not"),
    ({"channels": "5"}, "channels is '5', not"),
    ({"channels": None}, "channels is None, not"),
    ({"channels": 6}, r"shape is \[61440, 5\], not \[61440, 6\]"),
    ({"max_grids": 0}, "max_grids is 0, not"),
    ({"max_grids": 2**20, "channels": 2**19}, "bytes; a map has at most"),
    ({"chunk_grids": 0}, "chunk_grids is 0, not"),
    ({"chunk_grids": -20}, "chunk_grids is -20, not"),
    ({"chunk_grids": 40}, r"chunk_shape is \[20, 5\], not \[40, 5\]"),
    ({"chunk_grids": 7}, "its shards have 20480 rows, its chunks 7"),
    ({"order_seed": -1}, "order_seed is -1, not"),
    ({"order_seed": 2**64}, "order_seed is 18446744073709551616, not"),
    ({"order_seed": None}, "order_seed is None, not"),
    ({"kind": "boxes"}, "kind is 'boxes', not grids or regions"),
    ({"kind": None}, "kind is None, not"),
    ({"kind": ["grids"]}, r"kind is \['grids'\], not"),
    ({"kind": "regions"}, r"boxes/zarr\.json is damaged: it is missing"),
    ({"dtype": "float64"}, "dtype is 'float64', not float16 or"),
    ({"dtype": {}}, "dtype is {}, not"),
    ({"dtype": "float16"}, "data_type is 'float32', not 'float16'"),
    ({"dtype": "int8"}, "data_type is 'float32', not 'uint8'"),
    ({"encoder": None}, "encoder is None, not an object"),
    ({"encoder": "x152"}, "encoder is 'x152', not an object"),
    ({"encoder": [1]}, r"encoder is \[1\], not an object"),
]


@pytest.mark.parametrize(("change", "message"), GROUP)
def test_attributes_out_of_range_or_unlike_the_arrays_are_named(
    whole: Path, change: dict[str, Any], message: str
) -> None:
    path = copy(whole, "lying")
    forge.change_metadata(
        path / "zarr.json", lambda document: document["attributes"]["gridvlp"].update(change)
    )
    for opened in (FeatureStore, StoreWriter.open):
        with pytest.raises(StoreError, match=message) as caught:
            opened(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["kind", "dtype", "channels", "max_grids", "encoder"])
def test_an_attribute_that_is_missing_is_named(whole: Path, name: str) -> None:
    path = copy(whole, "lying")
    forge.change_metadata(
        path / "zarr.json", lambda document: document["attributes"]["gridvlp"].pop(name)
    )
    with pytest.raises(StoreError, match=f"{name} is None"):
        FeatureStore(path)


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize("levels", [33, 500, 100_000])
def test_attributes_that_are_nested_deeply_are_one_error(whole: Path, levels: int) -> None:
    path = copy(whole, "lying")
    text = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(text.replace('"encoder": {}', f'"encoder": {nested(levels)}'))
    with pytest.raises(StoreError, match=r"is damaged|not a gridvlp"):
        FeatureStore(path)
    (path / "zarr.json").write_text(text)
    (path / "grids" / "zarr.json").write_text(nested(levels))
    with pytest.raises(StoreError, match=r"grids/zarr\.json is damaged"):
        FeatureStore(path)


def at(document: Any, field: str, value: Any) -> None:
    *names, last = [int(name) if name.isdigit() else name for name in field.split(".")]
    for name in names:
        document = document[name]
    document[last] = value


INNER = "codecs.0.configuration"
ARRAY = [
    ("zarr_format", 2),
    ("node_type", "group"),
    ("data_type", "float16"),
    ("data_type", "uint32"),
    ("data_type", None),
    ("shape", [61440]),
    ("shape", [61440, 5, 1]),
    ("shape", [-1, 5]),
    ("shape", [2**60, 5]),
    ("shape", [61440.0, 5]),
    ("shape", "61440"),
    ("chunk_grid", None),
    ("chunk_grid.name", "rectangular"),
    ("chunk_grid.configuration.chunk_shape", [0, 5]),
    ("chunk_grid.configuration.chunk_shape", [20481, 5]),
    ("chunk_grid.configuration.chunk_shape", [20480, 1]),
    ("chunk_grid.configuration.chunk_shape", [2**40 * 20, 5]),
    ("chunk_key_encoding.name", "v2"),
    ("chunk_key_encoding.configuration.separator", "."),
    ("codecs", []),
    ("codecs", None),
    (f"{INNER}.chunk_shape", [40, 5]),
    (f"{INNER}.chunk_shape", [True, 5]),
    (f"{INNER}.index_location", "start"),
    (f"{INNER}.codecs.0.configuration.endian", "big"),
    (f"{INNER}.codecs.0.name", "transpose"),
    (f"{INNER}.codecs.1.name", "zstd"),
    (f"{INNER}.codecs.1.configuration.cname", "lz4"),
    (f"{INNER}.codecs.1.configuration.shuffle", "bitshuffle"),
    (f"{INNER}.codecs.1.configuration.typesize", 2),
    (f"{INNER}.codecs", [{"name": "bytes", "configuration": {"endian": "little"}}]),
    (f"{INNER}.index_codecs", [{"name": "bytes", "configuration": {"endian": "little"}}]),
    (f"{INNER}.index_codecs.0.configuration.endian", "big"),
    ("storage_transformers", [{"name": "x"}]),
]


@pytest.mark.parametrize(("field", "value"), ARRAY)
def test_metadata_of_an_array_that_say_another_coding_are_refused(
    whole: Path, field: str, value: Any
) -> None:
    path = copy(whole, "lying")
    forge.change_metadata(path / "grids/zarr.json", lambda document: at(document, field, value))
    with pytest.raises(StoreError, match=r"grids/zarr\.json is damaged: .*(is .*, not|chunks)"):
        FeatureStore(path)


def test_every_array_of_regions_is_checked_and_has_shards_of_as_many_chunks(tmp_path: Path) -> None:
    StoreWriter.create(tmp_path / "s", channels=3, kind="regions", dtype="int8").close()
    for name in ("scales", "boxes", "classes", "scores"):
        file = tmp_path / "s" / name / "zarr.json"
        whole = file.read_bytes()
        forge.change_metadata(file, lambda document: at(document, "data_type", "float64"))
        with pytest.raises(StoreError, match=rf"{name}/zarr\.json is damaged: data_type"):
            FeatureStore(tmp_path / "s")
        file.write_bytes(whole)
        shape = "chunk_grid.configuration.chunk_shape.0"
        forge.change_metadata(file, lambda document: at(document, shape, 200))  # noqa: B023
        with pytest.raises(StoreError, match=rf"{name}/zarr\.json .* chunks, those of grids"):
            FeatureStore(tmp_path / "s")
        file.unlink()
        with pytest.raises(StoreError, match=rf"{name}/zarr\.json is damaged: it is missing"):
            FeatureStore(tmp_path / "s")
        file.write_bytes(whole)
    assert len(FeatureStore(tmp_path / "s")) == 0


def test_metadata_without_a_checksum_are_refused(whole: Path) -> None:
    for name in ("zarr.json", "grids/zarr.json"):
        path = copy(whole, "lying")
        document = json.loads((path / name).read_text())
        del document["attributes"]["gridvlp"]["crc32c"]
        (path / name).write_text(json.dumps(document))
        with pytest.raises(StoreError, match="its checksum is missing"):
            FeatureStore(path)


def places_in(document: Any, prefix: tuple = ()) -> list[tuple]:
    """Every place in a JSON value."""
    children: Any = ()
    if isinstance(document, dict):
        children = document.items()
    elif isinstance(document, list):
        children = enumerate(document)
    found = [prefix] if prefix else []
    for name, value in children:
        found += places_in(value, (*prefix, name))
    return found


@FUZZ
@given(data=st.data())
def test_any_change_of_metadata_under_a_right_checksum_is_refused_or_reads_right(
    whole: Path, data: Any
) -> None:
    path = copy(whole, "lying")
    file = path / data.draw(st.sampled_from(["zarr.json", "grids/zarr.json"]))
    document = json.loads(file.read_text())
    *above, last = data.draw(st.sampled_from(places_in(document)))
    value = document
    for name in above:
        value = value[name]
    if data.draw(st.booleans()) and isinstance(value, dict):
        del value[last]
    else:
        value[last] = data.draw(ODD)
    try:
        file.write_bytes(sealed(document))
    except (TypeError, AttributeError):  # nowhere to put the checksum
        file.write_text(json.dumps(document))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_right_or_refused(path)


# The order of the grids


def test_the_order_is_that_of_the_stores_own_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written and read under several seeds; by plain Zarr and the page's formula, too."""
    for seed in (0, 1, 2**53 + 1, 2**64 - 1):
        monkeypatch.setattr("gridvlp.store.creation.ORDER_SEED", seed)
        path = write(tmp_path / str(seed))
        monkeypatch.undo()
        assert assert_right_or_refused(path) == 5
        with StoreWriter.open(path) as writer:  # goes on in the same order
            writer.add("late", forge.grid_map("d"))
        np.testing.assert_array_equal(FeatureStore(path).map("late"), forge.grid_map("d"))
        grids = zarr.open_array(path / "grids", mode="r", zarr_format=3)
        (start,) = columns(path, 1)["start"][1:]  # of d
        order = sorted(range(60), key=lambda g: z(g, seed))
        expected_GC = forge.grid_map("d").reshape(C, -1).T[order]
        np.testing.assert_array_equal(grids[start : start + 60], expected_GC)


def test_regions_of_another_seed_keep_boxes_and_features_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gridvlp.store.creation.ORDER_SEED", 5)
    numbers = np.arange(50, dtype=np.float32)
    with StoreWriter.create(tmp_path / "s", channels=1, kind="regions") as writer:
        boxes_N4 = np.repeat(numbers[:, None] / 50, 4, 1)
        writer.add("a", numbers.reshape(1, 1, 50), boxes_N4, numbers.astype(int), numbers)
    monkeypatch.undo()
    found = FeatureStore(tmp_path / "s").regions("a")
    np.testing.assert_array_equal(found.features_NC[:, 0], numbers)
    np.testing.assert_array_equal(found.boxes_N4, boxes_N4.astype(np.float32))
    np.testing.assert_array_equal(found.classes_N, numbers.astype(int))
    np.testing.assert_array_equal(found.scores_N, numbers)
