"""Feature files of others become a store and come back as they were."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gridvlp.errors import UserError
from gridvlp.extract.convert import convert
from gridvlp.extract.export import export
from gridvlp.run.skip_list import TooManySkipped
from gridvlp.store import FeatureStore, StoreWriter

C = 300


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    return {
        f"p{n}": rng.random((C, 2 + n % 3, 4)).astype(np.float16).astype(np.float32)
        for n in range(6)
    }


def save(folder, maps, kind):
    folder.mkdir(parents=True)
    for key, map_CHW in maps.items():
        if kind == "npy":
            np.save(folder / f"{key}.npy", map_CHW)
        elif kind == "npz":
            np.savez(folder / f"{key}.npz", x=map_CHW, size=np.array([640, 480]))
        else:  # as grid-feats-vqa writes them
            torch.save(torch.from_numpy(map_CHW)[None], folder / f"{key}.pth")
    return folder


def numbered(number, shape=(8, 2, 2)):
    return np.full(shape, number, np.float32)


@pytest.mark.parametrize("kind", ["npy", "npz", "pth"])
def test_every_kind_of_file_becomes_the_same_store(tmp_path, maps, kind):
    report = convert(save(tmp_path / "in", maps, kind), tmp_path / "s.zarr", "theirs")
    assert (report.found, report.written, len(report.skipped)) == (6, 6, 0)
    assert report.lines() == ["6 photos' features: 6 written, 0 there already, 0 skipped."]
    store = FeatureStore(tmp_path / "s.zarr")
    assert store.encoder["name"] == "theirs"
    for key, map_CHW in maps.items():
        np.testing.assert_array_equal(store.map(key), map_CHW)


def test_it_resumes_where_it_was(tmp_path, maps):
    folder = save(tmp_path / "in", dict(list(maps.items())[:2]), "npy")
    convert(folder, tmp_path / "s.zarr", "theirs")
    for key, map_CHW in maps.items():
        np.save(folder / f"{key}.npy", map_CHW)
    report = convert(folder, tmp_path / "s.zarr", "theirs")
    assert (report.written, report.already_there, len(report.skipped)) == (4, 2, 0)
    (tmp_path / "moved").mkdir()
    shutil.move(folder, tmp_path / "moved" / "in")
    assert convert(tmp_path / "moved" / "in", tmp_path / "s.zarr", "theirs").already_there == 6
    with pytest.raises(UserError, match="holds grids of theirs"):
        convert(tmp_path / "moved" / "in", tmp_path / "s.zarr", "ours")


def test_channels_last_is_said_and_not_guessed(tmp_path, maps):
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "a.npy", maps["p0"].transpose(1, 2, 0))
    with pytest.raises(UserError, match="--channels-last"):
        convert(folder, tmp_path / "s.zarr", "theirs")
    convert(folder, tmp_path / "s.zarr", "theirs", channels_last=True)
    np.testing.assert_array_equal(FeatureStore(tmp_path / "s.zarr").map("a"), maps["p0"])


# --- files of one name -----------------------------------------------------------------------


def test_files_of_one_stem_in_two_folders_are_two_photos(tmp_path):
    for number, name in enumerate(("vid1/0001", "vid1/0002", "vid2/0001", "vid3/0001", "vid3/a")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "in" / f"{name}.npy", numbered(number))
    report = convert(tmp_path / "in", tmp_path / "s", "theirs")
    assert (report.written, report.already_there, len(report.skipped)) == (5, 0, 0)
    store = FeatureStore(tmp_path / "s")
    for number, key in enumerate(("vid1/0001", "0002", "vid2/0001", "vid3/0001", "a")):
        assert (store.map(key) == number).all()
    assert convert(tmp_path / "in", tmp_path / "s", "theirs").already_there == 5


def test_a_second_folder_does_not_take_the_first_ones_maps_for_its_own(tmp_path):
    for number, name in enumerate(("vid1", "vid2")):
        save(tmp_path / name, {"0001": numbered(number), f"{name}-own": numbered(5)}, "npy")
    convert(tmp_path / "vid1", tmp_path / "s", "theirs")
    report = convert(tmp_path / "vid2", tmp_path / "s", "theirs")
    assert (report.written, report.already_there) == (1, 0)
    assert list(report.skipped.reasons) == [str(tmp_path / "vid2" / "0001.npy")]
    assert "another photo under its key" in report.lines()[1]


def test_two_files_of_one_photo_are_not_there_already(tmp_path):
    """Of two kinds, and under COCO's two names; a damaged one leaves its key to the other."""
    folder = save(tmp_path / "in", {"a": numbered(1), "c": numbered(1)}, "npy")
    (folder / "c.npy").write_bytes(b"damaged")
    save(tmp_path / "in" / "pth", {"b": numbered(2)}, "pth")
    np.save(folder / "COCO_val2014_000000262148.npy", numbered(3))
    np.save(folder / "pth" / "000000262148.npy", numbered(4))
    torch.save(torch.from_numpy(numbered(2)), folder / "a.pth")
    torch.save(torch.from_numpy(numbered(2)), folder / "c.pth")
    report = convert(folder, tmp_path / "s", "theirs")
    assert (report.found, report.written, report.already_there) == (7, 4, 0)
    reasons = {Path(name).name: why for name, why in report.skipped.reasons.items()}
    assert set(reasons) == {"a.pth", "c.npy", "000000262148.npy"}
    assert reasons["a.pth"] == f"has the same key as {folder / 'a.npy'}"
    assert (FeatureStore(tmp_path / "s").map("c") == 2).all()
    listed = (tmp_path / "s.skipped.txt").read_text().splitlines()
    assert len(listed) == 3
    assert f"  each is listed in {tmp_path / 's.skipped.txt'}" in report.lines()


