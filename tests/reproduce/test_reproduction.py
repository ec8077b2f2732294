import json
from dataclasses import replace

import pytest

from gridvlp.errors import UserError
from gridvlp.reproduce import reproduce, scales
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
