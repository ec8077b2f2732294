"""Region files as others write them become a store of regions, line by line."""

import base64
import csv
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gridvlp.cli import cli
from gridvlp.errors import UserError
from gridvlp.extract.convert import convert
from gridvlp.extract.convert_tsv import BOTTOM_UP, LXMERT
from gridvlp.extract.export import export
from gridvlp.store import FeatureStore

C = 256


def photo(seed: int, channels: int = C) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    count, width, height = 3 + seed % 4, 640 + seed, 480
    corners = np.sort(rng.random((count, 2, 2)), axis=1) * [width, height]
    return {
        "id": f"COCO_val2014_{seed:012}",
        "size": (width, height),
        "boxes": corners.reshape(count, 4).astype(np.float32),
        "features": rng.random((count, channels)).astype(np.float16).astype(np.float32),
        "objects_id": rng.integers(0, 1600, count),
        "objects_conf": rng.random(count).astype(np.float32),
        "attrs_id": rng.integers(0, 400, count),
        "attrs_conf": rng.random(count).astype(np.float32),
    }


def write_tsv(path: Path, photos: list[dict[str, Any]], names: tuple[str, ...]) -> Path:
    """As the two projects do: csv.DictWriter, no line of names."""
    with path.open("w") as file:
        writer = csv.DictWriter(file, delimiter="\t", fieldnames=names, extrasaction="ignore")
        for found in photos:
            row = {n: base64.b64encode(v).decode() for n, v in found.items() if hasattr(v, "dtype")}
            width, height = found["size"]
            row |= {"img_id": found["id"], "img_w": width, "img_h": height}
            row |= {"image_id": found["id"], "image_w": width, "image_h": height}
            writer.writerow({**row, "num_boxes": len(found["boxes"])})
    return path


def assert_same(store: FeatureStore, found: dict[str, Any], key: str, lxmert: bool) -> None:
    own = store.regions(key)
    np.testing.assert_array_equal(own.features_NC, found["features"])
    size = np.array(found["size"] * 2, np.float32)
    np.testing.assert_allclose(own.boxes_N4, found["boxes"] / size, atol=1e-6)
    if lxmert:
        assert own.classes_N is not None
        np.testing.assert_array_equal(own.classes_N, found["objects_id"])
        assert own.scores_N is not None
        np.testing.assert_array_equal(own.scores_N, found["objects_conf"])
        assert store.record(key)["attributes"] == found["attrs_id"].tolist()
        scores = np.array(store.record(key)["attribute_scores"], np.float32)
        np.testing.assert_array_equal(scores, found["attrs_conf"])
    else:
        assert own.classes_N is None
        assert own.scores_N is None
    assert store.record(key)["image_size"] == [found["size"][1], found["size"][0]]


@pytest.mark.parametrize("names", [LXMERT, BOTTOM_UP], ids=["lxmert", "bottom-up"])
def test_each_header_gives_the_regions_back(tmp_path: Path, names: tuple[str, ...]) -> None:
    photos = [photo(seed) for seed in range(6)]
    report = convert(write_tsv(tmp_path / "a.tsv", photos, names), tmp_path / "s", "theirs")
    assert (report.found, report.written, len(report.skipped)) == (6, 6, 0)
    store = FeatureStore(tmp_path / "s")
    assert store.kind == "regions"
    assert store.keys() == [found["id"] for found in photos]
    for found in photos:
        assert_same(store, found, found["id"], names is LXMERT)


def test_a_first_line_of_names_is_taken_in_any_order(tmp_path: Path) -> None:
    names = ("features", "boxes", "image_h", "image_w", "num_boxes", "image_id")
    path = write_tsv(tmp_path / "a.tsv", [photo(1)], names)
    path.write_text("\t".join(names) + "\n" + path.read_text())
    report = convert(path, tmp_path / "s", "theirs")
    assert (report.found, report.written) == (1, 1)
    assert_same(FeatureStore(tmp_path / "s"), photo(1), photo(1)["id"], lxmert=False)


