import json
from dataclasses import replace

import pytest

from gridvlp.errors import UserError
from gridvlp.reproduce import reproduce, scales
from gridvlp.reproduce.engine import Score
from gridvlp.reproduce.results import markdown


def test_there_are_four_tables():
    with pytest.raises(UserError, match="There is no table '4': there are 1, 2, 3, sampling"):
        reproduce("4", scales("sample"))


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


def test_what_files_lack_is_said_before_anything_is_begun(tmp_path):
    data, told = tmp_path / "data", []

    def run(**more):
        folders = {"work": tmp_path / "work", "out": tmp_path / "out"}
        return reproduce("3", scales("full"), data=data, say=told.append, **folders, **more)

    with pytest.raises(UserError, match=r"no score can be had.*v2_OpenEnded.*image_data\.json"):
        run()
    assert f"Not in {data}: photos of coco, vg/VG_100K" in told[0]
    with pytest.raises(UserError, match=r"Not there: .*, gone\.pth, "):
        run(weights={"x152": "gone.pth"})
    assert not (tmp_path / "work").exists()


def test_the_other_scores_of_a_table_go_on_and_the_reasons_are_told(tmp_path, monkeypatch):
    lines = tmp_path / "data" / "nlvr2"
    lines.mkdir(parents=True)
    for split in ("train", "dev"):
        (lines / f"{split}.json").write_text("")
    told, ran, failing = [], [], []

    def score(self, row, column, seed):
        ran.append((row.name, column, seed))
        if row.name in failing:
            raise UserError("It rained.")
        return Score(50.0 + seed, 10, 2 * seed, ("abc1234",))

    monkeypatch.setattr("gridvlp.reproduce.engine.Engine.score", score)

    def run():
        return reproduce(
            "sampling",
            replace(scales("full"), seeds=(0, 1)),
            data=tmp_path / "data",
            work=tmp_path / "work",
            out=tmp_path / "out",
            weights={"x152": "random", "x50": "random"},
            say=told.append,
        )

    failing.append("128")
    rows = run()["rows"]
    assert {column for _, column, _ in ran} == {"nlvr2 dev"}
    assert rows["64"]["scores"] == {"nlvr2 dev": {"0": 50.0, "1": 51.0}}
    assert len(rows["64"]["not run"]) == 1
    assert "vqa minival: Not there: " in rows["64"]["not run"][0]
    assert rows["128"]["not run"][1:] == ["nlvr2 dev: It rained."]
    assert told.count("128: not run: nlvr2 dev: It rained.") == 1
    written = tmp_path / "out" / "table-sampling.md"
    page = written.read_text()
    assert "nlvr2 dev: 10 lines" in page
    assert "Runs by commit abc1234." in page
    assert "x152 = random." in page
    assert "x50" not in page  # this table has no use for it
    failing.append("64")
    run()
    assert written.read_text() == page  # which has more scores
    assert "table-sampling.md has more scores and stays" in told[-1]
    failing.append("100")
    with pytest.raises(UserError, match=r"no score could be had; .*sampling\.unfinished\.md"):
        run()
    assert written.read_text() == page  # an older table stays
    assert "It rained." in written.with_name("table-sampling.unfinished.md").read_text()


def test_results_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"/out/.* cannot be written"):
        reproduce(
            "2",
            replace(scales("sample"), images=40),
            work=tmp_path / "work",
            out=tmp_path / "out",
            weights=dict.fromkeys(("x50", "x101", "x152", "x152-regions"), "random"),
            say=lambda line: None,
        )


@pytest.mark.slow
def test_a_table_is_filled_goes_on_after_an_interruption_and_runs_nothing_twice(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("gridvlp.reproduce.engine.PHOTO_FOLDERS", ("coco", "nlvr2/images"))
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
    assert "**Unfinished: 0 of 1 runs.**" in (tmp_path / "out/table-1.unfinished.md").read_text()
    assert not (tmp_path / "out/table-1.md").exists()
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
    assert verdicts["Grids do better than regions."] == "not run"
    assert any("Not there: gone.pth" in reason for reason in regions["not run"])

    written = json.loads((tmp_path / "out/table-1.json").read_text())
    page = (tmp_path / "out/table-1.md").read_text()
    assert page == markdown(written)
    assert not (tmp_path / "out/table-1.unfinished.md").exists()
    assert written["lines"]["vqa test"] == {"examples": metrics["examples"], "left out": 0}
    assert f"| ours | {metrics['figures']['accuracy']:.2f} |" in page
    assert "76.05" not in page  # the paper's figures are not of these data

    before = {path: path.stat().st_mtime_ns for path in runs.rglob("result.json")}
    again = run(told.append)
    assert again["rows"] == results["rows"]
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("result.json")}
    assert len(before) == 5  # pre-training, and two tasks with and without it, on grids

    evaluated = runs / "vqa/evaluate-test/metrics.json"
    evaluated.write_text(json.dumps({**metrics, "withheld": None}))  # as by hand, without
    assert run(told.append)["rows"] == results["rows"]
    assert json.loads(evaluated.read_text()) == metrics

    both = run(told.append, seeds=(0, 1), processes=2)
    for name, before_it in results["rows"].items():
        for column, scores in before_it["scores"].items():
            found = both["rows"][name]["scores"][column]
            assert found.keys() == {"0", "1"}
            assert found["0"] == scores["0"]
    assert both["rows"]["ours, on regions"]["not run"] == regions["not run"]
    assert "pretrain" in (tmp_path / "work/logs/x152-64x96-25grids-seed1.log").read_text()
