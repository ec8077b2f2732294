"""What an index or a shard's end says under a right checksum is read right, or is one error."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridvlp.store import DamagedMap, FeatureStore, StoreError, StoreWriter
from gridvlp.store.arrays import read_layout
from gridvlp.store.files import LocalFiles
from gridvlp.store.layout import checked_lines, digest
from gridvlp.store.packed_index import read_packed
from gridvlp.store.packed_index import write_packed as write_index
from gridvlp.store.shards import tail_bytes
from gridvlp.store.verification import verify
from tests.store import forge
from tests.store.forge import (
    FUZZ,
    ODD,
    assert_reads_what_the_index_says,
    assert_right_or_refused,
    columns,
    copy,
    write,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lies") / "whole")


# The index files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": [7, 20]}, "map of a does not begin at a chunk's first row"),
        ({"start": [0, 0]}, "map of b begins before the one before it ends"),
        ({"start": [20, 0]}, "map of b begins before"),
        ({"start": [60, 20]}, "map of b begins before"),
        ({"start": [0, 20470]}, "does not begin"),
        ({"start": [0, 20480]}, "a start is not from 0 to 20479"),
        ({"start": [0, 20460]}, "map of b crosses its shard's end"),
        ({"start": [0, -20]}, "a start is not from"),
        ({"start": [0, 20.0]}, "a start is not a whole number"),
        ({"start": [False, 20]}, "a start is not a whole number"),
        ({"start": [0, "20"]}, "a start is not a whole number"),
        ({"start": [0, 2**64]}, "a start is not from"),
        ({"start": [0]}, "columns have different lengths"),
        ({"start": {"0": 0}}, "are not arrays"),
        ({"start": None}, "are not arrays"),
        ({"height": [0, 7]}, "a height is not from 1 to 100"),
        ({"height": [21, 7]}, "map of a has more than 100 grids"),
        ({"height": [5, 7]}, "map of b begins before"),
        ({"height": [True, 7]}, "a height is not a whole number"),
        ({"width": [2**32 + 5, 9]}, "a width is not from"),
        ({"width": [5, 10**30]}, "a width is not from"),
        ({"key": ["", "b"]}, "a key is not text, or empty"),
        ({"key": ["a", 5]}, "a key is not text"),
        ({"key": "ab"}, "are not arrays"),
        ({"key": ["a", "b", "c"]}, "columns have different lengths"),
    ],
)
def test_a_map_that_cannot_be_where_the_index_says_is_named(
    whole: Path, change: dict[str, Any], message: str
) -> None:
    path = copy(whole, "lying")
    forge.write_columns(path, {**columns(path), **change})
    with pytest.raises(StoreError, match=rf"index/000000\.jsonl is damaged: .*{message}"):
        FeatureStore(path)
    with pytest.raises(StoreError, match=r"index/000000\.jsonl is damaged"):
        StoreWriter.open(path)


@pytest.mark.parametrize("content", ["[]", "5", "null", '"key"', "{}", "[" * 3000 + "]" * 3000])
def test_an_index_file_of_another_shape_is_refused(whole: Path, content: str) -> None:
    path = copy(whole, "lying")
    check = json.dumps({"crc32c": google_crc32c.value(content.encode())})
    (path / "index" / "000001.jsonl").write_text(f"{content}\n{check}\n")
    (path / "index.bin").unlink()
    with pytest.raises(StoreError, match=r"index/000001\.jsonl is damaged"):
        FeatureStore(path)


def test_a_shard_of_a_number_that_cannot_be_is_refused(whole: Path) -> None:
    path = copy(whole, "lying")
    (path / "index" / f"{10**18}.jsonl").write_bytes(checked_lines({}))
    with pytest.raises(StoreError, match="no shard can be so high"):
        FeatureStore(path)


@FUZZ
@given(data=st.data())
def test_any_change_of_an_index_file_is_refused_or_reads_right(whole: Path, data: Any) -> None:
    path = copy(whole, "lying")
    shard = data.draw(st.integers(0, 2))
    entry = columns(path, shard)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(["key", "start", "height", "width", "arrays", "facts"]))
        if name in ("arrays", "facts") or not isinstance(entry[name], list):
            entry[name] = data.draw(ODD)
        elif data.draw(st.booleans()):
            place = data.draw(st.integers(0, max(len(entry[name]) - 1, 0)))
            entry[name][place : place + 1] = [data.draw(ODD)]
        else:
            entry[name] = data.draw(st.lists(st.integers(0, 120), max_size=3))
    forge.write_columns(path, entry, shard)
    assert_reads_what_the_index_says(path)


# The packed index


@pytest.fixture(scope="module")
def packed(whole: Path) -> bytes:
    return (whole / "index.bin").read_bytes()[:-4]


@FUZZ
@given(data=st.data())
def test_any_packed_index_under_a_right_checksum_is_read_right_or_refused(
    whole: Path, packed: bytes, data: Any
) -> None:
    """Where it cannot be true, the shards' own files are read in its place."""
    path = copy(whole, "lying")
    kind = data.draw(st.sampled_from(["numbers", "bytes", "random", "cut"]))
    content = bytearray(packed)
    if kind == "numbers":  # one of the 64-bit numbers: lengths, hashes, starts, ends, shards
        place = 40 + 8 * data.draw(st.integers(0, 20))
        content[place : place + 8] = data.draw(
            st.sampled_from([0, 1, 7, 20, 2**32, 2**62, 2**63, 2**64 - 1, 2**64 - 20])
        ).to_bytes(8, "little")
    elif kind == "bytes":
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] = data.draw(st.integers(0, 255))
    elif kind == "random":
        content[40:] = data.draw(st.binary(max_size=400))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    forge.write_packed(path, bytes(content))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read = assert_reads_what_the_index_says(path)
    if any("index.bin is damaged" in str(warning.message) for warning in said):
        assert read == 5
    elif content != packed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert verify(FeatureStore(path))  # which compares it with the shards' own files


