"""The commands on real photos and official lines, where these stand beside the checkout."""

import json
import sys

import pytest

from gridvlp import cli
from gridvlp.store import FeatureStore

TINY = (
    *("--hidden-size", "32", "--layers", "1", "--heads", "2", "--epochs", "1"),
    *("--batch-size", "32", "--source", "coco-captions", "--source", "vqa"),
)
SPLITS = {
    "vqa": (("--train-split", "train", "--valid-split", "val"), "val", 42),
    "gqa": (("--train-split", "train", "--valid-split", "train"), "train", 2),
    "nlvr2": (("--train-split", "dev", "--valid-split", "test1"), "test1", 8),
}


@pytest.fixture(scope="module")
def gridvlp(shared_data, tmp_path_factory):
    """Runs a command in a folder whose data/ is the real data; fails on any error."""
    folder = tmp_path_factory.mktemp("real")
    data = folder / "data"
    data.mkdir()
    for part in shared_data.iterdir():  # links, so that the corpus cache is written here
        (data / part.name).symlink_to(part)

    def run(capsys, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["gridvlp", *map(str, arguments)])
            try:
                cli.main()
            except SystemExit as stop:
                raise AssertionError(capsys.readouterr().err) from stop
        return capsys.readouterr().out

    run.folder = folder
    return run


@pytest.mark.slow
def test_real_photos_and_lines_go_all_the_way(gridvlp, capsys):
    told = gridvlp(
        capsys,
        "extract",
        *("--images", "coco", "--images", "gqa/images", "--images", "vg"),
        *("--images", "nlvr2/images", "--weights", "random", "--width", "0.25", "--size", "96x160"),
    )
    assert "267 photos: 267 written" in told
    assert "0 skipped" in told
    assert "untrained" in told
    store = FeatureStore(gridvlp.folder / "store.zarr")
    assert len(store) == 267
    assert "COCO_val2014_000000262148" in store
    assert "000000262148" in store
    assert len({store.shape(key) for key in list(store.keys())}) > 5

    told = gridvlp(capsys, "pretrain", *TINY)
    assert "COCO minival" in told  # photos of the 2017 validation split are kept out
    lines = [line.split() for line in told.splitlines()]
    pairs = {
        line[0]: int(line[1]) for line in lines if line and line[0] in ("coco-captions", "vqa")
    }
    assert pairs == {"coco-captions": 400, "vqa": 146}

    for task, (splits, split, examples) in SPLITS.items():
        gridvlp(capsys, "finetune", task, *splits, "--epochs", 1, "--batch-size", 8)
        told = gridvlp(capsys, "evaluate", task, "--split", split, "--withheld")
        assert "accuracy" in told
        folder = gridvlp.folder / f"runs/finetune-{task}/evaluate-{split}"
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["examples"] == examples
        assert 0 <= metrics["figures"]["accuracy"] <= 100
        assert any(folder.glob("predictions.*"))
