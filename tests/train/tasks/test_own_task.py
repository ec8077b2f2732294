"""A task in a file of one's own: the example of docs/tasks.md, and files that are none."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from gridvlp.errors import UserError
from gridvlp.train.evaluation import evaluate
from gridvlp.train.finetuning import finetune
from gridvlp.train.options import (
    FINE_TUNING,
    FineTuningOptions,
    PreTrainingOptions,
    TrainingSettings,
)
from gridvlp.train.pretraining import pretrain
from gridvlp.train.tasks import get_task
from tests.squares import colour_of

EXAMPLE = Path(__file__).parents[3] / "docs" / "snli_ve.py"


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


OWN = TrainingSettings(
    learning_rate=3e-4,
    epochs=7,
    batch_size=48,
    warmup=0.2,
    seed=5,
    accumulate=2,
    head_lr_multiplier=10.0,
    layer_lr_decay=0.9,
    clip=2.5,
    ema=0.99,
    gradient_checkpointing=True,
    precision="float32",
    threads=3,
    save_steps=123,
)


@pytest.fixture
def chosen(gridvlp, squares, tmp_path, monkeypatch):
    """The training settings that `finetune` with some arguments would use."""
    (tmp_path / "store.zarr").symlink_to(squares / "store.zarr")
    monkeypatch.chdir(tmp_path)
    given = []
    monkeypatch.setattr(
        "gridvlp.train.finetuning.finetune", lambda options, say: given.append(options) or {}
    )
    monkeypatch.setattr("gridvlp.cli._report", lambda run: None)

    def run(*arguments):
        code, _, err = gridvlp("finetune", *arguments)
        assert code == 0, err
        return given.pop().training

    return run


def test_a_tasks_own_training_is_used_but_for_what_is_given(chosen, tmp_path):
    for field in fields(TrainingSettings):  # so that a new field is tried, too
        assert getattr(OWN, field.name) != getattr(FINE_TUNING["vqa"], field.name), field.name
    (tmp_path / "mine.py").write_text(
        EXAMPLE.read_text().replace(
            "class ",
            "from gridvlp.train.options import TrainingSettings\n\n\nclass ",
            1,
        )
        + f"\n\n    training = {OWN!r}\n"
    )
    assert chosen("mine.py") == OWN
    for name in ("vqa", "gqa", "nlvr2"):
        assert chosen(name) == FINE_TUNING[name]
    for field in fields(TrainingSettings):
        value, option = getattr(FINE_TUNING["vqa"], field.name), field.name.replace("_", "-")
        if field.name != "gradient_checkpointing":
            assert chosen("mine.py", f"--{option}", value) == replace(OWN, **{field.name: value})
        (tmp_path / "mine.yaml").write_text(f"finetune: {{{option}: {json.dumps(value)}}}")
        from_file = chosen("mine.py", "--config", "mine.yaml")
        assert from_file == replace(OWN, **{field.name: value})


def test_fine_tuning_clips_where_lxmerts_does():
    assert {settings.clip for settings in FINE_TUNING.values()} == {5.0}
    assert PreTrainingOptions(()).training.clip == 1.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "There is no file"),
        ("x = 1", "it defines 0"),
        ("import nowhere_at_all", "does not run: ModuleNotFoundError"),
        (
            "from gridvlp.tasks import Task\nclass Half(Task):\n    name = 'half'",
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