def lie(**columns: Any) -> Any:
    """A change of a packed index: of each column the function that makes the new one."""
    return lambda index: replace(
        index, **{name: change(getattr(index, name).copy()) for name, change in columns.items()}
    )


def put(place: int, value: int) -> Any:
    def change(column: np.ndarray) -> np.ndarray:
        column[place] = value
        return column

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lie(starts=put(4, 20480)), "map of e is in a shard that|begins before"),
        (lie(starts=put(4, 3 * 20480)), "map of e is in a shard that the index does not list"),
        (lie(starts=put(4, 2**64 - 20)), "map of e is in a shard that the index does not list"),
        (lie(shards=put(0, 1)), "shards are not in ascending order"),
        (lie(shards=put(2, 7)), "map of e is in a shard that the index does not list"),
        (lie(shards=put(2, 2**63)), "a shard has too high a number"),
        (lie(starts=put(0, 7)), "map of a does not begin at a chunk's first row"),
        (lie(starts=put(1, 0)), "map of b begins before"),
        (lie(starts=put(1, 20460)), "map of b crosses its shard's end"),
        (lie(heights=put(0, 0)), "map of a has no grids"),
        (lie(heights=put(0, 2**32 - 1), widths=put(0, 2**32 - 1)), "map of a has more than 100"),
        (lie(heights=put(2, 21)), "map of c begins|map of d begins"),
        (lie(key_ends=put(0, 0)), "a key is empty"),
        (lie(key_ends=put(1, 1)), "a key is empty"),
        (lie(key_ends=put(4, 2**63)), "keys have another length"),
        (lie(key_bytes=put(1, 0xFF)), "a key is not UTF-8"),
        (lie(key_bytes=put(1, 0x80)), "a key is not UTF-8"),
        (lie(hashes=lambda hashes: hashes[::-1]), "hashes of its keys are not in ascending order"),
        (lie(places=put(0, 5)), "a hash belongs to no map"),
        (lie(places=put(0, 2**32 - 1)), "a hash belongs to no map"),
        (lie(places=lambda places: places * 0), "a map has no hash"),
    ],
)
def test_a_packed_index_that_cannot_be_true_is_not_believed(
    whole: Path, change: Any, message: str
) -> None:
    path = copy(whole, "lying")
    files = LocalFiles(path)
    layout = read_layout(files)
    write_index(path, change(read_packed(files, layout)), layout)
    with pytest.warns(UserWarning, match=rf"index\.bin is damaged \(.*({message})"):
        store = FeatureStore(path)
    assert store.keys() == list("abcde")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert assert_right_or_refused(path) == 5
    assert "index.bin is damaged" in verify(store)[f"{path}/index.bin"]


