"""Photos to a store: nothing lost, nothing twice, and a kill changes nothing."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gridvlp.errors import UserError
from gridvlp.extract import extraction
from gridvlp.extract.encoder import FrozenEncoder, read_weights
from gridvlp.extract.encoding import encode_items
from gridvlp.extract.extraction import extract
from gridvlp.extract.options import ExtractOptions
from gridvlp.extract.photos import find_photos, read_photo
from gridvlp.extract.statistics import FeatureStatistics
from gridvlp.run.skip_list import skipped_file
from gridvlp.store import FeatureStore, StoreWriter
from gridvlp.store.verification import verify


def options(tmp_path: Path, **changes: object) -> ExtractOptions:
    base = ExtractOptions(
        images=(tmp_path / "photos",),
        out=tmp_path / "store.zarr",
        weights="random",
        width=0.125,
        size="64x128",
        precision="float32",
        batch_size=4,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def quiet(_: str) -> None:
    """Takes the place of print."""


def maps_of(path: Path) -> dict[str, np.ndarray]:
    store = FeatureStore(path)
    return {key: store.map(key) for key in store.keys()}  # noqa: SIM118 - a store is no dict


def test_store_holds_the_encoders_maps_in_order(photo_folder: Path, tmp_path: Path) -> None:
    report = extract(options(tmp_path), quiet)
    assert (report.found, report.written, report.already_there) == (12, 12, 0)
    assert report.skipped == {}
    store = FeatureStore(report.store)
    paths = find_photos([photo_folder])
    assert list(store.keys()) == [path.stem for path in paths]
    encoder = FrozenEncoder(read_weights("random", "x50", 0.125), "float32")
    for path in paths:
        photo = read_photo(path, (64, 128))
        alone = encoder(torch.from_numpy(photo.pixels_HW3.copy())[None])[0].numpy()
        found = store.map(path.stem).astype(np.float32)
        assert (
            found.shape == alone.shape == (256, *(-(-s // 32) for s in photo.pixels_HW3.shape[:2]))
        )
        assert np.allclose(found, alone, rtol=2e-3, atol=1e-3)  # float16
        record = store.record(path.stem)
        assert record["original_size"] == list(photo.original_size)
        assert record["resized_size"] == list(photo.pixels_HW3.shape[:2])
        assert record["source"].endswith(path.name)


def test_store_says_what_made_it(photo_folder: Path, tmp_path: Path) -> None:
    extract(options(tmp_path), quiet)
    about = FeatureStore(tmp_path / "store.zarr").encoder
    assert about["weights_sha256"] == read_weights("random", "x50", 0.125).sha256
    assert about["precision"] == "float32"
    assert about["stride"] == 32
    assert about["architecture"]["channel_order"] == "BGR"
    assert (about["resize"]["shorter"], about["resize"]["longest"]) == (64, 128)
    assert about["architecture"]["pixel_mean"] == [103.53, 116.28, 123.675]
    assert about["tf32"] is False


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"batch_size": 3, "workers": 5}])
def test_batches_and_workers_change_nothing(
    photo_folder: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    extract(options(tmp_path), quiet)
    extract(options(tmp_path, out=tmp_path / "other.zarr", **change), quiet)
    first, second = maps_of(tmp_path / "store.zarr"), maps_of(tmp_path / "other.zarr")
    assert list(first) == list(second)
    for key in first:
        assert np.allclose(first[key], second[key], rtol=2e-3, atol=1e-4)


def test_every_name_and_file_that_is_left_out_is_reported(tmp_path: Path) -> None:
    """Of a COCO file whose photos have one name in two folders; and files of other suffixes."""
    rng = np.random.default_rng(0)
    names = ["cam2/0001.png", "cam1/0001.png", "cam1\\0002.png", "cam3/0001.png", "0001.png"]
    for name in ("cam1/0001.png", "cam2/0001.png", "cam1/0002.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "cam1" / "a.heic").touch()
    (tmp_path / "photos" / "annotations").mkdir()
    listed = tmp_path / "photos" / "annotations" / "a.json"
    listed.write_text(json.dumps({"images": [{"file_name": name} for name in names]}))
    report = extract(options(tmp_path, images=(listed,)), quiet)
    assert (report.found, report.written, report.rules) == (5, 3, {"alpha": 3})
    assert sorted(FeatureStore(report.store).keys()) == ["0002", "cam1/0001", "cam2/0001"]
    assert list(report.skipped) == ["cam3/0001.png", "0001.png"]
    assert "cam3/0001.png\tthe file of that name" in skipped_file(report.store).read_text()
    report = extract(options(tmp_path), quiet)
    assert "2 files passed over: 1 .heic, 1 .json." in report.lines()
    assert report.already_there == 3


def test_bad_files_are_skipped_with_reasons(photo_folder: Path, tmp_path: Path) -> None:
    good = sorted(photo_folder.rglob("*.png"))
    (photo_folder / "empty.jpg").touch()
    (photo_folder / "page.jpg").write_text("<html>404</html>" * 9)
    (photo_folder / "cut.png").write_bytes(good[0].read_bytes()[:200])
    (photo_folder / "notes.txt").write_text("not a photo")
    Image.new("RGB", (1, 1)).save(photo_folder / "dot.png")
    Image.new("RGB", (1, 5000)).save(photo_folder / "line.png")
    shutil.copy(good[0], photo_folder / f"COCO_val2014_{7:012}.png")
    shutil.copy(good[1], photo_folder / f"{7:012}.png")  # the same COCO image
    report = extract(options(tmp_path), quiet)
    assert report.found == 12 + 7
    assert report.written == 12 + 3
    assert {Path(path).name for path in report.skipped} == {
        "empty.jpg", "page.jpg", "cut.png", f"COCO_val2014_{7:012}.png",
    }  # fmt: skip
    listed = skipped_file(report.store).read_text()
    for path, reason in report.skipped.items():
        assert f"{path}\t{reason}" in listed
    told = "\n".join(report.lines())
    assert "15 written" in told
    assert "4 skipped" in told
    store = FeatureStore(report.store)
    assert store.shape("dot") == (256, 2, 2)  # 64 x 64
    assert store.shape("line") == (256, 4, 1)  # 128 x 1


def test_duplicates_are_told_in_one_line(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the usual way: --images photos
    for path in sorted(photo_folder.rglob("*.png"))[:3]:
        shutil.copy(path, photo_folder / path.name)
    report = extract(options(tmp_path, images=(Path("photos"),)), quiet)
    assert (report.written, len(report.skipped)) == (12, 3)
    lines = [line for line in report.lines() if "second file" in line]
    assert lines == ["  skipped 3: a second file of one photo"]
    assert "the same key as photos/a/" in skipped_file(report.store).read_text()


def test_visual_genomes_copies_of_cocos_photos_are_left_out(
    photo_folder: Path, tmp_path: Path
) -> None:
    own = sorted(photo_folder.rglob("*.png"))[:4]
    coco, release = tmp_path / "coco" / "val2017", tmp_path / "vg"
    for folder in (coco, release / "VG_100K", release / "VG_100K_2"):
        folder.mkdir(parents=True)
    shutil.copy(own[0], coco / "COCO_val2014_000000000042.png")
    shutil.copy(own[0], release / "VG_100K" / "7.png")
    shutil.copy(own[1], release / "VG_100K_2" / "8.png")  # COCO's as well, but not given as such
    shutil.copy(own[2], release / "VG_100K_2" / "9.png")
    told = [
        {"image_id": 7, "coco_id": 42},
        {"image_id": 8, "coco_id": 43},
        {"image_id": 9, "coco_id": None},
    ]
    (release / "image_data.json").write_text(json.dumps(told))
    both = options(tmp_path, images=(tmp_path / "coco", release))
    report = extract(both, quiet)
    assert list(maps_of(report.store)) == ["COCO_val2014_000000000042", "8", "9"]
    assert (report.found, report.written, report.twins) == (3, 3, 1)
    assert any(line.startswith("1 photos of Visual Genome left out") for line in report.lines())
    alone = extract(replace(both, images=(release,), out=tmp_path / "alone.zarr"), quiet)
    assert (alone.written, alone.twins) == (3, 0)
    (release / "image_data.json").write_text('[{"coco_id": 42}]')
    with pytest.raises(UserError, match='entry 0 has no "image_id"'):
        extract(both, quiet)


def test_only_what_is_new_is_added(photo_folder: Path, tmp_path: Path) -> None:
    few = tuple(sorted(photo_folder.rglob("*.png"))[:5])
    first = extract(options(tmp_path, images=few), quiet)
    assert (first.found, first.written) == (5, 5)
    before = maps_of(tmp_path / "store.zarr")
    second = extract(options(tmp_path), quiet)
    assert (second.found, second.written, second.already_there) == (12, 7, 5)
    third = extract(options(tmp_path), quiet)
    assert (third.written, third.already_there) == (0, 12)
    after = maps_of(tmp_path / "store.zarr")
    assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": "96x128"}, r"resize.shorter: 64 and 96 now"),
        ({"backbone": "r50"}, "weights_sha256: "),
        ({"width": 0.25}, "channels"),
    ],
)
def test_a_changed_encoder_is_refused(
    photo_folder: Path, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    few = tuple(sorted(photo_folder.rglob("*.png"))[:2])
    extract(options(tmp_path, images=few), quiet)
    before = FeatureStore(tmp_path / "store.zarr").fingerprint
    with pytest.raises(UserError, match=named):
        extract(options(tmp_path, **change), quiet)
    assert FeatureStore(tmp_path / "store.zarr").fingerprint == before


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="the processor does not multiply in bfloat16"
)
def test_a_changed_precision_is_refused(photo_folder: Path, tmp_path: Path) -> None:
    few = tuple(sorted(photo_folder.rglob("*.png"))[:2])
    extract(options(tmp_path, images=few), quiet)
    with pytest.raises(UserError, match="precision: 'float32' and 'bfloat16'"):
        extract(options(tmp_path, precision="auto"), quiet)


def test_interrupted_run_keeps_what_it_wrote(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second window: the first is in the store, and the end is the same."""
    extract(options(tmp_path, out=tmp_path / "whole.zarr"), quiet)
    photos = extraction.encode_items

    def interrupt(*arguments: Any) -> Iterator[Any]:
        yield from islice(photos(*arguments), 4)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "encode_items", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract(options(tmp_path), quiet)
    assert len(FeatureStore(tmp_path / "store.zarr")) == 4
    report = extract(options(tmp_path), quiet)
    assert (report.written, report.already_there) == (8, 4)
    first, second = maps_of(tmp_path / "whole.zarr"), maps_of(tmp_path / "store.zarr")
    assert list(first) == list(second)
    assert all(np.allclose(first[k], second[k], rtol=2e-3, atol=1e-4) for k in first)


