import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from gridvlp import timing
from gridvlp.cli import cli
from gridvlp.errors import UserError
from gridvlp.reproduce import TABLES, Claim, Engine, Row, reproduce, scales
from gridvlp.results import markdown, summarize, verdict

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
PAPER = Path(__file__).resolve().parents[2] / "shared" / "paper"


def row(scores, **more):
    return {"paper": {}, "scores": {"vqa": dict(enumerate(scores))}, "not run": [], **more}


def judge(one, other, **options):
    results = {"rows": {"a": row(one), "b": row(other)}, "columns": ["vqa"]}
    (found,) = summarize(results, [vars(Claim("a beats b", "a", "b", **options))])
    return found


@pytest.mark.parametrize(
    ("one", "other", "within", "wanted"),
    [
        ([80, 81, 82], [70, 71, 72], None, "holds"),
        ([70, 71, 72], [80, 81, 82], None, "does not hold"),
        ([70, 75, 80], [71, 74, 79], None, "not clear"),
        ([80], [70], None, "not clear"),  # one seed has no spread
        ([80, 80.1], [80.5, 80.6], 1.0, "holds"),
        ([80, 80.1], [83, 83.1], 1.0, "does not hold"),
        ([], [70, 71], None, "not run"),
    ],
)
def test_a_claim_is_judged_by_the_spread_of_the_seeds(one, other, within, wanted):
    if not one:
        rows = {"a": {"paper": {}, "scores": {}, "not run": ["gone"]}, "b": row(other)}
        results = {"rows": rows, "columns": ["vqa"]}
        (found,) = summarize(results, [vars(Claim("a beats b", "a", "b"))])
    else:
        found = judge(one, other, within=within)
    assert found["verdict"] == wanted


def test_times_are_compared_as_ratios():
    rows = {"a": row([], ms=100.0, mean={}), "b": row([], ms=260.0, mean={})}
    found = verdict(vars(Claim("faster", "a", "b", columns=("ms",))), rows, [])
    assert found == {"verdict": "holds", "columns": {"ms": "2.60 times: holds"}}


@pytest.mark.parametrize("name", TABLES)
def test_tables_speak_of_rows_that_they_have(name):
    table = TABLES[name]
    rows = {row.name for row in table.rows}
    assert {r for claim in table.claims for r in (claim.better, claim.than)} <= rows
    assert {row.withheld for row in table.rows} - {None} <= rows
    for row in table.rows:
        assert row.paper.keys() <= {*table.columns, "ms", "speed-up"}


@pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's text is not beside the checkout")
def test_the_papers_figures_are_the_papers():
    text = next(PAPER.glob("*.txt")).read_text()
    for row in TABLES["2"].rows:
        ms, vqa, nlvr2 = (row.paper[name] for name in ("ms", "vqa minival", "nlvr2 dev"))
        assert f"{row.name} {ms:g} {vqa:.2f} {nlvr2:.2f}" in text
    for row in TABLES["3"].rows:
        scores = f"{row.paper['vqa minival']:.2f} {row.paper['nlvr2 dev']:.2f}"
        assert re.search(rf"{row.name.replace('x', ' ')} (\dx|-) {scores}", text)


def test_full_and_sample_scales():
    assert scales("full").seeds == (0,)
    assert len(scales("sample").seeds) == 3
    with pytest.raises(UserError, match="no scale 'tiny'"):
        scales("tiny")
    with pytest.raises(UserError, match=r"docs/reproduce\.md"):
        Engine(Path("nowhere"), None, scales("full"), {}, print)
    with pytest.raises(UserError, match="There is no table '4': there are 1, 2, 3, sampling"):
        reproduce("4", scales("sample"))


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


@pytest.mark.parametrize(
    ("column", "told"),
    [
        *((c, "give a task and a split, as in 'vqa val'") for c in ("vqa", "snli dev")),
        ("nlvr2 dve", "nlvr2 has no split 'dve'; it has"),
    ],
)
def test_a_column_is_a_task_and_a_split(tmp_path, column, told):
    with pytest.raises(UserError, match=told):
        reproduce("1", scales("sample"), columns=(column,), work=tmp_path / "work")
    assert not (tmp_path / "work").exists()  # nothing was begun


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


TINY = {
    "train-extractor": {
        "size": "64x96",
        "iterations": 2,
        "batch-size": 2,
        "rpn-batch": 16,
        "roi-batch": 16,
        "proposals": 16,
        "eval-steps": 10,
        "precision": "float32",
    },
    "pretrain": {
        "source": ["vqa"],
        "hidden-size": 32,
        "layers": 1,
        "heads": 2,
        "grids": 3,
        "epochs": 1,
        "batch-size": 64,
        "initializer-range": 0.1,
    },
    "finetune": {"epochs": 1, "batch-size": 64},
    "finetune gqa": {"train-split": ["train"], "valid-split": "val"},
}