def test_numbers_of_coco_get_their_zeros_when_asked_and_are_told_of(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "a.tsv", [{**photo(0), "id": 262148}], BOTTOM_UP)
    report = convert(path, tmp_path / "s", "theirs")
    assert FeatureStore(tmp_path / "s").keys() == ["262148"]
    assert "--coco-ids" in report.lines()[-1]
    report = convert(path, tmp_path / "coco", "theirs", coco_ids=True)
    assert "COCO_val2014_000000262148" in FeatureStore(tmp_path / "coco")
    assert len(report.lines()) == 1


def test_damaged_lines_are_counted_and_named(tmp_path: Path) -> None:
    good = [photo(seed) for seed in range(3)]
    path = write_tsv(tmp_path / "a.tsv", good, LXMERT)
    first, second, third = path.read_text().splitlines()
    cells = second.split("\t")

    def changed(**cell: str) -> str:
        return "\t".join(cell.get(n, c) for n, c in zip(LXMERT, cells, strict=True))

    bad = {
        "columns": second[: len(second) // 2].rsplit("\t", 1)[0],
        "cut": changed(img_id="cut", features=cells[9][:1001]),
        "no base64": changed(img_id="text", features="?" * 4000),
        "boxes has": changed(img_id="boxes", boxes=cells[8][:-8]),
        "0 boxes": changed(img_id="none", num_boxes="0"),
        "could not": changed(img_id="wide", img_w="wide"),
        "outside": changed(img_id="small", img_w="9"),
        "no photo": changed(img_id=""),
        "finite": changed(img_id="nan", features=encoded(np.full((4, C), np.nan))),
        "float16": changed(img_id="beyond", features=encoded(np.full((4, C), 1e6))),
        "is needed": changed(img_id="few", features=encoded(np.zeros((4, C - 1)))),
        "boxes": changed(img_id="gap", boxes=encoded(np.full((4, 4), np.nan))),
        "The boxes": changed(img_id="turned", boxes=encoded(np.array([[50, 5, 49.9, 9]] * 4))),
        "classes": changed(img_id="class", objects_id=encoded(np.full(4, -1), "<i8")),
        "scores": changed(img_id="score", objects_conf=encoded(np.full(4, np.nan))),
        "facts": changed(img_id="attribute", attrs_conf=encoded(np.full(4, np.nan))),
    }
    path.write_text("\n".join([first, *bad.values(), second, third]))
    report = convert(path, tmp_path / "s", "theirs")
    assert report.written == 3
    assert list(report.skipped.reasons) == [f"{path}, line {n}" for n in range(2, 2 + len(bad))]
    for expected, reason in zip(bad, report.skipped.reasons.values(), strict=True):
        assert expected in reason or expected == "cut"
    for found in good:
        assert_same(FeatureStore(tmp_path / "s"), found, found["id"], lxmert=True)


def encoded(values: np.ndarray, kind: str = "<f4") -> str:
    return base64.b64encode(values.astype(kind)).decode()


def test_an_id_that_comes_twice_is_named_and_not_there_already(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_tsv(tmp_path / "in" / "a.tsv", [photo(1), photo(2), photo(1)], LXMERT)
    write_tsv(
        tmp_path / "in" / "b.tsv", [photo(2), photo(3), {**photo(4), "id": f"{3:012}"}], LXMERT
    )
    for written, there in ((3, 0), (0, 3)):
        report = convert(tmp_path / "in", tmp_path / "s", "theirs")
        assert (report.found, report.written, report.already_there) == (6, written, there)
        a, b = tmp_path / "in" / "a.tsv", tmp_path / "in" / "b.tsv"
        assert report.skipped.reasons == {
            f"{a}, line 3": f"has the same key as {a}, line 1",
            f"{b}, line 1": f"has the same key as {a}, line 2",
            f"{b}, line 3": f"has the same key as {b}, line 2",
        }
    assert_same(FeatureStore(tmp_path / "s"), photo(3), photo(3)["id"], lxmert=True)


@pytest.mark.parametrize("named", [True, False])
def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path: Path, named: bool) -> None:
    path = write_tsv(tmp_path / "a.tsv", [photo(1), photo(2)], LXMERT)
    names = "\t".join(LXMERT) + "\n" if named else ""
    path.write_text("\ufeff" + names + path.read_text())
    convert(path, tmp_path / "s", "theirs")
    assert FeatureStore(tmp_path / "s").keys() == [photo(1)["id"], photo(2)["id"]]


def test_it_goes_on_after_a_kill(tmp_path: Path) -> None:
    photos = [photo(seed, 64) for seed in range(400)]
    path = write_tsv(tmp_path / "a.tsv", photos, LXMERT)
    slowly = (
        "import sys, gridvlp.store.writer as w; from gridvlp.extract.convert import convert\n"
        "add = w.StoreWriter.add\n"
        "def slow(self, key, *a, **k):\n"
        "    add(self, key, *a, **k); self.flush()\n"
        "    print(len(self), flush=True)\n"
        "w.StoreWriter.add = slow\n"
        "from pathlib import Path; convert(Path(sys.argv[1]), Path(sys.argv[2]), 'theirs')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slowly, str(path), str(tmp_path / "s")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    process.kill()
    process.communicate()
    kept = len(FeatureStore(tmp_path / "s"))
    assert 5 <= kept < 400
    report = convert(path, tmp_path / "s", "theirs")
    assert (report.already_there, report.written) == (kept, 400 - kept)
    store = FeatureStore(tmp_path / "s")
    assert store.keys() == [found["id"] for found in photos]
    assert_same(store, photos[-1], photos[-1]["id"], lxmert=True)


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gridvlp.store.creation.SHARD_BYTES", 1 << 20)  # a few photos
    peaks = []
    for count in (20, 200):
        path = write_tsv(tmp_path / f"{count}.tsv", [photo(0, 2048)], LXMERT)
        line = path.read_text()
        path.write_text("".join(line.replace("_0000", f"_{n:04}", 1) for n in range(count)))
        tracemalloc.start()
        convert(path, tmp_path / f"s{count}", "theirs")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert path.stat().st_size > 5_000_000
    assert peaks[1] - peaks[0] < 1_000_000


def test_grids_and_regions_do_not_share_a_store_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "grids").mkdir()
    np.save(tmp_path / "grids" / "a.npy", np.zeros((C, 2, 2), np.float32))
    convert(tmp_path / "grids", tmp_path / "s", "theirs")
    path = write_tsv(tmp_path / "a.tsv", [photo(0)], LXMERT)
    with pytest.raises(UserError, match="holds grids of theirs, not regions"):
        convert(path, tmp_path / "s", "theirs")
    with pytest.raises(UserError, match="one kind"):
        convert(tmp_path, tmp_path / "t", "theirs")
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(UserError, match="is empty"):
        convert(tmp_path / "empty.tsv", tmp_path / "t", "theirs")


def test_regions_are_exported_as_npz(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "a.tsv", [photo(1)], LXMERT)
    found = CliRunner().invoke(
        cli, ["convert", str(path), "--out", str(tmp_path / "s"), "--encoder", "theirs"]
    )
    assert found.exit_code == 0, found.output
    assert "1 written" in found.output
    report = export(FeatureStore(tmp_path / "s"), tmp_path / "out", lambda line: None)
    assert (report.written, report.already_there) == (1, 0)
    with np.load(tmp_path / "out" / f"{photo(1)['id']}.npz") as arrays:
        np.testing.assert_array_equal(arrays["features"], photo(1)["features"])
        np.testing.assert_array_equal(arrays["classes"], photo(1)["objects_id"])
        assert arrays["boxes"].shape == (len(photo(1)["boxes"]), 4)
        assert arrays["scores"].shape == (len(photo(1)["boxes"]),)