# --- what is skipped -------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_bad_files_are_skipped_with_a_reason_and_no_code_runs(tmp_path, maps):
    folder = save(tmp_path / "in", maps, "npy")
    (folder / "empty.npy").touch()
    (folder / "cut.npy").write_bytes((folder / "p0.npy").read_bytes()[:200])
    (folder / "text.pth").write_text("no tensor")
    (folder / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"a": 1}, folder / "dict.pth")
    np.save(folder / "objects.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    np.save(folder / "flat.npy", np.zeros(9))
    np.save(folder / "nothing.npy", np.zeros((C, 0, 4), np.float32))
    np.save(folder / "nan.npy", np.full((C, 2, 2), np.nan, np.float32))
    np.save(folder / "beyond16.npy", np.full((C, 2, 2), 1e6, np.float32))
    np.save(folder / "beyond32.npy", np.full((C, 2, 2), 1e300))
    np.save(folder / "large.npy", np.zeros((C, 30, 30), np.float32))
    np.save(folder / "narrow.npy", np.zeros((C - 1, 2, 2), np.float32))
    (folder / "folder.npy").mkdir()
    report = convert(folder, tmp_path / "s.zarr", "theirs")
    assert report.written == 6
    assert len(report.skipped) == 14
    assert all(report.skipped.reasons.values())
    assert len((tmp_path / "s.zarr.skipped.txt").read_text().splitlines()) == 14
    assert sum("skipped" in line for line in report.lines()) > 5


def test_files_of_other_kinds_are_counted(tmp_path, maps):
    folder = save(tmp_path / "in", maps, "npy")
    for name in ("a.h5", "b.H5", "readme", ".hidden"):
        (folder / name).touch()
    np.save(folder / "upper", numbered(0, (C, 2, 2)))
    (folder / "upper.npy").rename(folder / "upper.NPY")
    report = convert(folder, tmp_path / "s", "theirs")
    assert report.written == 7
    assert report.lines()[-1] == "3 files passed over: 2 .h5, 1 without a suffix."


def test_too_many_bad_files_stop_and_what_was_written_stays(tmp_path, gridvlp):
    folder = save(tmp_path / "in", {"a": numbered(1), "z": numbered(2)}, "npy")
    for number in range(12):
        (folder / f"b{number:02}.npy").write_bytes(b"damaged")
    with pytest.raises(TooManySkipped, match="10 inputs in a row"):
        convert(folder, tmp_path / "s", "theirs", skip_limit=10)
    assert FeatureStore(tmp_path / "s").keys() == ["a"]
    assert len((tmp_path / "s.skipped.txt").read_text().splitlines()) == 10
    arguments = ("convert", folder, "--out", tmp_path / "s", "--encoder", "theirs")
    code, out, _ = gridvlp(*arguments, "--skip-limit", "0")
    assert code == 0
    assert "1 written, 1 there already, 12 skipped" in out


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    os.mkfifo(folder / "a.npy")
    np.save(folder / "b.npy", np.ones((4, 2, 3), np.float32))
    report = convert(folder, tmp_path / "s", "theirs")
    assert report.written == 1
    assert report.skipped.reasons == {str(folder / "a.npy"): "is not a file."}


def test_a_folder_without_features_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \.npy"):
        convert(tmp_path, tmp_path / "s.zarr", "theirs")
    np.save(tmp_path / "a.npy", numbered(1))
    with pytest.raises(UserError, match=r"not a \.tsv file"):
        convert(tmp_path / "a.npy", tmp_path / "s.zarr", "theirs")


# --- export ----------------------------------------------------------------------------------


def test_an_export_converts_back_to_the_same_maps(tmp_path, maps):
    convert(save(tmp_path / "in", maps, "npy"), tmp_path / "s.zarr", "theirs")
    store = FeatureStore(tmp_path / "s.zarr")
    report = export(store, tmp_path / "out", lambda line: None)
    assert (report.written, report.already_there, report.renamed) == (6, 0, {})
    report = export(store, tmp_path / "out", lambda line: None)
    assert (report.written, report.already_there) == (0, 6)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{key}.npy" for key in maps
    ]
    convert(tmp_path / "out", tmp_path / "again.zarr", "theirs")
    for key in maps:
        np.testing.assert_array_equal(FeatureStore(tmp_path / "again.zarr").map(key), maps[key])


