from pathlib import Path

import pytest
from click.testing import CliRunner

from gridvlp.cli import cli
from gridvlp.errors import UserError
from gridvlp.reproduce.engine import Engine
from gridvlp.reproduce.scales import scales

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def test_full_and_sample_scales():
    assert scales("full").seeds == (0,)
    assert len(scales("sample").seeds) == 3
    with pytest.raises(UserError, match="no scale 'tiny'"):
        scales("tiny")
    with pytest.raises(UserError, match=r"docs/reproduce\.md"):
        Engine(Path("nowhere"), None, scales("full"), {}, print)


def test_a_file_changes_the_settings_of_commands_and_hears_of_what_rows_decide():
    told = []
    file = {
        "reproduce": {"seeds": 1},
        "evaluate": {"batch-size": 4},
        "train-extractor": {"iterations": 7, "backbone": "x50"},
        "pretrain": {"grids": "all", "source": ["vqa"]},
        "finetune": {"epochs": 2},
        "finetune vqa": {"train-split": ["train"], "valid-split": "val"},
    }
    before = scales("sample")
    after = before.with_settings(file, told.append)
    assert told == [
        "Left out: evaluate's batch-size, which a table decides itself.",
        "Left out: train-extractor's backbone, which a table decides itself.",
        "Left out: pretrain's grids, which a table decides itself.",
    ]
    engine = Engine(Path("nowhere"), Path("nowhere"), after, {}, print)
    assert engine.section("train-extractor")["iterations"] == 7
    assert "iterations" not in engine.section("train-extractor regions")
    assert engine.section("pretrain")["sources"] == ("vqa",)
    assert engine.section("finetune vqa") == {"train_splits": ("train",), "valid_split": "val"}
    assert engine.section("finetune")["epochs"] == 2
    assert "epochs" in before.settings["finetune nlvr2"]  # and gives way to the file's
    assert "epochs" not in engine.section("finetune nlvr2")
    assert before == scales("sample")


def tried(monkeypatch, *arguments):
    """What the command line asks of ``reproduce``."""
    asked = {}

    def stand_in(table, scale, **rest):
        asked.update(rest, table=table, scale=scale)
        rest["out"].mkdir(parents=True)
        (rest["out"] / f"table-{table}.md").write_text("a table")

    monkeypatch.setattr("gridvlp.reproduce.reproduce", stand_in)
    result = CliRunner().invoke(cli, ["reproduce", *arguments], catch_exceptions=True)
    return asked, result


def test_the_recipe_of_a_trial_is_heard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked, result = tried(monkeypatch, "2", "--config", str(RECIPES / "trial.yaml"))
    assert result.exit_code == 0
    assert "Left out" not in result.stderr
    assert asked["columns"] == ("vqa val", "nlvr2 test1", "gqa train")
    assert asked["weights"].keys() == {"x50", "x101", "x152", "x152-regions"}
    assert (asked["work"], asked["out"]) == (Path("runs/trial"), Path("results/trial"))
    assert asked["scale"].seeds == (0,)
    engine = Engine(tmp_path, tmp_path, asked["scale"], {}, print)
    for task, splits in (("vqa", ("train",)), ("nlvr2", ("dev",)), ("gqa", ("train",))):
        section = {**engine.section("finetune"), **engine.section(f"finetune {task}")}
        assert section["epochs"] == 2
        assert section["train_splits"] == splits


def test_values_of_a_file_have_their_options_types(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "pretrain: {learning-rate: 5e-4, source: vqa}"  # text to YAML, and not a list
    (tmp_path / "own.yaml").write_text(text)
    asked, _ = tried(monkeypatch, "1", "--config", "own.yaml")
    settings = asked["scale"].settings["pretrain"]
    assert settings["learning-rate"] == 0.0005
    assert tuple(settings["source"]) == ("vqa",)


def test_weights_are_of_encoders_that_exist(monkeypatch):
    asked, result = tried(monkeypatch, "1", "--weights", "x125=X.pth")
    assert not asked
    assert "there is no encoder 'x125'; there are x50, x101, x152" in str(result.exception)
