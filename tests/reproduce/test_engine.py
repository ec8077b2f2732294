import json
from dataclasses import replace

import pytest
import torch

from gridvlp.errors import UserError
from gridvlp.reproduce import timing
from gridvlp.reproduce.engine import Engine
from gridvlp.reproduce.scales import Scale, scales
from gridvlp.reproduce.tables import Row


def test_the_encoder_of_a_region_row_is_a_c4_detector(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "gridvlp.extract.detector_training.train_extractor",
        lambda options, say: asked.append(options),
    )
    engine = Engine(tmp_path, tmp_path, scales("sample"), {}, print)
    folders = [engine.encoder(Row("r", backbone="x152", regions=n)) for n in (100, None, 100)]
    assert [options.regions for options in asked] == [True, False]
    assert {(options.backbone, options.width) for options in asked} == {("x152", 0.25)}
    assert folders[0] == folders[2] != folders[1]


def test_torchruns_processes_are_refused_and_do_not_wait_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="no part in torchrun"):
        Engine(tmp_path, tmp_path, scales("sample"), {}, print)


@pytest.mark.slow
def test_a_time_is_taken_once_on_the_full_width_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr("gridvlp.reproduce.timing.REPEATS", 1)
    engine = Engine(tmp_path, tmp_path, scales("sample"), {}, lambda line: None)
    small = Row("small", backbone="x50", size="64x64")
    fusions = []
    real = timing._fusion
    monkeypatch.setattr(timing, "_fusion", lambda *about: fusions.append(about) or real(*about))
    alone = engine.milliseconds(small, False)
    assert alone["ms"] > 0
    assert alone["machine"]["threads"] == torch.get_num_threads()
    assert not fusions
    assert engine.milliseconds(small, True)["ms"] > 0
    assert len(fusions) == 1
    assert engine.milliseconds(replace(small, regions=5), False)["ms"] > 0
    assert len(list((tmp_path / "times").glob("*.json"))) == 3
    later = Engine(tmp_path, tmp_path, scales("sample"), {}, print)
    assert later.milliseconds(small, False) == alone
    path = tmp_path / "times" / "x50-64x64.json"
    other = {**alone, "machine": {**alone["machine"], "threads": 99}}
    path.write_text(json.dumps(other))  # of another machine
    later = Engine(tmp_path, tmp_path, scales("sample"), {}, print)
    assert later.milliseconds(small, False)["machine"] == alone["machine"]


@pytest.mark.parametrize(
    ("settings", "chosen_by"),
    [
        ({}, ["vqa minival", "nlvr2 dev", "gqa testdev"]),
        ({"finetune gqa": {"valid-split": "val"}}, ["vqa minival", "nlvr2 dev"]),
        (
            {"finetune": {"valid-split": "dev"}, "finetune nlvr2": {"valid-split": "test1"}},
            ["nlvr2 test1"],
        ),
        (
            {"finetune nlvr2": {"valid-split": "test-P"}},
            ["vqa minival", "nlvr2 test1", "gqa testdev"],
        ),
    ],
)
def test_the_columns_by_which_epochs_are_chosen_are_known(tmp_path, settings, chosen_by):
    engine = Engine(tmp_path, tmp_path, Scale(settings), {}, lambda line: None)
    columns = ["vqa minival", "vqa test-dev", "nlvr2 dev", "nlvr2 test1", "gqa testdev"]
    assert [c for c in columns if engine.chooses_epochs_by(c)] == chosen_by
