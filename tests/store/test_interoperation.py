"""A store is plain Zarr v3: other implementations open it and read the same numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridvlp.store import FeatureStore, StoreWriter
from gridvlp.store.layout import ORDER_SEED, grid_order
from gridvlp.store.numbers import DTYPES

C = 24
SIZES = {"a": (19, 32), "b": (1, 1), "c": (7, 3)}


def make(path: Path, dtype: str = "float16", kind: str = "grids") -> None:
    rng = np.random.default_rng(0)
    with StoreWriter.create(path, channels=C, dtype=dtype, kind=kind) as writer:
        for key, (height, width) in SIZES.items():
            if kind == "regions":
                height, width = 1, height * width
            map_CHW = np.maximum(rng.standard_normal((C, height, width)), 0).astype(np.float32)
            if kind == "regions":
                corners = np.sort(rng.random((width, 2, 2)), axis=1).reshape(width, 4)
                writer.add(
                    key,
                    map_CHW,
                    boxes_N4=corners.astype(np.float32),
                    classes_N=rng.integers(0, 1600, width),
                    scores_N=rng.random(width).astype(np.float32),
                )
            else:
                writer.add(key, map_CHW)
            if key == "b":
                writer.flush()


def open_zarr(path: Path, name: str) -> Any:
    import zarr

    return zarr.open_array(path / name, mode="r", zarr_format=3)


def open_tensorstore(path: Path, name: str) -> Any:
    tensorstore = pytest.importorskip("tensorstore")
    where = {"driver": "file", "path": str(path / name)}
    return tensorstore.open({"driver": "zarr3", "kvstore": where}, read=True).result()


def open_xarray(path: Path, name: str) -> Any:
    xarray = pytest.importorskip("xarray")
    with pytest.warns(Warning, match="Zarr hierarchy"):  # index/ and facts/ are no Zarr arrays
        return xarray.open_zarr(path, consolidated=False, mask_and_scale=False)[name]


READERS = [open_zarr, open_tensorstore, open_xarray]


def rows_of(path: Path) -> dict[str, slice]:
    """Where the maps lie, from the index files."""
    rows = {}
    for file in (path / "index").glob("*.jsonl"):
        maps = json.loads(file.read_text().splitlines()[0])
        for key, start, height, width in zip(
            maps["key"], maps["start"], maps["height"], maps["width"], strict=True
        ):
            rows[key] = slice(start, start + height * width)
    return rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reader", READERS)
def test_others_read_the_same_maps(tmp_path: Path, reader: Any, dtype: str) -> None:
    make(tmp_path / "s", dtype)
    store, grids = FeatureStore(tmp_path / "s"), reader(tmp_path / "s", "grids")
    rows = rows_of(tmp_path / "s")
    assert set(rows) == set(SIZES)
    for key, part in rows.items():
        stored_GC = np.asarray(grids[part])
        if dtype == "bfloat16":
            ml_dtypes = pytest.importorskip("ml_dtypes")
            stored_GC = stored_GC.view(ml_dtypes.bfloat16)
        elif dtype == "int8":
            chunk = part.start // 20
            (scales,) = np.asarray(reader(tmp_path / "s", "scales")[chunk : chunk + 1])
            scale_C, offset_C = scales.astype(np.float32)
            stored_GC = scale_C * stored_GC + offset_C
        own_GC = store.grids(key)
        np.testing.assert_array_equal(
            stored_GC.astype(np.float32), own_GC[grid_order(len(own_GC), ORDER_SEED)]
        )


@pytest.mark.parametrize("reader", READERS)
def test_others_read_the_same_regions(tmp_path: Path, reader: Any) -> None:
    make(tmp_path / "s", kind="regions")
    store = FeatureStore(tmp_path / "s")
    arrays = {n: reader(tmp_path / "s", n) for n in ("grids", "boxes", "classes", "scores")}
    for key, part in rows_of(tmp_path / "s").items():
        own = store.regions(key)
        order = grid_order(len(own.boxes_N4), ORDER_SEED)
        for name, values in (
            ("grids", own.features_NC),
            ("boxes", own.boxes_N4),
            ("classes", own.classes_N),
            ("scores", own.scores_N),
        ):
            assert values is not None
            found = np.asarray(arrays[name][part])
            np.testing.assert_array_equal(found.astype(values.dtype), values[order])


def test_the_dimensions_have_names(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    make(tmp_path / "s", kind="regions")
    with pytest.warns(Warning, match="Zarr hierarchy"):
        found = xarray.open_zarr(tmp_path / "s", consolidated=False)
    assert found["grids"].dims == ("row", "channel")
    assert found["boxes"].dims == ("row", "corner")
    assert found["classes"].dims == found["scores"].dims == ("row",)
    assert found.attrs["gridvlp"]["kind"] == "regions"
