"""Kills, full disks, damaged bytes and a second writer."""

import errno
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridvlp.store import DamagedMap, FeatureStore, StoreError, StoreWriter
from gridvlp.store.verification import verify

C = 64


def grid_map(seed: int, channels: int = C) -> np.ndarray:
    rng = np.random.default_rng(seed)
    size = (channels, int(rng.integers(1, 20)), int(rng.integers(1, 33)))
    return rng.standard_normal(size).astype(np.float16).astype(np.float32)


def write(path: Path, seeds: range) -> FeatureStore:
    with StoreWriter.create(path, channels=C) as writer:
        for seed in seeds:
            writer.add(f"photo{seed}", grid_map(seed), seed=seed)
    return FeatureStore(path)


def assert_holds(store: FeatureStore, seeds: range) -> None:
    assert store.keys() == [f"photo{seed}" for seed in seeds]
    for seed in seeds:
        np.testing.assert_array_equal(store.map(f"photo{seed}"), grid_map(seed))
        assert store.record(f"photo{seed}") == {"seed": seed}


def shards(path: Path) -> list[Path]:
    return sorted(file for file in (path / "grids" / "c").rglob("*") if file.is_file())


# Kills

WRITE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_faults import C, grid_map
from gridvlp.store import StoreWriter

path, count = Path(sys.argv[2]), int(sys.argv[3])
with StoreWriter.open(path) if path.exists() else StoreWriter.create(path, channels=C) as writer:
    print("begun", len(writer), flush=True)
    for seed in range(count):
        if f"photo{seed}" not in writer:
            writer.add(f"photo{seed}", grid_map(seed), seed=seed)
            if seed % 4 == 3:
                sys.stdin.readline()  # a shard for each line, or all at the end of input
                writer.flush()
                print("flushed", seed, flush=True)
"""


def writing(path: Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITE, str(Path(__file__).parent), str(path), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_store_that_was_killed_again_and_again_equals_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    count = 60
    undisturbed = write(tmp_path / "undisturbed", range(count))
    path = tmp_path / "killed"
    kept = 0
    for attempt in range(5):
        process = writing(path, count)
        assert process.stdout is not None
        assert process.stdin is not None
        begun = int(process.stdout.readline().split()[1])
        assert begun >= kept  # nothing that was whole is lost
        assert begun % 4 == 0
        print("go\ngo", file=process.stdin, flush=True)
        process.stdout.readline()  # one shard is whole; the kill comes somewhere in the next
        time.sleep(0.004 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        survived = FeatureStore(path)
        assert len(survived) > begun
        assert_holds(survived, range(len(survived)))
        kept = len(survived)
    assert kept < count
    process = writing(path, count)
    process.communicate()
    assert process.returncode == 0
    finished = FeatureStore(path)
    assert_holds(finished, range(count))
    assert finished.fingerprint == undisturbed.fingerprint


def test_a_shard_without_an_index_does_not_count_and_is_written_anew(tmp_path: Path) -> None:
    write(tmp_path / "s", range(4))
    with StoreWriter.open(tmp_path / "s") as writer:
        for seed in range(4, 8):
            writer.add(f"photo{seed}", grid_map(seed + 100), seed=seed)
    # As if the kill had come while the shard was being written, its index not yet.
    (tmp_path / "s" / "index" / "000001.jsonl").rename(
        tmp_path / "s" / "index" / ".000001.jsonl.tmp"
    )
    torn = shards(tmp_path / "s")[1]
    torn.write_bytes(torn.read_bytes()[:1000])
    assert_holds(FeatureStore(tmp_path / "s"), range(4))
    with StoreWriter.open(tmp_path / "s") as writer:
        assert "photo4" not in writer
        for seed in range(4, 8):
            writer.add(f"photo{seed}", grid_map(seed), seed=seed)
    assert_holds(FeatureStore(tmp_path / "s"), range(8))


def test_an_error_in_the_block_keeps_whole_shards_and_drops_the_rest(tmp_path: Path) -> None:
    with (  # noqa: PT012
        pytest.raises(ZeroDivisionError),
        StoreWriter.create(tmp_path / "s", channels=C) as writer,
    ):
        writer.add("photo0", grid_map(0), seed=0)
        writer.flush()
        writer.add("photo1", grid_map(1), seed=1)
        raise ZeroDivisionError
    assert_holds(FeatureStore(tmp_path / "s"), range(1))
    StoreWriter.open(tmp_path / "s").close()  # and the lock is free


def test_ctrl_c_keeps_what_was_added(tmp_path: Path) -> None:
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        StoreWriter.create(tmp_path / "s", channels=C) as writer,
    ):
        writer.add("photo0", grid_map(0), seed=0)
        raise KeyboardInterrupt
    assert_holds(FeatureStore(tmp_path / "s"), range(1))


# Full disks


def test_a_full_disk_leaves_the_store_valid_and_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "s", range(4))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with (
            pytest.raises(StoreError, match=r"No space left.*4 whole maps"),
            StoreWriter.open(tmp_path / "s") as writer,
        ):
            writer.add("photo4", grid_map(4), seed=4)
    assert_holds(FeatureStore(tmp_path / "s"), range(4))
    with StoreWriter.open(tmp_path / "s") as writer:
        writer.add("photo4", grid_map(4), seed=4)
    assert_holds(FeatureStore(tmp_path / "s"), range(5))


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from test_faults import grid_map
from gridvlp.store import StoreError, StoreWriter

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with StoreWriter.open(sys.argv[2]) as writer:
        for seed in range(4, 20):
            writer.add(f"photo{seed}", grid_map(seed), seed=seed)
except StoreError as error:
    print(error)
"""


