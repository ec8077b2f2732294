"""The whole way on a store of regions: boxes are part of what is read."""

import json
import sys

import numpy as np
import pytest

from gridvlp import cli
from gridvlp.store import FeatureStore
from gridvlp.train.grids import read_grids
from gridvlp.train.relevance import paint
from tests.squares import write_store


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    path = tmp_path_factory.mktemp("regions") / "regions.zarr"
    write_store(path, kind="regions")
    return path


def test_a_sample_of_regions_keeps_each_with_its_box(regions):
    store = FeatureStore(regions)
    keys = ["000000000001", "000000000002"]
    seen = read_grids(store, keys, 3, [0, 1])
    assert seen["boxes_IG4"].shape == (2, 3, 4)
    for image, key in enumerate(keys):
        whole = store.regions(key)
        box_of = {
            row.tobytes(): box
            for row, box in zip(whole.features_NC.astype(np.float16), whole.boxes_N4, strict=True)
        }
        assert len(box_of) > 3
        for row, box in zip(seen["grids_IGC"][image], seen["boxes_IG4"][image], strict=True):
            assert np.array_equal(box_of[row.numpy().tobytes()], box)
    alone = read_grids(store, keys[1:], 3, [0, 1])
    assert alone["boxes_IG4"][0].equal(seen["boxes_IG4"][1])
    everything = read_grids(store, keys, None, [])
    counts = [len(store.regions(key).boxes_N4) for key in keys]
    assert everything["grid_mask_IG"].sum(1).tolist() == counts


def test_a_better_region_is_painted_over_a_worse_one():
    painted_HW = paint(
        np.array([0.5, 1.0, 0.0], np.float32),
        np.array([[0, 0, 1, 0.5], [0.5, 0.25, 1, 1], [0, 0.75, 0.1, 1]], np.float32),
    )
    assert painted_HW[0, 0] == painted_HW[31, 31] == 0.5
    assert painted_HW[16, 32] == painted_HW[63, 63] == 1.0
    assert painted_HW[32, 0] == painted_HW[63, 0] == 0.0


def test_every_command_works_on_regions(squares, regions, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(squares / "data")
    (tmp_path / "store.zarr").symlink_to(regions)

    def gridvlp(*arguments):
        monkeypatch.setattr(sys, "argv", ["gridvlp", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    small = ("--hidden-size", 32, "--layers", 2, "--heads", 2, "--initializer-range", 0.1)
    often = ("--batch-size", 16, "--learning-rate", 2e-3, "--precision", "float32")
    code, told = gridvlp("pretrain", *small, *often, "--epochs", 4, "--grids", 4, "--dropout", 0)
    assert code == 0, told
    assert "Fusion model on regions" in told
    code, told = gridvlp("finetune", "vqa", *often, "--epochs", 10)
    assert code == 0, told
    code, told = gridvlp("evaluate", "vqa", "--split", "val")
    assert code == 0, told
    figures = json.loads((tmp_path / "runs/finetune-vqa/evaluate-val/metrics.json").read_text())
    assert figures["figures"]["accuracy"] == 100
    asked = ("--question", "What color is the square?")
    code, told = gridvlp(
        "predict", "vqa", "--key", "000000000033", *asked, "--picture", "looked.png"
    )
    assert code == 0, told
    assert (tmp_path / "looked.png").read_bytes().startswith(b"\x89PNG")
    assert told.split()[1] == "blue"
    (tmp_path / "store.zarr").unlink()
    (tmp_path / "store.zarr").symlink_to(squares / "store.zarr")
    code, told = gridvlp("predict", "vqa", "--key", "000000000033", *asked)
    assert code == 2
    assert "trained on regions; the store holds grids" in told
