"""What is kept of a number under each dtype, against torch's bfloat16 and a bound for int8."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gridvlp.store import DamagedMap, FeatureStore, StoreError, StoreWriter
from gridvlp.store.numbers import from_bfloat16, from_bytes, keep
from gridvlp.store.summary import summarize

torch = pytest.importorskip("torch")
C = 16

floats = st.floats(
    width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100
)


def relu_map(seed: int, height: int = 6, width: int = 7) -> np.ndarray:
    """Sparse numbers above zero, of a scale of its own in each channel."""
    rng = np.random.default_rng(seed)
    size = (C, height, width)
    return np.maximum(rng.standard_normal(size) * 10.0 ** rng.uniform(-3, 3, (C, 1, 1)), 0).astype(
        np.float32
    )


def write(path: Path, dtype: str, maps: dict[str, np.ndarray]) -> FeatureStore:
    with StoreWriter.create(path, channels=C, dtype=dtype) as writer:
        for key, map_CHW in maps.items():
            writer.add(key, map_CHW)
    return FeatureStore(path)


@given(arrays(np.float32, st.tuples(st.integers(1, 9), st.just(4)), elements=floats))
def test_bfloat16_is_rounded_as_torch_rounds(grids_GC: np.ndarray) -> None:
    found = from_bfloat16(keep("bfloat16", grids_GC)["grids"])
    expected = torch.from_numpy(grids_GC).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(found, expected)


def test_every_bfloat16_comes_back_exactly(tmp_path: Path) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    values = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    finite = values[np.isfinite(values)].reshape(-1, C, 15, 34)
    store = write(tmp_path / "s", "bfloat16", {str(i): m for i, m in enumerate(finite)})
    for i, map_CHW in enumerate(finite):
        np.testing.assert_array_equal(store.map(str(i)), map_CHW)
    assert store.stored_as == "bfloat16"
    assert store.dtype == np.float32


@settings(max_examples=60)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 30), st.just(5)),
        elements=st.floats(-60000, 60000, width=32),
    ),
    st.booleans(),
)
def test_int8_is_within_half_a_step_of_each_channel(grids_GC: np.ndarray, relu: bool) -> None:
    grids_GC = np.maximum(grids_GC, 0) if relu else grids_GC
    rows = keep("int8", grids_GC)
    found = from_bytes(rows["grids"], rows["scales"][0])
    high, low = np.maximum(grids_GC.max(0), 0), np.minimum(grids_GC.min(0), 0)
    # Half of a 127th of the range; the scale's and the offset's own rounding; the least scale.
    bound = (high - low) / 127 / 2 * 1.002 + np.abs(low) * 0.002 + 2.0**-24
    assert (np.abs(found - grids_GC) <= bound).all()
    if relu:
        np.testing.assert_array_equal(found[grids_GC == 0], 0)


def test_int8_of_a_store_is_what_plain_zarr_computes_by_the_page(tmp_path: Path) -> None:
    import zarr

    maps = {"a": relu_map(0), "b": relu_map(1, 19, 32), "signed": relu_map(2) - relu_map(3)}
    store = write(tmp_path / "s", "int8", maps)
    group: Any = zarr.open_group(tmp_path / "s", mode="r")
    columns = json.loads((tmp_path / "s/index/000000.jsonl").read_text().splitlines()[0])
    for key, start in zip(columns["key"], columns["start"], strict=True):
        map_CHW = maps[key]
        scale_C, offset_C = group["scales"][start // 20].astype(np.float32)
        rows = group["grids"][start : start + map_CHW[0].size] * scale_C + offset_C
        found = store.grids(key)
        assert {tuple(row) for row in rows} == {tuple(row) for row in found}
        step_C = map_CHW.reshape(C, -1).max(1) - np.minimum(map_CHW.reshape(C, -1).min(1), 0)
        error_C = np.abs(store.map(key) - map_CHW).reshape(C, -1).max(1)
        assert (error_C <= step_C / 127 * 0.51 + 2e-3 * np.abs(offset_C) + 1e-7).all()
        sample_GC = store.sample(key, 7, np.random.default_rng(0))
        assert {tuple(row) for row in sample_GC} <= {tuple(row) for row in found}


def test_int8_of_a_map_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    alone = write(tmp_path / "alone", "int8", {"a": relu_map(0)})
    many = write(tmp_path / "many", "int8", {"z": 100 * relu_map(5), "a": relu_map(0)})
    np.testing.assert_array_equal(alone.map("a"), many.map("a"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(tmp_path: Path, dtype: str, bad: float) -> None:
    map_CHW = relu_map(0)
    map_CHW[3, 2, 1] = bad
    with StoreWriter.create(tmp_path / "s", channels=C, dtype=dtype) as writer:
        with pytest.raises(StoreError, match=f"a has values that are not finite in {dtype}"):
            writer.add("a", map_CHW)
        writer.add("a", relu_map(0))
    assert FeatureStore(tmp_path / "s").keys() == ["a"]


def test_the_largest_numbers_are_refused_where_they_do_not_fit(tmp_path: Path) -> None:
    largest = np.full((C, 1, 1), np.finfo(np.float32).max)
    for dtype in ("float16", "bfloat16", "int8"):
        with (
            pytest.raises(StoreError, match=dtype),
            StoreWriter.create(tmp_path / dtype, channels=C, dtype=dtype) as writer,
        ):
            writer.add("a", largest)
    np.testing.assert_array_equal(
        write(tmp_path / "s", "float32", {"a": largest}).map("a"), largest
    )


def test_fewer_bits_take_fewer_bytes(tmp_path: Path) -> None:
    maps = {str(i): relu_map(i, 19, 32) for i in range(10)}
    sizes = {
        dtype: summarize(write(tmp_path / dtype, dtype, maps)).stored_bytes
        for dtype in ("float32", "float16", "bfloat16", "int8")
    }
    assert sizes["int8"] < sizes["bfloat16"] < sizes["float16"] < sizes["float32"]


def test_a_damaged_scale_is_named(tmp_path: Path) -> None:
    write(tmp_path / "s", "int8", {"a": relu_map(0), "b": relu_map(1)})
    (file,) = (f for f in (tmp_path / "s/scales/c").rglob("*") if f.is_file())
    whole = bytearray(file.read_bytes())
    whole[20] ^= 4
    file.write_bytes(whole)
    store = FeatureStore(tmp_path / "s")
    for read in (store.map, store.sample):
        with pytest.raises(DamagedMap, match="map of a "):
            read("a")
    store.map("b")
