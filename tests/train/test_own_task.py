"""A task in a file of one's own: the example of docs/tasks.md, and files that are none."""

import json
from pathlib import Path

import pytest

from gridvlp.errors import UserError
from gridvlp.train.evaluation import evaluate
from gridvlp.train.finetuning import finetune
from gridvlp.train.pretraining import pretrain
from gridvlp.train.settings import FineTuningOptions
from gridvlp.train.tasks import get_task
from tests.squares import colour_of

EXAMPLE = Path(__file__).parents[2] / "docs" / "snli_ve.py"


def write_entailment(data: Path) -> None:
    for split, images in (("train", range(1, 33)), ("dev", range(33, 41)), ("test", range(41, 49))):
        lines = [
            {
                "pairID": f"{image}#0",
                "Flickr30K_ID": f"{image:012}",
                "gold_label": "entailment" if colour_of(image) == "red" else "contradiction",
                "sentence1": "not read",
                "sentence2": "The square is red.",
            }
            for image in images
        ]
        path = data / f"snli_ve/snli_ve_{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_example_of_the_docs_trains_and_is_evaluated(squares, options, task_training, tmp_path):
    write_entailment(squares / "data")
    pretrain(options, lambda line: None)
    own = FineTuningOptions(
        str(EXAMPLE),
        options.features,
        task_training("vqa", epochs=20),
        data=options.data,
        init=options.run,
        run=tmp_path / "finetune",
    )
    finetune(own, lambda line: None)
    outcome = evaluate(str(EXAMPLE), "test", run=own.run, say=lambda line: None)
    assert outcome.examples == 8
    assert outcome.figures["accuracy"] >= 90
    assert outcome.majority == 50
    answers = json.loads(outcome.predictions.read_text())
    assert set(answers.values()) <= {"entailment", "contradiction", "neutral"}
    examples = (own.run / "evaluate-test/examples.jsonl").read_text().splitlines()
    assert json.loads(examples[0])["truth"] in ("entailment", "contradiction")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "There is no file"),
        ("x = 1", "it defines 0"),
        ("import nowhere_at_all", "does not run: ModuleNotFoundError"),
        (
            "from gridvlp.train.tasks.task import Task\nclass Half(Task):\n    name = 'half'",
            "lacks",
        ),
        ("from gridvlp.train.tasks.vqa import VQA", "it defines 0"),
    ],
)
def test_a_file_that_holds_no_task_is_told(tmp_path, text, told):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=told):
        get_task(str(path))
