"""Feature files of others become a store and come back as they were."""

import pickle

import numpy as np
import pytest
import torch

from gridvlp.convert import convert, export
from gridvlp.errors import UserError
from gridvlp.store import FeatureStore

C = 300


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    return {
        f"p{n}": rng.random((C, 2 + n % 3, 4)).astype(np.float16).astype(np.float32)
        for n in range(6)
    }


def save(folder, maps, kind):
    folder.mkdir()
    for key, map_CHW in maps.items():
        if kind == "npy":
            np.save(folder / f"{key}.npy", map_CHW)
        elif kind == "npz":
            np.savez(folder / f"{key}.npz", x=map_CHW, size=np.array([640, 480]))
        else:  # as grid-feats-vqa writes them
            torch.save(torch.from_numpy(map_CHW)[None], folder / f"{key}.pth")
    return folder


@pytest.mark.parametrize("kind", ["npy", "npz", "pth"])
def test_every_kind_of_file_becomes_the_same_store(tmp_path, maps, kind):
    report = convert(save(tmp_path / "in", maps, kind), tmp_path / "s.zarr", "theirs")
    assert (report.found, report.written, report.skipped) == (6, 6, {})
    store = FeatureStore(tmp_path / "s.zarr")
    assert store.encoder["name"] == "theirs"
    for key, map_CHW in maps.items():
        np.testing.assert_array_equal(store.map(key), map_CHW)


def test_an_export_converts_back_to_the_same_maps(tmp_path, maps):
    convert(save(tmp_path / "in", maps, "npy"), tmp_path / "s.zarr", "theirs")
    store = FeatureStore(tmp_path / "s.zarr")
    assert export(store, tmp_path / "out", lambda line: None) == (6, 0)
    assert export(store, tmp_path / "out", lambda line: None) == (0, 6)
    convert(tmp_path / "out", tmp_path / "again.zarr", "theirs")
    for key in maps:
        np.testing.assert_array_equal(FeatureStore(tmp_path / "again.zarr").map(key), maps[key])


def test_it_goes_on_where_it_was(tmp_path, maps):
    folder = save(tmp_path / "in", dict(list(maps.items())[:2]), "npy")
    convert(folder, tmp_path / "s.zarr", "theirs")
    for key, map_CHW in maps.items():
        np.save(folder / f"{key}.npy", map_CHW)
    report = convert(folder, tmp_path / "s.zarr", "theirs")
    assert (report.written, report.already_there) == (4, 2)
    with pytest.raises(UserError, match="holds grids of theirs"):
        convert(folder, tmp_path / "s.zarr", "ours")


def test_channels_last_is_said_and_not_guessed(tmp_path, maps):
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "a.npy", maps["p0"].transpose(1, 2, 0))
    with pytest.raises(UserError, match="--channels-last"):
        convert(folder, tmp_path / "s.zarr", "theirs")
    convert(folder, tmp_path / "s.zarr", "theirs", channels_last=True)
    np.testing.assert_array_equal(FeatureStore(tmp_path / "s.zarr").map("a"), maps["p0"])


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
    np.save(folder / "nan.npy", np.full((C, 2, 2), np.nan, np.float32))
    np.save(folder / "large.npy", np.zeros((C, 30, 30), np.float32))
    np.save(folder / "narrow.npy", np.zeros((C - 1, 2, 2), np.float32))
    report = convert(folder, tmp_path / "s.zarr", "theirs")
    assert report.written == 6
    assert len(report.skipped) == 10
    assert all(report.skipped.values())
    assert len(report.lines()) == 11


def test_a_folder_without_features_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \.npy"):
        convert(tmp_path, tmp_path / "s.zarr", "theirs")
