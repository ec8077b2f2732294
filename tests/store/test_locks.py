"""Writers without locks, with locks that others do not see, and writers that come back."""

import errno
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridvlp.store import FeatureStore, StoreError, StoreWriter
from gridvlp.store.layout import sealed
from gridvlp.store.locks import claim_shard, free_shard
from gridvlp.store.verification import verify
from tests.store.test_faults import C, assert_holds, grid_map, write


def add(writer: StoreWriter, seeds: range) -> None:
    """A shard for each."""
    for seed in seeds:
        writer.add(f"photo{seed}", grid_map(seed), seed=seed)
        writer.flush()


def assert_has(path: Path, seeds: range) -> None:
    store = FeatureStore(path)
    assert sorted(store.keys()) == sorted(f"photo{seed}" for seed in seeds)
    for seed in seeds:
        np.testing.assert_array_equal(store.map(f"photo{seed}"), grid_map(seed))
        assert store.record(f"photo{seed}") == {"seed": seed}
    assert verify(store) == {}


def no_locks(number: int) -> Any:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks that no one else sees, as flock on some network mounts."""
    monkeypatch.setattr("gridvlp.store.locks.fcntl.flock", lambda *_: None)


# No locks


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
@pytest.mark.parametrize("part", [None, (1, 2)])
def test_a_sole_writer_needs_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, part: Any
) -> None:
    monkeypatch.setattr("gridvlp.store.locks.fcntl.flock", no_locks(number))
    with (
        pytest.warns(UserWarning, match="has no locks.*second writer"),
        StoreWriter.create(tmp_path / "s", channels=C, part=part) as writer,
    ):
        add(writer, range(3))
    with pytest.warns(UserWarning, match="has no locks"), StoreWriter.open(tmp_path / "s") as other:
        add(other, range(3, 4))
    assert_has(tmp_path / "s", range(4))


def test_an_error_of_a_lock_that_is_no_lack_of_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "s", range(1))
    monkeypatch.setattr("gridvlp.store.locks.fcntl.flock", no_locks(errno.EIO))
    with pytest.raises(StoreError, match="cannot be written: Input/output error"):
        StoreWriter.open(tmp_path / "s")


def test_two_writers_without_locks_lose_and_mix_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gridvlp.store.locks.fcntl.flock", no_locks(errno.ENOSYS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = StoreWriter.create(tmp_path / "s", channels=C)
        second = StoreWriter.open(tmp_path / "s")
        for seed in range(0, 8, 2):
            add(first, range(seed, seed + 1))
            add(second, range(seed + 1, seed + 2))
        second.close()
        first.close()
    assert_has(tmp_path / "s", range(8))
    assert FeatureStore(tmp_path / "s").shards == 8


# Locks that others do not see


def test_a_writer_whose_number_was_taken_takes_the_next_and_says_so(
    tmp_path: Path, unseen: None
) -> None:
    first = StoreWriter.create(tmp_path / "s", channels=C)
    second = StoreWriter.open(tmp_path / "s")
    add(first, range(2))
    second.add("photo2", grid_map(2), seed=2)
    with pytest.warns(UserWarning, match="Shard 0 of .*another writer's"):
        second.flush()
    assert "photo0" in second  # and knows now what the other has added
    first.close()
    second.close()
    assert_has(tmp_path / "s", range(3))
    assert not list((tmp_path / "s" / "index").glob(".*"))


def test_a_photo_that_both_add_is_there_once(tmp_path: Path, unseen: None) -> None:
    first = StoreWriter.create(tmp_path / "s", channels=C)
    second = StoreWriter.open(tmp_path / "s")
    first.add("photo0", grid_map(0), seed=0)
    second.add("photo0", grid_map(0), seed=0)
    second.add("photo1", grid_map(1), seed=1)
    first.flush()
    with pytest.warns(UserWarning, match="lower shard's map counts"):
        second.flush()
    first.close()
    second.close()
    assert_holds(FeatureStore(tmp_path / "s"), range(2))


def test_the_arrays_are_long_enough_for_all_shards_also_after_a_race(
    tmp_path: Path, unseen: None
) -> None:
    """Over a URL, shards beyond the arrays' length are not looked for."""
    first = StoreWriter.create(tmp_path / "s", channels=C)
    add(first, range(3))
    metadata = tmp_path / "s" / "grids" / "zarr.json"
    document = json.loads(metadata.read_text())
    short = dict(document, shape=[document["shape"][0] // 3, C])
    metadata.write_bytes(sealed(short))
    first.close()
    assert json.loads(metadata.read_text())["shape"] == document["shape"]


RACE = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import gridvlp.store.locks
gridvlp.store.locks.fcntl.flock = lambda *_: None
from test_faults import C, grid_map
from gridvlp.store import StoreWriter
warnings.simplefilter("ignore")
writer = StoreWriter.open(sys.argv[2])
sys.stdin.readline()
for seed in range(int(sys.argv[3]), 40, 2):
    writer.add(f"photo{seed}", grid_map(seed), seed=seed)
    writer.flush()
writer.close()
"""


def test_two_processes_that_race_for_every_shard_lose_and_mix_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    StoreWriter.create(path, channels=C).close()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(Path(__file__).parent), str(path), str(number)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in racers:
        _, errors = process.communicate("go\n", timeout=120)
        assert process.returncode == 0, errors
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_has(path, range(40))


# Claims


def test_a_number_is_claimed_once_until_it_is_free(tmp_path: Path) -> None:
    write(tmp_path / "s", range(1))
    assert claim_shard(tmp_path / "s", 1)
    assert not claim_shard(tmp_path / "s", 1)
    free_shard(tmp_path / "s", 1)
    assert claim_shard(tmp_path / "s", 1)
    assert not claim_shard(tmp_path / "s", 0)  # it is written
    assert not (tmp_path / "s" / "index" / ".000000.claim").exists()


DEAD = """
import os, sys
from pathlib import Path
from gridvlp.store.layout import sealed
from gridvlp.store.locks import claim_shard
assert claim_shard(Path(sys.argv[1]), 1)
"""


def test_the_claim_of_a_dead_writer_is_taken_over_where_it_is_known_to_be_dead(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    write(path, range(1))
    subprocess.run([sys.executable, "-c", DEAD, str(path)], check=True)
    claim = path / "index" / ".000001.claim"
    dead = json.loads(claim.read_text())
    for elsewhere in ({"kernel": "another"}, {"pids": "pid:[1]"}, {"pid": os.getpid()}):
        claim.write_text(json.dumps({**dead, **elsewhere}))
        assert not claim_shard(path, 1)
    for unreadable in ("", "{", "[]", "null", "{}", '{"pid": "x"}'):
        claim.write_text(unreadable)
        assert not claim_shard(path, 1)
    claim.write_text(json.dumps(dead))
    assert claim_shard(path, 1)
    assert json.loads(claim.read_text())["pid"] == os.getpid()


def test_a_claim_that_no_one_can_judge_costs_a_number_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, range(1))
    (path / "index" / ".000001.claim").write_text('{"kernel": "of another machine"}')
    with StoreWriter.open(path) as writer:
        writer.add("photo1", grid_map(1), seed=1)
        with pytest.warns(UserWarning, match=r"Shard 1 .*killed elsewhere"):
            writer.flush()
        add(writer, range(2, 3))
    assert_has(path, range(3))
    shards = sorted(file.name for file in (path / "index").glob("*.jsonl"))
    assert shards == ["000000.jsonl", "000002.jsonl", "000003.jsonl"]


def test_a_writer_that_fails_gives_its_number_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    write(path, range(1))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with StoreWriter.open(path) as writer:
        writer.add("photo1", grid_map(1), seed=1)
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", full)
            with pytest.raises(StoreError, match="No space left"):
                writer.flush()
        assert not list((path / "index").glob(".*"))
        writer.flush()  # there is room now
    assert_has(path, range(2))
    assert FeatureStore(path).shards == 2


# A writer that stops in the middle and comes back


GHOST = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import gridvlp.store.locks
gridvlp.store.locks.fcntl.flock = lambda *_: None
from test_faults import C, grid_map
from gridvlp.store import StoreWriter
stop, replaced, real = int(sys.argv[3]), 0, os.replace
def replace(*names):
    global replaced
    if replaced == stop:
        print("stops", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    replaced += 1
    real(*names)
writer = StoreWriter.open(sys.argv[2])
writer.add("photo1", grid_map(1), seed=1)
os.replace = replace
writer.flush()
writer.close()
"""


@pytest.mark.parametrize("stop", range(5))
def test_a_ghost_that_comes_back_changes_no_map_of_others(
    tmp_path: Path, unseen: None, stop: int
) -> None:
    """It stops before its array's metadata, its shard, facts or index is put, or the packed one."""
    path = tmp_path / "s"
    write(path, range(1))
    ghost = subprocess.Popen(
        [sys.executable, "-c", GHOST, str(Path(__file__).parent), str(path), str(stop)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ghost.stdout is not None
    assert ghost.stdout.readline() == "stops\n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with StoreWriter.open(path) as writer:
            add(writer, range(2, 4))
    for seed in (0, 2, 3):
        np.testing.assert_array_equal(FeatureStore(path).map(f"photo{seed}"), grid_map(seed))
    ghost.send_signal(signal.SIGCONT)
    _, errors = ghost.communicate(timeout=60)
    assert ghost.returncode == 0, errors
    assert_has(path, range(4))


def test_a_ghost_whose_claim_was_deleted_is_noticed_and_gives_no_wrong_number(
    tmp_path: Path, unseen: None
) -> None:
    path = tmp_path / "s"
    write(path, range(1))
    ghost = subprocess.Popen(
        [sys.executable, "-c", GHOST, str(Path(__file__).parent), str(path), "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ghost.stdout is not None
    ghost.stdout.readline()  # its shard is put, its facts and index are not
    (path / "index" / ".000001.claim").unlink()
    with StoreWriter.open(path) as writer:
        add(writer, range(2, 3))
    ghost.send_signal(signal.SIGCONT)
    ghost.communicate(timeout=60)
    store = FeatureStore(path)
    for seed in range(3):
        try:
            found = store.map(f"photo{seed}")
        except StoreError:
            continue
        np.testing.assert_array_equal(found, grid_map(seed))
    np.testing.assert_array_equal(store.map("photo0"), grid_map(0))
    assert ghost.returncode or verify(store)  # one of them says what was lost by this
