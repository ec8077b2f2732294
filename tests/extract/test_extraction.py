"""Photos to a store: nothing lost, nothing twice, and a kill changes nothing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gridvlp.errors import UserError
from gridvlp.extract import extraction
from gridvlp.extract.encoder import FrozenEncoder, read_weights
from gridvlp.extract.extraction import extract, skipped_file
from gridvlp.extract.photos import find_photos, read_photo
from gridvlp.extract.settings import ExtractOptions
from gridvlp.store import FeatureStore


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
    assert about["channel_order"] == "BGR"
    assert (about["resize"]["shorter"], about["resize"]["longest"]) == (64, 128)
    assert about["pixel_mean"] == [103.53, 116.28, 123.675]
    assert about["versions"]["torch"]


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
    assert [line for line in report.lines() if "same key" in line] == ["  skipped 3: the same key"]
    assert "the same key as photos/a/" in skipped_file(report.store).read_text()


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
        ({"size": "96x128"}, "another resize"),
        ({"backbone": "r50"}, "another weights_sha256"),
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
    with pytest.raises(UserError, match="another precision"):
        extract(options(tmp_path, precision="auto"), quiet)


def test_interrupted_run_keeps_what_it_wrote(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second window: the first is in the store, and the end is the same."""
    extract(options(tmp_path, out=tmp_path / "whole.zarr"), quiet)
    windows = extraction._encode
    calls = []

    def interrupt(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return windows(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(extraction, "WINDOW", 1)
    monkeypatch.setattr(extraction, "_encode", interrupt)
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
from gridvlp.extract import extraction
from gridvlp.extract.settings import ExtractOptions
extraction.WINDOW, extraction.SAVE_SECONDS = 1, 0.0
folder = Path(sys.argv[1])
extraction.extract(ExtractOptions(images=(folder / "photos",), out=folder / "store.zarr",
    weights="random", width=0.125, size="64x128", precision="float32", batch_size=4))
"""


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_store(photo_folder: Path, tmp_path: Path) -> None:
    """Kill -9 as soon as a shard is there; no clean-up of any kind runs."""
    for i in range(12, 60):  # enough to be killed in the middle
        shutil.copy(photo_folder / "a" / "photo00.png", photo_folder / f"photo{i}.png")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    index = tmp_path / "store.zarr" / "index"
    limit = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < limit:
        if index.is_dir() and any(index.glob("*.jsonl")):
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    there = len(FeatureStore(tmp_path / "store.zarr"))
    assert 0 < there < 60
    report = extract(options(tmp_path), quiet)
    assert (report.already_there, report.written) == (there, 60 - there)
    extract(options(tmp_path, out=tmp_path / "whole.zarr"), quiet)
    first, second = maps_of(tmp_path / "whole.zarr"), maps_of(tmp_path / "store.zarr")
    assert list(first) == list(second)
    assert all(np.allclose(first[k], second[k], rtol=2e-3, atol=1e-4) for k in first)


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
    with pytest.raises(UserError, match="None of the 1 photos could be used"):
        extract(options(tmp_path), quiet)


def test_options_are_checked() -> None:
    for wrong in (
        {"size": "1000x600"}, {"size": "600"}, {"backbone": "vit"}, {"width": 0.3},
        {"precision": "float8"}, {"batch_size": 0}, {"images": ()},
    ):  # fmt: skip
        with pytest.raises(UserError):
            ExtractOptions(**{"images": (Path("a"),), **wrong})  # type: ignore[arg-type]


def test_statistics_warn_of_dead_features(photo_folder: Path, tmp_path: Path) -> None:
    report = extract(options(tmp_path), quiet)
    figures = report.statistics.figures
    assert 0 < figures["zeros %"] < 100
    assert figures["max"] > figures["mean"] > 0
    dead = extraction.FeatureStatistics()
    map_CHW = np.zeros((10, 3, 3), np.float32)
    map_CHW[0, 0, 0] = 1.0
    dead.add(map_CHW)
    assert dead.figures["dead channels %"] == pytest.approx(90)
    assert len(dead.warnings()) == 2


def test_real_photos(shared_data: Path, tmp_path: Path) -> None:
    """NLVR2's .png files are JPEG inside; all of them are photos."""
    report = extract(options(tmp_path, images=(shared_data / "nlvr2" / "images",)), quiet)
    assert report.written == report.found == 24
    assert not report.skipped