@pytest.mark.slow
def test_a_table_is_filled_goes_on_after_an_interruption_and_runs_nothing_twice(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("gridvlp.reproduce.PHOTO_FOLDERS", ("coco", "nlvr2/images"))
    scale = replace(
        scales("sample"),
        settings=TINY,
        seeds=(0,),
        images=48,
        processes=1,
        sizes={"600x1000": "64x96"},
        columns={
            "vqa minival": "vqa test",
            "vqa test-dev": "",
            "nlvr2 dev": "nlvr2 test1",
            "gqa testdev": "",
        },
    )
    told = []

    def stop(line):
        told.append(line)
        if "Encoder from" in line:  # the first fine-tuning
            raise KeyboardInterrupt

    def run(say, **other):
        return reproduce(
            "1",
            replace(scale, **other),
            work=tmp_path / "work",
            out=tmp_path / "out",
            weights={"x152-regions": "gone.pth"},
            say=say,
        )

    with pytest.raises(KeyboardInterrupt):
        run(stop)
    results = run(told.append)
    assert results["columns"] == ["vqa test", "nlvr2 test1"]
    ours, fresh, regions, withheld = results["rows"].values()
    for filled in (ours, fresh, withheld):
        assert filled["scores"].keys() == {"vqa test", "nlvr2 test1"}
        assert filled["not run"] == []
    runs = tmp_path / "work/runs/x152-64x96-25grids/seed0"
    metrics = json.loads((runs / "vqa/evaluate-test/metrics.json").read_text())
    assert ours["scores"]["vqa test"] == {"0": metrics["figures"]["accuracy"]}
    assert withheld["scores"]["vqa test"] == {"0": metrics["withheld"]["accuracy"]}
    assert json.loads((runs / "vqa-fresh/run.json").read_text())["options"]["fresh"]
    verdicts = {claim["claim"]: claim["verdict"] for claim in results["claims"]}
    assert verdicts["Grids do no worse than regions."] == "not run"
    assert any("no encoder weights at gone.pth" in reason for reason in regions["not run"])

    written = json.loads((tmp_path / "out/table-1.json").read_text())
    page = (tmp_path / "out/table-1.md").read_text()
    assert page == markdown(written)
    assert f"| ours | {metrics['figures']['accuracy']:.2f} |" in page
    assert "76.05" not in page  # the paper's figures are not of these data

    before = {path: path.stat().st_mtime_ns for path in runs.rglob("result.json")}
    again = run(told.append)
    assert again["rows"] == results["rows"]
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("result.json")}
    assert len(before) == 5  # pre-training, and two tasks with and without it, on grids

    both = run(told.append, seeds=(0, 1), processes=2)
    for name, before_it in results["rows"].items():
        for column, scores in before_it["scores"].items():
            found = both["rows"][name]["scores"][column]
            assert found.keys() == {"0", "1"}
            assert found["0"] == scores["0"]
    assert both["rows"]["ours, on regions"]["not run"] == regions["not run"]
    assert "pretrain" in (tmp_path / "work/logs/x152-64x96-25grids-seed1.log").read_text()


def test_the_encoder_of_a_region_row_is_a_c4_detector(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "gridvlp.extract.training.train_extractor", lambda options, say: asked.append(options)
    )
    engine = Engine(tmp_path, tmp_path, scales("sample"), {}, print)
    folders = [engine.encoder(Row("r", backbone="x152", regions=n)) for n in (100, None, 100)]
    assert [options.regions for options in asked] == [True, False]
    assert {(options.backbone, options.width) for options in asked} == {("x152", 0.25)}
    assert folders[0] == folders[2] != folders[1]


@pytest.mark.slow
def test_a_time_is_taken_once_on_the_full_width_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr("gridvlp.timing.REPEATS", 1)
    engine = Engine(tmp_path, tmp_path, scales("sample"), {}, lambda line: None)
    small = Row("small", backbone="x50", size="64x64")
    fusions = []
    real = timing._fusion
    monkeypatch.setattr(timing, "_fusion", lambda *about: fusions.append(about) or real(*about))
    alone = engine.milliseconds(small, False)
    assert alone > 0
    assert not fusions
    assert engine.milliseconds(small, True) > 0
    assert len(fusions) == 1
    assert engine.milliseconds(small, False) == alone
    assert engine.milliseconds(replace(small, regions=5), False) > 0
    assert json.loads((tmp_path / "times.json").read_text()).keys() == {
        *("x50 64x64", "x50 64x64 and fusion", "x50-regions 64x64")
    }


def test_full_scale_shows_the_papers_figures_beside_ours():
    rows = {
        "x50": {**row([74, 75]), "paper": {"ms": 106, "vqa": 74.34}, "ms": 5.0},
        "x101": {**row([]), "paper": {"ms": 153, "vqa": 75.18}, "scores": {}, "not run": ["gone"]},
    }
    results = {
        "table": "2",
        "title": "t",
        "scale": "full",
        "date": "d",
        "data": "data",
        "seeds": [0, 1],
        "columns": ["vqa"],
        "rows": rows,
        "times": None,
        "claims": [],
        "weights": {"x50": "mine.pth"},
        "environment": {"commit": None},
    }
    summarize(results, [])
    page = markdown(results)
    assert "|  | ms per photo | vqa | paper: ms per photo | paper: vqa |" in page
    assert "| x50 | 5.0 | 74.50 ± 0.71 | 106 | 74.34 |" in page
    assert "| x101 | – | – | 153 | 75.18 |" in page
    assert "- x101: gone" in page
    assert "Encoders not trained here: x50 = mine.pth." in page