def test_a_shard_that_the_system_refuses_to_write_is_said_in_a_sentence(tmp_path: Path) -> None:
    """The real refusal, in the middle of the shard's bytes, from the compiled codecs."""
    pytest.importorskip("resource")
    write(tmp_path / "s", range(4))
    refused = subprocess.run(
        [sys.executable, "-c", LIMITED, str(Path(__file__).parent), str(tmp_path / "s")],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 0, refused.stderr
    assert "cannot be written (" in refused.stdout
    assert "4 whole maps" in refused.stdout
    assert_holds(FeatureStore(tmp_path / "s"), range(4))
    with StoreWriter.open(tmp_path / "s") as writer:
        for seed in range(4, 20):
            writer.add(f"photo{seed}", grid_map(seed), seed=seed)
    assert_holds(FeatureStore(tmp_path / "s"), range(20))


# Damage


def test_a_flipped_byte_is_named_and_never_read_as_numbers(tmp_path: Path) -> None:
    seeds = range(6)
    write(tmp_path / "s", seeds)
    (shard,) = shards(tmp_path / "s")
    whole = shard.read_bytes()
    rng = np.random.default_rng(0)
    damaged_maps = 0
    for place in [0, len(whole) - 1, len(whole) - 5, *rng.integers(len(whole), size=40)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        shard.write_bytes(damaged)
        store = FeatureStore(tmp_path / "s")
        for seed in seeds:
            try:
                back = store.map(f"photo{seed}")
            except DamagedMap as error:
                damaged_maps += 1
                assert f"photo{seed}" in str(error)  # noqa: PT017
                assert str(tmp_path / "s") in str(error)  # noqa: PT017
            else:
                np.testing.assert_array_equal(back, grid_map(seed))
    assert damaged_maps >= 20
    shard.write_bytes(whole)
    assert_holds(FeatureStore(tmp_path / "s"), seeds)


def test_a_sample_of_damaged_grids_is_refused_too(tmp_path: Path) -> None:
    store = write(tmp_path / "s", range(1))
    (shard,) = shards(tmp_path / "s")
    damaged = bytearray(shard.read_bytes())
    damaged[40] ^= 16
    shard.write_bytes(damaged)
    _, height, width = store.shape("photo0")
    undamaged = grid_map(0).reshape(C, -1).T
    refused = 0
    for seed in range(40):  # samples that hold the damaged chunk, in part or whole, or miss it
        try:
            sample_GC = store.sample("photo0", 15, np.random.default_rng(seed))
        except DamagedMap as error:
            refused += 1
            assert "photo0" in str(error)  # noqa: PT017
        else:
            assert (sample_GC[:, None] == undamaged).all(-1).any(1).all()
    assert 0 < refused < 40
    with pytest.raises(DamagedMap, match="photo0"):
        store.sample("photo0", height * width)


@pytest.mark.parametrize("fault", ["missing", "empty", "cut", "zeros"])
def test_a_shard_that_is_gone_or_cut_never_reads_as_numbers(tmp_path: Path, fault: str) -> None:
    write(tmp_path / "s", range(3))
    (shard,) = shards(tmp_path / "s")
    size = shard.stat().st_size
    if fault == "missing":
        shard.unlink()
    elif fault == "empty":
        shard.write_bytes(b"")
    elif fault == "cut":
        shard.write_bytes(shard.read_bytes()[: size // 2])
    else:  # what a power cut may leave of a file
        shard.write_bytes(bytes(size))
    store = FeatureStore(tmp_path / "s")
    for seed in range(3):
        for read in (store.map, store.grids, store.sample):
            with pytest.raises(DamagedMap, match=f"photo{seed}"):
                read(f"photo{seed}")


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    write(tmp_path / "s", range(3))
    index = tmp_path / "s" / "index" / "000000.jsonl"
    index.write_text(index.read_text()[:-10])
    assert_holds(FeatureStore(tmp_path / "s"), range(3))  # the packed index has the same columns
    (wrong,) = verify(FeatureStore(tmp_path / "s")).values()
    assert "000000.jsonl is damaged" in wrong
    (tmp_path / "s" / "index.bin").unlink()
    with pytest.raises(StoreError, match=r"000000\.json"):
        FeatureStore(tmp_path / "s")
    with pytest.raises(StoreError, match=r"000000\.json"):
        StoreWriter.open(tmp_path / "s")


def test_maps_of_other_shards_survive_the_loss_of_one(tmp_path: Path) -> None:
    write(tmp_path / "s", range(2))
    with StoreWriter.open(tmp_path / "s") as writer:
        writer.add("photo2", grid_map(2), seed=2)
    shards(tmp_path / "s")[0].unlink()
    store = FeatureStore(tmp_path / "s")
    with pytest.raises(DamagedMap, match="photo1"):
        store.map("photo1")
    np.testing.assert_array_equal(store.map("photo2"), grid_map(2))


def test_a_store_may_be_moved_and_read_without_leave_to_write(tmp_path: Path) -> None:
    write(tmp_path / "s", range(3))
    shutil.move(tmp_path / "s", tmp_path / "elsewhere")
    folders = [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_dir()]
    for folder in [tmp_path / "elsewhere", *folders]:
        folder.chmod(0o555)
    try:
        assert_holds(FeatureStore(tmp_path / "elsewhere"), range(3))
    finally:
        for folder in [tmp_path / "elsewhere", *folders]:
            folder.chmod(0o755)


# All of it, a little of each: what benchmarks/faults.py counts


@pytest.mark.slow
def test_no_map_is_lost_to_any_fault(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "faults.py"
    faults = runpy.run_path(str(script))
    for fault in faults["FAULTS"]:
        (tmp_path / fault.__name__).mkdir()
        rounds = 100 if fault.__name__ == "flipped_bytes" else 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packed index
            outcomes = list(fault(tmp_path / fault.__name__, rounds))
        assert len(outcomes) >= min(rounds, 70)
        assert {outcome for _, outcome in outcomes} <= {"detected", "harmless"}
        if fault.__name__ == "flipped_bytes":
            found = [outcome for _, outcome in outcomes]
            assert found.count("detected") > 0.9 * len(found)  # not where the field is renamed


# A second writer

SECOND = """
import sys
from gridvlp.store import StoreError, StoreWriter
try:
    StoreWriter.open(sys.argv[1])
except StoreError as error:
    print(error)
"""


def test_a_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    with StoreWriter.create(tmp_path / "s", channels=C) as writer:
        writer.add("photo0", grid_map(0), seed=0)
        with pytest.raises(StoreError, match=f"process {os.getpid()}"):
            StoreWriter.open(tmp_path / "s")
        told = subprocess.run(
            [sys.executable, "-c", SECOND, str(tmp_path / "s")], capture_output=True, text=True
        )
        assert told.returncode == 0, told.stderr
        assert f"process {os.getpid()}" in told.stdout
        assert "another process" in told.stdout
    with StoreWriter.open(tmp_path / "s") as writer:  # the first has ended
        writer.add("photo1", grid_map(1), seed=1)
    assert_holds(FeatureStore(tmp_path / "s"), range(2))