KILLED = """
import sys
from pathlib import Path
import torch
torch.cuda.is_available = lambda: False
torch.set_num_threads(1)
from gridvlp.extract import encoding, extraction
from gridvlp.extract.options import ExtractOptions
from gridvlp.extract.statistics import FeatureStatistics
encoding.WINDOW, extraction.SAVE_SECONDS = 1, 0.0
folder, *part = sys.argv[1:]
folder = Path(folder)
num_shards, shard = map(int, part) if part else (None, None)
extraction.extract(ExtractOptions(images=(folder / "photos",), out=folder / "store.zarr",
    weights="random", width=0.125, size="64x128", precision="float32", batch_size=4,
    num_shards=num_shards, shard=shard))
"""


def start(folder: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """An extraction in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(folder), *map(str, arguments)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def more_photos(folder: Path, count: int) -> None:
    """Enough to be killed in the middle."""
    for i in range(12, count):
        shutil.copy(folder / "a" / "photo00.png", folder / f"photo{i}.png")


def same_maps(first: Path, second: Path) -> bool:
    """The same keys, and equal maps but for the rounding of other batches."""
    a, b = maps_of(first), maps_of(second)
    return sorted(a) == sorted(b) and all(np.allclose(a[k], b[k], rtol=2e-3, atol=1e-4) for k in a)


def shards(folder: Path) -> int:
    return len(list((folder / "store.zarr" / "index").glob("*.jsonl")))


def kill_after(process: subprocess.Popen[bytes], folder: Path, count: int, delay: float) -> None:
    """Kill -9 some time after so many shards are there; no clean-up of any kind runs."""
    limit = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < limit:
        if shards(folder) >= count:
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait()


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_store(photo_folder: Path, tmp_path: Path) -> None:
    """Killed at three random moments, in the middle of writing too, then left to end."""
    more_photos(photo_folder, 120)
    rng = np.random.default_rng()
    for _ in range(3):
        before = shards(tmp_path)
        kill_after(start(tmp_path), tmp_path, before + 1, float(rng.uniform(0, 0.04)))
        if (tmp_path / "store.zarr").exists():
            there = FeatureStore(tmp_path / "store.zarr")
            assert [there.map(key).shape[0] for key in there.keys()] == [256] * len(there)  # noqa: SIM118
    there = len(FeatureStore(tmp_path / "store.zarr"))
    assert 0 < there < 120
    report = extract(options(tmp_path), quiet)
    assert (report.already_there, report.written) == (there, 120 - there)
    extract(options(tmp_path, out=tmp_path / "whole.zarr"), quiet)
    assert list(maps_of(tmp_path / "whole.zarr")) == list(maps_of(tmp_path / "store.zarr"))
    assert same_maps(tmp_path / "whole.zarr", tmp_path / "store.zarr")


@pytest.mark.slow
def test_three_processes_fill_one_store(photo_folder: Path, tmp_path: Path) -> None:
    """At the same time, one of them killed and started again: the maps of one process."""
    more_photos(photo_folder, 60)
    running = [start(tmp_path, 3, shard) for shard in range(3)]
    kill_after(running[1], tmp_path, 1, 0.0)
    assert running[0].wait() == running[2].wait() == 0
    assert start(tmp_path, 3, 1).wait() == 0
    extract(options(tmp_path, out=tmp_path / "whole.zarr"), quiet)
    assert same_maps(tmp_path / "whole.zarr", tmp_path / "store.zarr")
    assert len(FeatureStore(tmp_path / "store.zarr")) == 60


def test_shards_share_out_the_photos(photo_folder: Path, tmp_path: Path) -> None:
    """Each photo to one shard; a list that has grown changes no photo's shard."""
    few = tuple(sorted(photo_folder.rglob("*.png"))[:5])
    for shard in (0, 1):
        extract(options(tmp_path, images=few, num_shards=2, shard=shard), quiet)
    (photo_folder / "empty.png").touch()
    reports = [extract(options(tmp_path, num_shards=2, shard=shard), quiet) for shard in (0, 1)]
    assert sum(report.found for report in reports) == 13
    assert sum(report.already_there for report in reports) == 5
    assert sum(report.written for report in reports) == 7
    assert all(report.written + report.already_there > 1 for report in reports)
    assert sum(len(report.skipped) for report in reports) == 1
    listed = [tmp_path / f"store.zarr.skipped-{shard}-of-2.txt" for shard in (0, 1)]
    assert sum(path.read_text().count("empty.png") for path in listed) == 1
    assert "of shard 1 of 2" in reports[1].lines()[0]
    extract(options(tmp_path, out=tmp_path / "whole.zarr"), quiet)
    assert same_maps(tmp_path / "whole.zarr", tmp_path / "store.zarr")
    assert extract(options(tmp_path), quiet).already_there == 12


def test_the_second_of_two_extractions_is_told(photo_folder: Path, tmp_path: Path) -> None:
    extract(options(tmp_path, images=tuple(photo_folder.rglob("*0.png"))), quiet)
    with StoreWriter.open(tmp_path / "store.zarr"):
        for other in ({}, {"num_shards": 2, "shard": 0}):
            with pytest.raises(UserError, match="being written by another process"):
                extract(options(tmp_path, **other), quiet)
    assert extract(options(tmp_path), quiet).written == 10


@pytest.mark.parametrize("files", [0, 5, 40, 50])
def test_a_full_disk_ends_clearly(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """The disk takes no more after some files; with room again, the run goes on."""
    extract(options(tmp_path, out=tmp_path / "whole.zarr"), quiet)
    monkeypatch.setattr(extraction, "SAVE_SECONDS", -1.0)  # a shard for each photo
    left, fsync = files, os.fsync

    def full(file: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"):
            extract(options(tmp_path), quiet)
    there = 0
    if (tmp_path / "store.zarr").exists():
        there = len(FeatureStore(tmp_path / "store.zarr"))
        assert verify(FeatureStore(tmp_path / "store.zarr")) == {}
    assert (there > 0) == (files >= 40)
    assert there < 12
    report = extract(options(tmp_path), quiet)
    assert (report.already_there, report.written) == (there, 12 - there)
    assert same_maps(tmp_path / "whole.zarr", tmp_path / "store.zarr")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB, where the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_full_disk_ends_clearly(
    photo_folder: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more_photos(photo_folder, 80)
    monkeypatch.setattr(extraction, "SAVE_SECONDS", -1.0)
    with pytest.raises(UserError, match="No space left"):
        extract(options(tmp_path, out=small_disk / "store.zarr"), quiet)
    there = len(FeatureStore(small_disk / "store.zarr"))
    assert 0 < there < 80
    shutil.copytree(small_disk / "store.zarr", tmp_path / "store.zarr")  # where there is room
    report = extract(options(tmp_path), quiet)
    assert (report.already_there, report.written) == (there, 80 - there)


def test_nothing_to_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        extract(options(tmp_path), quiet)
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="empty"):
        extract(options(tmp_path), quiet)
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="gridvlp train-extractor"):
        extract(options(tmp_path, weights=str(tmp_path / "runs")), quiet)
    assert not (tmp_path / "store.zarr").exists()
    with pytest.raises(UserError, match=r"a\.jpg cannot be used: the file is empty"):
        extract(options(tmp_path), quiet)


def test_options_are_checked() -> None:
    for wrong in (
        {"size": "1000x600"}, {"size": "600"}, {"backbone": "vit"}, {"width": 0.3},
        {"precision": "float8"}, {"batch_size": 0}, {"images": ()}, {"regions": 0}, {"shard": 1},
        {"num_shards": 2, "shard": 2}, {"num_shards": 0, "shard": 0}, {"num_shards": 2},
    ):  # fmt: skip
        with pytest.raises(UserError):
            ExtractOptions(**{"images": (Path("a"),), **wrong})  # type: ignore[arg-type]


def test_statistics_warn_of_dead_features(photo_folder: Path, tmp_path: Path) -> None:
    report = extract(options(tmp_path), quiet)
    figures = report.statistics.figures
    assert 0 < figures["zeros %"] < 100
    assert figures["max"] > figures["mean"] > 0
    map_CHW = torch.zeros(10, 3, 3)
    map_CHW[0, 0, 0] = 1.0
    dead = FeatureStatistics.of(map_CHW)
    assert dead.figures["dead channels %"] == pytest.approx(90)
    assert len(dead.warnings()) == 2


def test_real_photos(shared_data: Path, tmp_path: Path) -> None:
    """NLVR2's .png files are JPEG inside; all of them are photos."""
    report = extract(options(tmp_path, images=(shared_data / "nlvr2" / "images",)), quiet)
    assert report.written == report.found == 24
    assert not report.skipped


def interrupted(chosen: ExtractOptions, ends: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extraction that Ctrl-C ends after so many photos."""
    encode = extraction.encode_items

    def interrupt(*arguments: Any) -> Iterator[Any]:
        yield from islice(encode(*arguments), ends)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "encode_items", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract(chosen, quiet)


def bits_of(path: Path) -> dict[str, bytes]:
    return {key: map_CHW.tobytes() for key, map_CHW in maps_of(path).items()}


@pytest.mark.parametrize("ends", [1, 3, 7, 11])
def test_an_interrupted_run_leaves_the_same_bits(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: int
) -> None:
    """Wherever it ended, batches are those of the uninterrupted run; a bad photo moves none."""
    (photo_folder / "a" / "empty.jpg").touch()
    extract(options(tmp_path, out=tmp_path / "whole.zarr"), quiet)
    interrupted(options(tmp_path), ends, monkeypatch)
    there = len(FeatureStore(tmp_path / "store.zarr"))
    assert there in (ends - 1, ends)
    report = extract(options(tmp_path), quiet)
    assert (report.written, report.already_there) == (12 - there, there)
    assert bits_of(tmp_path / "store.zarr") == bits_of(tmp_path / "whole.zarr")
    assert extract(options(tmp_path), quiet).written == 0


def test_a_run_in_parts_leaves_each_part_the_same_bits(photo_folder: Path, tmp_path: Path) -> None:
    for shard in (0, 1):
        extract(options(tmp_path, out=tmp_path / "a.zarr", num_shards=2, shard=shard), quiet)
    for shard in (1, 0):
        extract(options(tmp_path, out=tmp_path / "b.zarr", num_shards=2, shard=shard), quiet)
    assert bits_of(tmp_path / "a.zarr") == bits_of(tmp_path / "b.zarr")


def test_photos_of_one_name_in_two_folders_are_two_photos(
    photo_folder: Path, tmp_path: Path
) -> None:
    one, two, three = sorted(photo_folder.rglob("*.png"))[:3]
    for folder, source in (("cam1", one), ("cam2", two), ("cam3", one)):
        (tmp_path / "cams" / folder).mkdir(parents=True)
        shutil.copy(source, tmp_path / "cams" / folder / "0001.png")
    shutil.copy(three, tmp_path / "cams" / "cam1" / "0002.png")
    report = extract(options(tmp_path, images=(tmp_path / "cams",)), quiet)
    assert (report.found, report.written) == (4, 3)
    (reason,) = report.skipped.values()
    assert reason.endswith(f"the same key as {tmp_path}/cams/cam1/0001.png")
    found = maps_of(report.store)
    assert list(found) == ["cam1/0001", "0002", "cam2/0001"]
    alone = extract(options(tmp_path, images=(one, two), out=tmp_path / "alone.zarr"), quiet)
    expected = maps_of(alone.store)
    assert np.allclose(found["cam1/0001"], expected[one.stem], rtol=2e-3, atol=1e-4)
    assert np.allclose(found["cam2/0001"], expected[two.stem], rtol=2e-3, atol=1e-4)


def test_another_photo_never_passes_for_one_that_is_there(
    photo_folder: Path, tmp_path: Path
) -> None:
    one, two = sorted(photo_folder.rglob("*.png"))[:2]
    for folder, source in (("cam1", one), ("cam2", two)):
        (tmp_path / folder).mkdir()
        shutil.copy(source, tmp_path / folder / "0001.png")
    extract(options(tmp_path, images=(tmp_path / "cam1",)), quiet)
    with pytest.raises(UserError, match=r"another photo under its key.*: 0001 is of"):
        extract(options(tmp_path, images=(tmp_path / "cam2",)), quiet)
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "cam1" / "0001.png", tmp_path / "moved" / "0001.png")
    assert extract(options(tmp_path, images=(tmp_path / "moved",)), quiet).already_there == 1
    shutil.copy(two, tmp_path / "cam1" / "0001.png")
    with pytest.raises(UserError, match="has changed since it was extracted"):
        extract(options(tmp_path, images=(tmp_path / "cam1",)), quiet)


@pytest.mark.parametrize("fault", ["damaged", "absent"])
def test_visual_genomes_copy_stands_in_for_a_file_of_cocos(
    photo_folder: Path, tmp_path: Path, fault: str
) -> None:
    own = sorted(photo_folder.rglob("*.png"))[:2]
    coco, release = tmp_path / "coco" / "val2017", tmp_path / "vg"
    for folder in (coco, release / "VG_100K"):
        folder.mkdir(parents=True)
    shutil.copy(own[0], coco / "000000000001.png")
    shutil.copy(own[0], release / "VG_100K" / "11.png")
    shutil.copy(own[1], release / "VG_100K" / "12.png")
    (release / "image_data.json").write_text(
        '[{"image_id": 11, "coco_id": 1}, {"image_id": 12, "coco_id": 2}]'
    )
    names = ["coco/val2017/000000000001.png", "coco/val2017/000000000002.png"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    if fault == "damaged":
        (coco / "000000000002.png").write_bytes(own[1].read_bytes()[:300])
    for _ in range(2):
        report = extract(options(tmp_path, images=(tmp_path / "list.txt", release)), quiet)
        assert report.twins == 2
    first = maps_of(report.store)
    assert list(first) == ["000000000001", "000000000002"]
    assert FeatureStore(report.store).record("000000000002")["source"].endswith("VG_100K/12.png")
    alone = extract(options(tmp_path, images=(own[1],), out=tmp_path / "alone.zarr"), quiet)
    expected = maps_of(alone.store)[own[1].stem]
    assert np.allclose(first["000000000002"], expected, rtol=2e-3, atol=1e-4)


class Scaled(torch.nn.Module):
    """An encoder of one channel whose value is the photo's brightest pixel, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.channels = 256

    def forward(self, pixels_BHW3: torch.Tensor) -> torch.Tensor:
        brightest_B = pixels_BHW3.float().amax((1, 2, 3)) * self.factor
        return brightest_B[:, None, None, None].repeat(1, 256, 2, 2)


def test_a_map_beyond_the_dtypes_range_is_that_photos_fault(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (64, 64), "white").save(photo_folder / "a" / "bright.png")
    for path in photo_folder.rglob("photo*.png"):
        Image.open(path).point(lambda value: min(value, 120)).save(path)
    monkeypatch.setattr(extraction, "FrozenEncoder", lambda *_: Scaled(300.0))  # 255 x 300 > 65504
    for _ in range(2):
        report = extract(options(tmp_path), quiet)
        assert len(FeatureStore(tmp_path / "store.zarr")) == 12
        assert [Path(path).name for path in report.skipped] == ["bright.png"]
        assert "float16" in next(iter(report.skipped.values()))
    wide = extract(options(tmp_path, dtype="bfloat16", out=tmp_path / "wide.zarr"), quiet)
    assert wide.written == 13


def test_wrong_weights_stop_the_work_with_the_question(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "FrozenEncoder", lambda *_: Scaled(float("inf")))
    with pytest.raises(UserError, match=r"5 inputs in a row .* the right weights"):
        extract(options(tmp_path, skip_limit=5), quiet)
    with pytest.raises(UserError, match="None of the 12 photos"):
        extract(options(tmp_path, skip_limit=0), quiet)
    assert skipped_file(tmp_path / "store.zarr").read_text().count("\n") == 12


def test_a_refused_extraction_leaves_the_list_of_the_last_one(
    photo_folder: Path, tmp_path: Path
) -> None:
    (photo_folder / "a" / "z.png").write_bytes(b"junk")
    report = extract(options(tmp_path), quiet)
    with pytest.raises(UserError, match="another recipe"):
        extract(options(tmp_path, size="32x64"), quiet)
    assert "z.png" in skipped_file(report.store).read_text()


def test_a_store_may_be_the_working_folder(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = extract(options(tmp_path), quiet)
    monkeypatch.chdir(report.store)
    assert extract(options(tmp_path, out=Path()), quiet).already_there == 12
    monkeypatch.chdir(photo_folder)
    with pytest.raises(UserError, match="no feature store"):
        extract(options(tmp_path, out=Path()), quiet)


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "x", "RANK": "0"}])
def test_half_an_environment_of_torchrun_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gridvlp: Any, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, err = gridvlp("extract", "--images", tmp_path, "--out", tmp_path / "s.zarr")
    assert code == 2
    assert "WORLD_SIZE and RANK" in err


def test_each_kind_of_skipped_photo_is_one_line_of_the_report(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(options(tmp_path), quiet)
    for number, photo in enumerate(sorted(photo_folder.rglob("*.png"))[1:]):
        photo.write_bytes(photo.read_bytes() + bytes(1 + number))
    (photo_folder / "b").rename(photo_folder / "c")
    for name in ("new1.png", "new2.png"):
        Image.new("RGB", (64, 64), "white").save(photo_folder / name)
    monkeypatch.setattr(extraction, "FrozenEncoder", lambda *_: Scaled(float("inf")))
    report = extract(options(tmp_path), quiet)
    assert [(count, reason.split()[1]) for reason, count in report.skip_list.kinds()] == [
        (6, "store"),
        (5, "file"),
        (2, "map"),
    ]


def test_what_was_made_before_too_many_bad_photos_is_kept(
    photo_folder: Path, tmp_path: Path
) -> None:
    for number in range(3):
        (photo_folder / "b" / f"z{number}.png").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"3 inputs in a row .* is kept"):
        extract(options(tmp_path, skip_limit=3), quiet)
    assert len(FeatureStore(tmp_path / "store.zarr")) == 12


def test_what_was_made_before_memory_ran_out_is_kept(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def six(*arguments: Any) -> Iterator[Any]:
        yield from islice(encode_items(*arguments), 6)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(extraction, "encode_items", six)
    with pytest.raises(UserError, match="too little memory"):
        extract(options(tmp_path), quiet)
    assert len(FeatureStore(tmp_path / "store.zarr")) == 6


def test_float32_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU cuDNN would take TF32 for it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    weights = read_weights("random", "r50", 0.125)
    FrozenEncoder(weights, "bfloat16")
    assert torch.backends.cudnn.allow_tf32
    FrozenEncoder(weights, "float32")
    assert not torch.backends.cudnn.allow_tf32


def test_a_folder_that_is_added_later_makes_no_photo_again(
    photo_folder: Path, tmp_path: Path
) -> None:
    one, two = sorted(photo_folder.rglob("*.png"))[:2]
    for folder, source in (("cam1", one), ("cam2", two)):
        (tmp_path / folder).mkdir()
        shutil.copy(source, tmp_path / folder / "0001.png")
    extract(options(tmp_path, images=(tmp_path / "cam1",)), quiet)
    both = (tmp_path / "cam1", tmp_path / "cam2")
    for written in (1, 0):
        report = extract(options(tmp_path, images=both), quiet)
        assert (report.written, report.already_there) == (written, 2 - written)
    assert list(maps_of(report.store)) == ["0001", "cam2/0001"]
    # of as many bytes, as photos in BMP are, but not the same photo
    size = (tmp_path / "cam1" / "0001.png").stat().st_size
    (tmp_path / "cam3").mkdir()
    (tmp_path / "cam3" / "0001.png").write_bytes(two.read_bytes().ljust(size, b"\0")[:size])
    again = extract(options(tmp_path, images=(*both, tmp_path / "cam3")), quiet)
    assert again.already_there == 2


def test_photos_of_as_many_bytes_are_told_apart(tmp_path: Path) -> None:
    """As those of a camera that writes BMP are; a folder that was moved is known again."""
    for folder, colour in (("cam1", "red"), ("cam2", "blue")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 48), colour).save(tmp_path / folder / "0001.bmp")
    extract(options(tmp_path, images=(tmp_path / "cam1",)), quiet)
    with pytest.raises(UserError, match="another photo under its key"):
        extract(options(tmp_path, images=(tmp_path / "cam2",)), quiet)
    shutil.move(tmp_path / "cam1", tmp_path / "moved")
    assert extract(options(tmp_path, images=(tmp_path / "moved",)), quiet).already_there == 1


class Counting(Scaled):
    """An encoder whose numbers say how many photos shared their batch, as rounding does."""

    def forward(self, pixels_BHW3: torch.Tensor) -> torch.Tensor:
        return torch.full((len(pixels_BHW3), 256, 2, 2), float(len(pixels_BHW3)))


@pytest.mark.parametrize("ends", [1, 2, 5, 9])
def test_batches_do_not_depend_on_what_the_store_has(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: int
) -> None:
    monkeypatch.setattr(extraction, "FrozenEncoder", lambda *_: Counting(1.0))
    extract(options(tmp_path, out=tmp_path / "whole.zarr", batch_size=3), quiet)
    interrupted(options(tmp_path, batch_size=3), ends, monkeypatch)
    assert extract(options(tmp_path, batch_size=3), quiet).written == 12 - ends
    whole = bits_of(tmp_path / "whole.zarr")
    assert bits_of(tmp_path / "store.zarr") == whole
    assert len(set(whole.values())) > 1  # batches of several sizes
