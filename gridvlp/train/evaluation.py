"""Evaluation of a fine-tuned model: the official figures, and the file that the servers take.

gridvlp evaluate nlvr2 --split dev
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from gridvlp.atomic import write_json, write_text
from gridvlp.errors import UserError
from gridvlp.store import FeatureStore
from gridvlp.train.model.checkpoints import check_recipe, load_model, model_folder
from gridvlp.train.model.fusion import TASK_MODELS, TaskModel, choose_attention
from gridvlp.train.processes import first_only, make_accelerator
from gridvlp.train.tasks import get_task
from gridvlp.train.tasks.batches import Predictions, predict, read_splits
from gridvlp.train.tasks.task import Example, Task
from gridvlp.train.tokenization import Encoder, load_tokenizer


@dataclass(frozen=True)
class Evaluation:
    """The outcome of ``gridvlp evaluate``; figures are None where the split has no labels.

    ``majority`` is None also where the training files are not there.
    """

    examples: int
    figures: dict[str, float] | None
    withheld: dict[str, float] | None
    majority: float | None
    predictions: Path


def evaluate(
    task_name: str,
    split: str,
    *,
    run: Path,
    features: tuple[str | Path, ...] | None = None,
    data: Path | None = None,
    batch_size: int = 64,
    precision: str = "auto",
    withheld: bool = False,
    other_recipe: bool = False,
    say: Callable[[str], object] = print,
) -> Evaluation:
    """Score a fine-tuned model on a split and write its answers as the task's servers want them.

    RUN/evaluate-SPLIT/ gets metrics.json, the servers' file predictions.json or .csv, and
    examples.jsonl: a line for each example with id, sentence, images, kind, truth (what the metric
    needs of the label, or null), labels (the answers' target scores), predicted, top (the five
    best answers with their probabilities) and score (0 to 1 by the official metric, or null).

    Args:
        task_name: vqa, gqa or nlvr2.
        split: one of the task's splits.
        run: the fine-tuning run; stores and data default to those that it was trained on.
        features: stores to read instead.
        data: annotations to read instead.
        batch_size: examples at a time; does not change the answers.
        precision: auto, float32, bfloat16 or float16.
        withheld: score the same model with all grids zeroed, too.
        other_recipe: read maps of another recipe than those of training; say what differs.
        say: called with lines for the person at the keyboard.

    Returns:
        The figures in percent and where the predictions are.

    Raises:
        UserError: something is missing or does not fit.
    """
    if batch_size <= 0:
        raise UserError("--batch-size must be above 0.")
    accelerator = make_accelerator(precision)
    say = first_only(say, accelerator)
    model, task, options = load_finetuned(run, task_name)
    store = FeatureStore(features or tuple(options["features"]))
    check_recipe(model.config, store, run, other_recipe, say)
    data = data or Path(options["data"])
    examples, skipped = read_splits(task, data, [split], store, say)
    encoder = Encoder(load_tokenizer(model_folder(run)))
    for line in encoder.check(lambda number: examples[number].sentence, len(examples)):
        say(line)
    choose_attention(model, accelerator.device)
    # Each process answers its own batches: the precision is wanted, a gradient is not.
    prepared = accelerator.prepare_model(model.eval(), evaluation_mode=True)

    def answers(withhold: bool) -> Predictions:
        return predict(
            prepared,
            examples,
            task,
            store,
            encoder,
            accelerator,
            batch_size=batch_size,
            withheld=withhold,
            title=f"{task.name} {split}" + (", image withheld" if withhold else ""),
        )

    found = answers(False)
    predicted = found.answers(task)
    labelled = any(example.truth is not None for example in examples)
    blind = answers(True).answers(task) if withheld and labelled else None
    folder = run / f"evaluate-{split}"
    path = folder / f"predictions{task.submission_suffix}"
    if not accelerator.is_main_process:
        return Evaluation(len(examples), None, None, None, path)
    folder.mkdir(exist_ok=True)
    ids = [example.id for example in examples]
    guess = Counter(predicted).most_common(1)[0][0]
    if skipped:  # the servers refuse a file that lacks a line
        say(f"{len(skipped):,} lines that were left out are answered {guess!r} in {path}.")
    task.write_submission(path, ids + skipped, predicted + [guess for _ in skipped])
    write_text(folder / "examples.jsonl", _records(task, examples, found))
    figures, withheld_figures, majority = None, None, None
    if labelled:
        if task.split_name(options.get("valid_split") or task.valid_split) == task.split_name(
            split
        ):
            say(f"On {task.name} {split} the best epoch was chosen: it favours these figures.")
        figures = task.score(examples, predicted)
        withheld_figures = task.score(examples, blind) if blind is not None else None
        names = options["train_splits"] or task.train_splits
        if absent := [path for name in names for path in task.missing(data, name)]:
            say(f"No majority baseline: {', '.join(map(str, absent))} not there.")
        else:  # of all training lines: this store may hold the evaluated photos alone
            train = [example for name in names for example in task.read(data, name).examples]
            majority = task.majority(train, examples)
    write_json(
        folder / "metrics.json",
        {
            "task": task.name,
            "split": split,
            "examples": len(examples),
            "left out": len(skipped),
            "figures": figures,
            "withheld": withheld_figures,
            "majority": majority,
            "model": str(model_folder(run)),
            "stores": [str(p) for p in (features or options["features"])],
            "store": store.fingerprint,
        },
    )
    return Evaluation(len(examples), figures, withheld_figures, majority, path)


def _records(task: Task, examples: list[Example], found: Predictions) -> str:
    """A JSON line for each example: what was asked, what is true, what was answered."""
    lines = []
    for example, classes_K, chances_K in zip(
        examples, found.classes_NK, found.chances_NK, strict=True
    ):
        top = [
            [task.answers[place], round(float(chance), 6)]
            for place, chance in zip(classes_K, chances_K, strict=True)
        ]
        predicted, truth = top[0][0], example.truth
        record = {
            "id": example.id,
            "sentence": example.sentence,
            "images": example.images,
            "kind": example.kind,
            "truth": asdict(truth)
            if is_dataclass(truth) and not isinstance(truth, type)
            else truth,
            "labels": {task.answers[place]: score for place, score in example.target},
            "predicted": predicted,
            "top": top,
            "score": None if truth is None else task.credit(truth, predicted),
        }
        lines.append(json.dumps(record, ensure_ascii=False, default=sorted) + "\n")
    return "".join(lines)


def load_finetuned(run: Path, name: str) -> tuple[TaskModel, Task, dict[str, Any]]:
    """The model of a fine-tuning run, its task with the model's answers, and its options.

    Raises:
        UserError: there is no such task, no finished epoch in the run, or it is another task's.
    """
    get_task(name)
    record = run / "run.json"
    if not (run / "model").is_dir() or not record.exists():
        raise UserError(
            f"{run} holds no fine-tuned model: make it with `gridvlp finetune {name}`"
            " or name another folder with --run."
        )
    options = json.loads(record.read_text())["options"]
    if options.get("task") != name:
        raise UserError(f"{run} was not fine-tuned on {name}, but on {options.get('task')}.")
    own = {option: options[option] for option in ("head", "loss") if options.get(option)}
    model, _ = load_model(TASK_MODELS[get_task(name, **own).head], run / "model")
    return model, get_task(name, model.config.answers, **own), options