ODD_KEYS = (
    *(
        "vid1/0001",
        "vid2/0001",
        "..",
        "../up",
        ".hidden",
        "100%",
        "vid1%2F0001",
        "a\\b",
        "new\nline",
    ),
    *("\ud800x", "\udcff", "a" * 255, "a" * 300, "b" * 300, "ü" * 200, "a" * 251, "ok"),
)


def test_every_key_is_exported_and_comes_back(tmp_path, capsys):
    with StoreWriter.create(tmp_path / "s", channels=8) as writer:
        for number, key in enumerate(ODD_KEYS):
            writer.add(key, numbered(number))
    report = export(FeatureStore(tmp_path / "s"), tmp_path / "out" / "in")
    assert (report.written, len(report.skipped)) == (len(ODD_KEYS), 0)
    assert f"{len(ODD_KEYS) - 2} keys cannot be a file's name" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["in"]
    assert (tmp_path / "out" / "in" / "vid1%2F0001.npy").is_file()
    report = convert(tmp_path / "out" / "in", tmp_path / "again", "theirs")
    assert (report.written, len(report.skipped), report.passed_over.total()) == (
        *(len(ODD_KEYS), 0, 0),
    )
    again = FeatureStore(tmp_path / "again")
    assert set(again.keys()) == set(ODD_KEYS)
    for number, key in enumerate(ODD_KEYS):
        assert (again.map(key) == number).all()


def test_two_stores_may_be_exported_to_one_folder(tmp_path):
    for number, key in enumerate(("a/0", "b/0")):
        with StoreWriter.create(tmp_path / f"{number}", channels=8) as writer:
            writer.add(key, numbered(number))
        export(FeatureStore(tmp_path / f"{number}"), tmp_path / "out", lambda line: None)
    convert(tmp_path / "out", tmp_path / "again", "theirs")
    assert FeatureStore(tmp_path / "again").keys() == ["a/0", "b/0"]


def test_a_broken_list_of_exported_keys_is_refused(tmp_path):
    folder = save(tmp_path / "in", {"a": numbered(1)}, "npy")
    for text in ("{", "[]", json.dumps({"a.npy": 5})):
        (folder / "keys.json").write_text(text)
        with pytest.raises(UserError, match=r"keys\.json cannot be read"):
            convert(folder, tmp_path / "s", "theirs")


def test_a_damaged_map_is_skipped_by_an_export(tmp_path, capsys):
    with StoreWriter.create(tmp_path / "s", channels=8) as writer:
        for number in range(4):
            writer.add(f"p{number}", numbered(number))
            writer.flush()
    shard = sorted(path for path in (tmp_path / "s" / "grids").rglob("*") if path.is_file())[1]
    content = bytearray(shard.read_bytes())
    content[:40] = bytes(40)
    shard.write_bytes(content)
    report = export(FeatureStore(tmp_path / "s"), tmp_path / "out")
    assert (report.written, len(report.skipped)) == (3, 1)
    assert "3 maps written" in capsys.readouterr().out


def test_a_feature_file_that_has_changed_is_listed(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "a.npy", np.ones((8, 2, 3), np.float32))
    np.save(tmp_path / "maps" / "b.npy", np.ones((8, 2, 3), np.float32))
    convert(tmp_path / "maps", tmp_path / "s.zarr", "theirs")
    np.save(tmp_path / "maps" / "a.npy", np.zeros((8, 3, 3), np.float32))
    report = convert(tmp_path / "maps", tmp_path / "s.zarr", "theirs")
    assert (report.written, report.already_there) == (0, 1)
    (reason,) = report.skipped.reasons.values()
    assert "has changed since it was extracted" in reason
