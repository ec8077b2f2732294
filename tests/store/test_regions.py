"""Stores of regions: features with boxes, classes and scores, in the order of adding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridvlp.store import DamagedMap, FeatureStore, StoreError, StoreWriter
from gridvlp.store.verification import verify

C = 12


def regions(seed: int, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "grid_map": rng.integers(0, 99, (C, 1, count)).astype(np.float32),
        "boxes_N4": np.sort(rng.random((count, 2, 2), np.float32), axis=1).reshape(count, 4),
        "classes_N": rng.integers(0, 1600, count),
        "scores_N": rng.random(count, np.float32),
    }


def begin(path: Path, **options: Any) -> StoreWriter:
    return StoreWriter.create(path, channels=C, max_grids=100, kind="regions", **options)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=st.lists(st.integers(1, 100), min_size=1, max_size=6),
    known=st.sets(st.sampled_from(["classes_N", "scores_N"])),
    flush_after=st.integers(0, 5),
)
def test_regions_come_back_as_they_were_added(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], known: set[str], flush_after: int
) -> None:
    path = tmp_path_factory.mktemp("regions") / "s"
    with begin(path) as writer:
        for i, count in enumerate(counts):
            written = regions(i, count)
            given = {k: v for k, v in written.items() if k in known | {"boxes_N4"}}
            writer.add(str(i), written["grid_map"], **given, source=f"{i}.jpg")
            if i == flush_after:
                writer.flush()
    store = FeatureStore(path)
    assert store.kind == "regions"
    for i, count in enumerate(counts):
        written, found = regions(i, count), store.regions(str(i))
        np.testing.assert_array_equal(found.features_NC, written["grid_map"][:, 0].T)
        np.testing.assert_array_equal(found.boxes_N4, written["boxes_N4"])
        for name in ("classes_N", "scores_N"):
            if name in known:
                np.testing.assert_array_equal(getattr(found, name), written[name])
            else:
                assert getattr(found, name) is None
        np.testing.assert_array_equal(store.map(str(i)), written["grid_map"])
        assert store.shape(str(i)) == (C, 1, count)
        assert store.record(str(i)) == {"source": f"{i}.jpg"}
    assert verify(store) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes_N4": None}, "boxes_N4"),
        ({"boxes_N4": np.zeros((4, 4))}, r"\(5, 4\)"),
        ({"boxes_N4": np.full((5, 4), 30.0)}, "fractions"),
        ({"boxes_N4": np.full((5, 4), np.nan)}, "fractions"),
        ({"boxes_N4": np.tile([0.5, 0.5, 0.4, 0.9], (5, 1))}, "x1 <= x2"),
        ({"classes_N": np.zeros(4, int)}, r"\(5,\)"),
        ({"classes_N": np.full(5, -1)}, "classes"),
        ({"classes_N": np.zeros(5)}, "integers"),
        ({"classes_N": np.array(["cat"] * 5)}, "classes"),
        ({"scores_N": np.zeros((5, 1))}, r"\(5,\)"),
        ({"scores_N": np.full(5, np.inf)}, "finite"),
        ({"grid_map": np.zeros((C, 5, 1), np.float32)}, r"1, N"),
        ({"grid_map": np.zeros((C, 1, 101), np.float32)}, "101"),
    ],
)
def test_bad_regions_are_refused_and_the_next_are_taken(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with begin(tmp_path / "s") as writer:
        with pytest.raises(StoreError, match=message) as caught:
            writer.add("photo7", **{**regions(0, 5), **change})
        assert "photo7" in str(caught.value)
        writer.add("photo7", **regions(0, 5))
    assert FeatureStore(tmp_path / "s").keys() == ["photo7"]


def test_grids_and_regions_do_not_mix(tmp_path: Path) -> None:
    with StoreWriter.create(tmp_path / "grids", channels=C, max_grids=100) as writer:
        with pytest.raises(StoreError, match="store of grids"):
            writer.add("a", **regions(0, 5))
        writer.add("a", regions(0, 5)["grid_map"])
    grids = FeatureStore(tmp_path / "grids")
    assert grids.kind == "grids"
    with pytest.raises(StoreError, match="holds grids"):
        grids.regions("a")
    begin(tmp_path / "regions").close()
    with pytest.raises(StoreError, match="kind: 'grids' and 'regions'"):
        FeatureStore([tmp_path / "grids", tmp_path / "regions"])
    with pytest.raises(StoreError, match="grids or regions"):
        StoreWriter.create(tmp_path / "bad", kind="boxes")


@pytest.mark.parametrize("name", ["grids", "boxes", "classes", "scores"])
def test_a_changed_byte_of_any_array_is_named(tmp_path: Path, name: str) -> None:
    with begin(tmp_path / "s") as writer:
        for i in range(3):
            writer.add(f"photo{i}", **regions(i, 36))
    (file,) = (f for f in (tmp_path / "s" / name / "c").rglob("*") if f.is_file())
    whole = file.read_bytes()
    noticed = 0
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        store = FeatureStore(tmp_path / "s")
        damaged = verify(store)
        noticed += bool(damaged)
        for i in range(3):
            if f"photo{i}" in damaged:
                with pytest.raises(DamagedMap, match=f"photo{i}"):
                    store.regions(f"photo{i}")
            else:
                found, written = store.regions(f"photo{i}"), regions(i, 36)
                np.testing.assert_array_equal(found.boxes_N4, written["boxes_N4"])
                np.testing.assert_array_equal(found.classes_N, written["classes_N"])
                np.testing.assert_array_equal(found.scores_N, written["scores_N"])
    assert noticed > 20
