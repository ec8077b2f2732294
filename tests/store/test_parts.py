"""Several writers fill one store at the same time, each a part of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gridvlp.store import FeatureStore, StoreError, StoreWriter
from tests.store.test_faults import C, assert_holds, grid_map, write

PARTS = 3

WRITE = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_faults import C, grid_map
from gridvlp.store import StoreWriter

path, k, n, count = Path(sys.argv[2]), *map(int, sys.argv[3:])
sys.stdin.readline()  # all begin at once
with StoreWriter.create(path, channels=C, part=(k, n), exist_ok=True) as writer:
    for seed in range(k, count, n):
        if f"photo{seed}" not in writer:
            writer.add(f"photo{seed}", grid_map(seed), seed=seed)
            if seed // n % 2:
                writer.flush()
                print("flushed", seed, flush=True)
"""


def writing(path: Path, part: int, count: int, parts: int = PARTS) -> subprocess.Popen[str]:
    arguments = [str(Path(__file__).parent), str(path), str(part), str(parts), str(count)]
    return subprocess.Popen(
        [sys.executable, "-c", WRITE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_equals_one_writer(path: Path, count: int, tmp_path: Path) -> None:
    found, alone = FeatureStore(path), write(tmp_path / "alone", range(count))
    assert sorted(found.keys()) == sorted(alone.keys())
    assert found.fingerprint == alone.fingerprint
    for seed in range(count):
        np.testing.assert_array_equal(found.map(f"photo{seed}"), grid_map(seed))
        assert found.record(f"photo{seed}") == {"seed": seed}
    group: Any = zarr.open_group(path, mode="r")
    last = max(int(file.stem) for file in (path / "index").glob("*.jsonl"))
    assert group["grids"].shape[0] == (last + 1) * group["grids"].shards[0]


@pytest.mark.slow
def test_parts_that_begin_at_once_make_the_store_of_one_writer(tmp_path: Path) -> None:
    count = 24
    writers = [writing(tmp_path / "s", part, count) for part in range(PARTS)]
    time.sleep(1.5)  # all have imported what they need and wait
    for process in writers:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in writers:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert_equals_one_writer(tmp_path / "s", count, tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".new")] == []


@pytest.mark.slow
def test_a_part_is_killed_again_and_again_while_the_others_write(tmp_path: Path) -> None:
    path, count = tmp_path / "s", 60
    StoreWriter.create(path, channels=C).close()
    others = [writing(path, part, count) for part in range(1, PARTS)]
    for process in others:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for attempt in range(4):
        victim = writing(path, 0, count)
        assert victim.stdin is not None
        assert victim.stdout is not None
        victim.stdin.write("\n")
        victim.stdin.flush()
        victim.stdout.readline()
        time.sleep(0.003 * attempt)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        for key in FeatureStore(path).keys():  # noqa: SIM118 - a store is no dict
            np.testing.assert_array_equal(FeatureStore(path).map(key), grid_map(int(key[5:])))
    for process in [*others, writing(path, 0, count)]:
        _, errors = process.communicate("\n" if process not in others else None, timeout=120)
        assert process.returncode == 0, errors
    assert_equals_one_writer(path, count, tmp_path)


def test_each_part_takes_the_shards_of_its_own_and_gaps_are_filled(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, range(2))  # shard 0
    one = StoreWriter.open(path, part=(1, 3))
    two = StoreWriter.open(path, part=(2, 3))
    for seed in (2, 3):
        two.add(f"photo{seed}", grid_map(seed), seed=seed)
        two.flush()
    one.add("photo4", grid_map(4), seed=4)
    one.flush()
    one.close()
    two.close()
    assert [file.name for file in sorted((path / "index").glob("*.jsonl"))] == [
        "000000.jsonl", "000001.jsonl", "000002.jsonl", "000005.jsonl",
    ]  # fmt: skip
    with StoreWriter.open(path) as writer:
        for seed in (5, 6, 7):
            writer.add(f"photo{seed}", grid_map(seed), seed=seed)
            writer.flush()
    store = FeatureStore(path)
    assert store.keys() == [f"photo{seed}" for seed in (0, 1, 4, 2, 5, 6, 3, 7)]
    for seed in range(8):
        np.testing.assert_array_equal(store.map(f"photo{seed}"), grid_map(seed))
        assert store.record(f"photo{seed}") == {"seed": seed}


def test_a_part_sees_what_the_others_have_added(tmp_path: Path) -> None:
    path = tmp_path / "s"
    StoreWriter.create(path, channels=C).close()
    with StoreWriter.open(path, part=(0, 2)) as writer:
        writer.add("photo0", grid_map(0), seed=0)
        writer.flush()
        with StoreWriter.open(path, part=(1, 2)) as other:
            assert "photo0" in other
            assert "photo1" not in other


def test_writers_that_would_collide_are_told_who_is_there(tmp_path: Path) -> None:
    path = tmp_path / "s"
    me = f"process {os.getpid()}"
    with (
        StoreWriter.create(path, channels=C),
        pytest.raises(StoreError, match=f"another process \\({me}"),
    ):
        StoreWriter.open(path, part=(0, 2))
    first, second = (StoreWriter.open(path, part=(k, 2)) for k in range(2))
    for options, message in (
        ({}, f"in 2 parts, first by {me}"),
        ({"part": (2, 3)}, "in 2 parts.*write a part of 2"),
        ({"part": (1, 2)}, f"Part 1 of 2 .*{me}"),
    ):
        with pytest.raises(StoreError, match=message):
            StoreWriter.open(path, **options)  # type: ignore[arg-type]
    first.close()
    with pytest.raises(StoreError, match="in 2 parts"):
        StoreWriter.open(path)  # the second still writes
    second.close()
    StoreWriter.open(path, part=(2, 3)).close()
    StoreWriter.open(path).close()


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0)])
def test_a_part_that_cannot_be_is_refused(tmp_path: Path, part: tuple[int, int]) -> None:
    StoreWriter.create(tmp_path / "s", channels=C).close()
    with pytest.raises(StoreError, match="no part"):
        StoreWriter.open(tmp_path / "s", part=part)


def test_create_goes_on_with_a_store_only_if_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, range(3))
    with StoreWriter.create(path, channels=C, exist_ok=True) as writer:
        assert len(writer) == 3
        writer.add("photo3", grid_map(3), seed=3)
    assert_holds(FeatureStore(path), range(4))
    for other in ({"channels": C + 1}, {"dtype": "float32"}, {"kind": "regions"}):
        with pytest.raises(StoreError, match=f"was made with {next(iter(other))}"):
            StoreWriter.create(path, **{"channels": C, **other}, exist_ok=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="no feature store"):
        StoreWriter.create(tmp_path / "file", channels=C, exist_ok=True)
    StoreWriter.open(path).close()  # no lock was left behind


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_is_write_protected_is_said_in_a_sentence(tmp_path: Path) -> None:
    write(tmp_path / "s", range(1))
    (tmp_path / "s").chmod(0o555)
    with pytest.raises(StoreError, match="cannot be written"):
        StoreWriter.open(tmp_path / "s")