def test_hashes_of_other_keys_are_noticed_by_verify(whole: Path) -> None:
    path = copy(whole, "lying")
    files = LocalFiles(path)
    layout = read_layout(files)
    write_index(path, lie(hashes=put(0, 0))(read_packed(files, layout)), layout)
    assert assert_right_or_refused(path) == 4  # of the fifth it says that there is none
    assert "differ" in verify(FeatureStore(path))[f"{path}/index.bin"]


def test_a_packed_index_that_lacks_or_adds_a_shard_costs_no_map(whole: Path) -> None:
    path = copy(whole, "lying")
    (path / "index" / "000002.jsonl").unlink()
    assert FeatureStore(path).keys() == ["a", "b", "c", "d"]
    StoreWriter.open(path).close()
    few = (path / "index.bin").read_bytes()
    other = copy(whole, "other")
    (other / "index.bin").write_bytes(few)
    assert assert_right_or_refused(other) == 5


# The shards' own ends


@FUZZ
@given(data=st.data())
def test_any_tail_that_the_index_names_is_read_right_or_refused(whole: Path, data: Any) -> None:
    """The digest and the checksum fit; the places and the chunks' checksums are lies."""
    path = copy(whole, "lying")
    file = path / "grids/c/0/0"
    content = file.read_bytes()
    size = tail_bytes(1024, has_checks=True)
    tail = bytearray(content[-size:])
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):  # an offset or a length of the chunks that are there
            place = 4096 + 8 * data.draw(st.integers(0, 11))
            number = data.draw(
                st.one_of(
                    st.sampled_from([0, 1, 2**31, 2**62, 2**63, 2**64 - 1, len(content)]),
                    st.integers(0, len(content)),
                )
            )
            tail[place : place + 8] = number.to_bytes(8, "little")
        else:
            place = data.draw(st.integers(0, 19))
            tail[place] = data.draw(st.integers(0, 255))
    tail[-4:] = google_crc32c.value(bytes(tail[4096:-4])).to_bytes(4, "little")
    file.write_bytes(content[:-size] + tail)
    entry = columns(path)
    entry["arrays"]["grids"]["tail"] = digest(bytes(tail)).hex()
    forge.write_columns(path, entry)
    assert assert_right_or_refused(path) >= 3


def test_a_chunk_larger_than_it_can_be_is_not_even_read(whole: Path) -> None:
    path = copy(whole, "lying")
    file = path / "grids/c/0/0"
    content = file.read_bytes()
    size = tail_bytes(1024, has_checks=True)
    tail = bytearray(content[-size:])
    tail[4096:4112] = (0).to_bytes(8, "little") + (100_000).to_bytes(8, "little")
    tail[-4:] = google_crc32c.value(bytes(tail[4096:-4])).to_bytes(4, "little")
    file.write_bytes(bytes(200_000) + tail)
    entry = columns(path)
    entry["arrays"]["grids"] = {"bytes": 200_000 + size, "tail": digest(bytes(tail)).hex()}
    forge.write_columns(path, entry)
    with pytest.raises(DamagedMap, match="a chunk that cannot be"):
        FeatureStore(path).map("a")


def test_facts_that_are_not_an_object_for_each_map_are_refused(whole: Path) -> None:
    for facts in ([], [{}], [{}, 5], {}, None, [[], []], 5):
        path = copy(whole, "lying")
        content = checked_lines(facts)
        (path / "facts/000000.jsonl").write_bytes(content)
        forge.write_columns(path, {**columns(path), "facts": digest(content).hex()})
        store = FeatureStore(path)
        with pytest.raises(StoreError, match=r"facts/000000\.jsonl .*an object for each map"):
            store.record("a")
        assert set(verify(store)) == {"a", "b"}
