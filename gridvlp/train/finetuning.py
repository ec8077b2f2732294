"""Fine-tuning and evaluation on VQA v2, GQA and NLVR2 (paper 4.3), all grids of every image.

gridvlp finetune nlvr2
gridvlp evaluate nlvr2 --split dev
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from gridvlp.errors import UserError
from gridvlp.prefetch import Prefetch
from gridvlp.progress import track
from gridvlp.run_folder import RunFolder, write_json
from gridvlp.store import FeatureStore
from gridvlp.train.answers import AnswerVocabulary
from gridvlp.train.grids import read_grids
from gridvlp.train.model import (
    GridVLPConfig,
    GridVLPForAnswering,
    GridVLPForPairs,
    GridVLPForPreTraining,
    TaskModel,
    choose_attention,
    copy_answer_rows,
    encoder_identity,
    load_model,
)
from gridvlp.train.settings import FineTuningOptions
from gridvlp.train.tasks import get_task
from gridvlp.train.tasks.task import Example, Task
from gridvlp.train.tokenization import Encoder, load_tokenizer
from gridvlp.train.training import Losses, fit, make_accelerator

MODELS: dict[str, type[TaskModel]] = {"answer": GridVLPForAnswering, "pair": GridVLPForPairs}


@dataclass
class TaskBatch:
    """One micro-batch of a task."""

    inputs: dict[str, Tensor | None]
    targets_BA: Tensor
    keys: list[str]

    def to(self, device: torch.device) -> TaskBatch:
        """The batch with its tensors on a device."""
        moved = {
            name: value if value is None else value.to(device, non_blocking=True)
            for name, value in self.inputs.items()
        }
        return replace(self, inputs=moved, targets_BA=self.targets_BA.to(device))

    @property
    def terms(self) -> dict[str, int]:
        """The task's loss is a mean over examples."""
        return {"task": len(self.targets_BA)}


def make_batch(
    examples: Sequence[Example],
    task: Task,
    store: FeatureStore,
    encoder: Encoder,
    withheld: bool = False,
) -> TaskBatch:
    """Encode examples with all grids of their images; ``withheld`` zeroes the grids."""
    images = [key for side in zip(*(e.images for e in examples), strict=True) for key in side]
    keys = sorted(set(images))
    place = {key: index for index, key in enumerate(keys)}
    grids_IGC, grid_mask_IG = read_grids(store, keys, None, [])
    ids_BL, text_mask_BL, _ = encoder.encode([example.sentence for example in examples])
    repeats = task.images_per_example
    return TaskBatch(
        inputs={
            "input_ids_BL": torch.from_numpy(ids_BL).repeat(repeats, 1),
            "text_mask_BL": torch.from_numpy(text_mask_BL).repeat(repeats, 1),
            "grids_IGC": torch.zeros_like(grids_IGC) if withheld else grids_IGC,
            "grid_mask_IG": grid_mask_IG,
            "image_index_B": torch.tensor([place[key] for key in images]),
        },
        targets_BA=torch.from_numpy(task.targets(examples)),
        keys=keys,
    )


class TaskBatches:
    """Makes the batch of a step: every example once an epoch, shuffled by (seed, epoch)."""

    def __init__(
        self,
        examples: Sequence[Example],
        task: Task,
        store: FeatureStore,
        encoder: Encoder,
        *,
        batch_size: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        accumulate: int = 1,
    ) -> None:
        parts = processes * accumulate
        if batch_size % parts:
            raise UserError(
                f"--batch-size {batch_size} must be a multiple of {parts} "
                "(processes x --accumulate)."
            )
        self.examples, self.task, self.store, self.encoder = examples, task, store, encoder
        self.batch_size, self.seed, self.accumulate = batch_size, seed, accumulate
        self.micro_size, self.first = batch_size // parts, process * accumulate
        self.steps_per_epoch = -(-len(examples) // batch_size)
        self._order: tuple[int, np.ndarray] | None = None

    def order(self, epoch: int) -> np.ndarray:
        """All example numbers in the order of an epoch."""
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, 4, epoch])
            self._order = (epoch, rng.permutation(len(self.examples)))
        return self._order[1]

    def __call__(self, step: int) -> list[TaskBatch]:
        """The micro-batches of a step for this process."""
        epoch, index = divmod(step, self.steps_per_epoch)
        first = index * self.batch_size + self.first * self.micro_size
        # The last batch of an epoch is filled up from the epoch's beginning.
        chosen = self.order(epoch).take(
            np.arange(first, first + self.accumulate * self.micro_size), mode="wrap"
        )
        return [
            make_batch([self.examples[i] for i in part], self.task, self.store, self.encoder)
            for part in np.split(chosen, self.accumulate)
        ]


def predict(
    model: nn.Module,
    examples: Sequence[Example],
    task: Task,
    store: FeatureStore,
    encoder: Encoder,
    *,
    batch_size: int,
    threads: int = 2,
    withheld: bool = False,
    device: torch.device | None = None,
    title: str = "predict",
) -> np.ndarray:
    """Class logits_NA (float32) of examples, in their order."""
    steps = range(-(-len(examples) // batch_size))

    def make(step: int) -> TaskBatch:
        chosen = examples[step * batch_size : (step + 1) * batch_size]
        return make_batch(chosen, task, store, encoder, withheld)

    logits = []
    with torch.no_grad(), track(title, len(examples), task.name) as bar:
        for _, batch in Prefetch(make, steps, threads):
            moved = batch.to(device or torch.device("cpu"))
            logits.append(model(moved.inputs).float().cpu().numpy())
            bar.advance(len(batch.targets_BA))
    return np.concatenate(logits)


def finetune(options: FineTuningOptions, say: Callable[[str], object] = print) -> dict[str, Any]:
    """Fine-tune a pre-trained model on a task; resumes a run that was interrupted.

    Args:
        options: what to train and how.
        say: called with lines for the person at the keyboard.

    Returns:
        The figures of the best epoch on the validation split.

    Raises:
        UserError: something is missing or does not fit.
    """
    accelerator = make_accelerator(options.training.precision)
    answers = AnswerVocabulary.from_file(options.answers) if options.answers else None
    task = get_task(options.task, answers)
    set_seed(options.training.seed)
    store = FeatureStore(options.features)
    model, encoder, origin = _start_model(options, task, store)
    train, _ = _read(task, options.data, options.train_splits or task.train_splits, store, say)
    valid_split = options.valid_split or task.valid_split
    valid, _ = _read(task, options.data, [valid_split], store, say, needed=False)
    if not any(example.truth is not None for example in valid):
        say(f"Nothing in {task.name} {valid_split} can be scored: the last epoch will be kept.")
        valid = []
    run_path = options.run or Path("runs") / f"finetune-{task.name}"
    facts = {
        "examples": len(train),
        "train": _fingerprint(train),
        "store": store.fingerprint,
        "encoder": store.encoder,
        "init": str(options.init),
    }
    say(origin)
    for note in task.notes:
        say(note)
    batches = TaskBatches(
        train,
        task,
        store,
        encoder,
        batch_size=options.training.batch_size,
        seed=options.training.seed,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        accumulate=options.training.accumulate,
    )

    def losses(wrapped: nn.Module, batch: TaskBatch) -> Losses:
        mean = task.loss(wrapped(batch.inputs).float(), batch.targets_BA)
        return {"task": (mean * len(batch.targets_BA), len(batch.targets_BA))}

    def validate(wrapped: nn.Module) -> dict[str, float]:
        if not valid:
            return {}
        logits_NA = predict(
            wrapped,
            valid,
            task,
            store,
            encoder,
            batch_size=options.training.batch_size,
            threads=options.training.threads,
            device=accelerator.device,
            title=valid_split,
        )
        return {"accuracy": task.score(valid, chosen_answers(task, logits_NA))["accuracy"]}

    with RunFolder(run_path, options.identity(), facts, accelerator.is_main_process) as run:
        if run.finished:
            say(f"{run_path} is finished already; give another --run to train again.")
            return run.finished
        return fit(
            model,
            encoder.tokenizer,
            batches,
            losses,
            steps_per_epoch=batches.steps_per_epoch,
            settings=options.training,
            run=run,
            accelerator=accelerator,
            validate=validate,
            best="accuracy" if valid else None,
            title=f"finetune {task.name}",
        )


def chosen_answers(task: Task, logits_NA: np.ndarray) -> list[str]:
    """The best answer of each example."""
    return [task.answers[place] for place in logits_NA.argmax(-1)]


@dataclass(frozen=True)
class Evaluation:
    """The outcome of ``gridvlp evaluate``; figures are None where the split has no labels."""

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
    features: tuple[Path, ...] | None = None,
    data: Path | None = None,
    batch_size: int = 64,
    precision: str = "auto",
    withheld: bool = False,
    say: Callable[[str], object] = print,
) -> Evaluation:
    """Score a fine-tuned model on a split and write its answers as the task's servers want them.

    Args:
        task_name: vqa, gqa or nlvr2.
        split: one of the task's splits.
        run: the fine-tuning run; stores and data default to those that it was trained on.
        features: stores to read instead.
        data: annotations to read instead.
        batch_size: examples at a time; does not change the answers.
        precision: auto, float32 or bfloat16.
        withheld: score the same model with all grids zeroed, too.
        say: called with lines for the person at the keyboard.

    Returns:
        The figures in percent and where the predictions are.

    Raises:
        UserError: something is missing or does not fit.
    """
    model, task, options = load_finetuned(run, task_name)
    store = FeatureStore(features or tuple(Path(p) for p in options["features"]))
    check_encoder(model.config, store, run)
    data = data or Path(options["data"])
    examples, skipped = _read(task, data, [split], store, say)
    encoder = Encoder(load_tokenizer(model_folder(run)))
    accelerator = make_accelerator(precision)
    choose_attention(model, accelerator.device)
    prepared = accelerator.prepare(model.eval())

    def answers(withhold: bool) -> list[str]:
        logits_NA = predict(
            prepared,
            examples,
            task,
            store,
            encoder,
            batch_size=batch_size,
            withheld=withhold,
            device=accelerator.device,
            title=f"{task.name} {split}" + (", image withheld" if withhold else ""),
        )
        return chosen_answers(task, logits_NA)

    predicted = answers(False)
    folder = run / f"evaluate-{split}"
    folder.mkdir(exist_ok=True)
    path = folder / f"predictions{task.submission_suffix}"
    ids = [example.id for example in examples]
    guess = Counter(predicted).most_common(1)[0][0]
    if skipped:  # the servers refuse a file that lacks a line
        say(f"{len(skipped):,} lines that were left out are answered {guess!r} in {path}.")
    task.write_submission(path, ids + skipped, predicted + [guess for _ in skipped])
    figures, withheld_figures, majority = None, None, None
    if any(example.truth is not None for example in examples):
        figures = task.score(examples, predicted)
        withheld_figures = task.score(examples, answers(True)) if withheld else None
        train: list[Example] = []
        for name in options["train_splits"] or task.train_splits:
            train += task.read(data, name, store).examples
        majority = task.majority(train, examples)
    write_json(
        folder / "metrics.json",
        {
            "task": task.name,
            "split": split,
            "examples": len(examples),
            "figures": figures,
            "withheld": withheld_figures,
            "majority": majority,
            "model": str(model_folder(run)),
            "stores": [str(p) for p in (features or options["features"])],
            "store": store.fingerprint,
        },
    )
    return Evaluation(len(examples), figures, withheld_figures, majority, path)


def model_folder(path: Path) -> Path:
    """The folder of the weights: that of a run, or the folder itself."""
    return path / "model" if (path / "model").is_dir() else path


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
    kind = MODELS[get_task(name).head]
    model, _ = load_model(kind, run / "model")
    return model, get_task(name, model.config.answers), options


def check_encoder(config: GridVLPConfig, store: FeatureStore, origin: Path) -> None:
    """Refuse maps of another encoder than the one that the model was trained on.

    Raises:
        UserError: the encoders or their channels differ.
    """
    if config.grid_channels != store.channels:
        raise UserError(
            f"The model in {origin} reads grids of {config.grid_channels} channels; the store has "
            f"{store.channels}. Extract with the encoder that the model was pre-trained on."
        )
    if config.grid_encoder not in (None, encoder_identity(store)):
        raise UserError(
            f"The model in {origin} was trained on maps of another encoder "
            f"({config.grid_encoder}) than the store's ({encoder_identity(store)})."
        )


def _start_model(
    options: FineTuningOptions, task: Task, store: FeatureStore
) -> tuple[TaskModel, Encoder, str]:
    folder = model_folder(options.init)
    if not (folder / "config.json").exists():
        raise UserError(
            f"{options.init} holds no pre-trained model: make it with `gridvlp pretrain` "
            "or name another with --init."
        )
    pretrained, _ = load_model(GridVLPForPreTraining, folder)
    check_encoder(pretrained.config, store, options.init)
    answers = task.build_answers(options.data)
    known = list(pretrained.config.answers or [])
    config = GridVLPConfig.from_dict({**pretrained.config.to_dict(), "answers": list(answers)})
    model = MODELS[task.head](config)
    encoder = Encoder(load_tokenizer(folder))
    if options.fresh:
        return model, encoder, f"Weights from scratch, sizes and vocabulary of {folder}."
    model.bert.load_state_dict(pretrained.bert.state_dict())
    told = f"Encoder from {folder}; answer head from scratch."
    if task.head == "answer" and pretrained.answering is not None:
        copied = copy_answer_rows(model.answering, list(answers), pretrained.answering, known)
        told = (
            f"Encoder from {folder}; {copied:,} of {len(answers):,} answers start from the "
            "pre-training head, the others from zero."
        )
    return model, encoder, told


def _read(
    task: Task,
    data: Path,
    splits: Sequence[str],
    store: FeatureStore,
    say: Callable[[str], object],
    needed: bool = True,
) -> tuple[list[Example], list[str]]:
    """The examples of splits, and the ids of the lines that were left out."""
    examples: list[Example] = []
    skipped: list[str] = []
    without_photo = 0
    for split in splits:
        read = task.read(data, split, store)
        for line in read.report.lines_of_text():
            say(line)
        examples += read.examples
        skipped += read.skipped
        without_photo += read.report.without_photo
    if needed and not examples:
        if not without_photo:
            raise UserError(f"{task.name} {', '.join(splits)} has no line to use in {data}.")
        folders = {str(folder): None for s in splits for folder in task.photo_folders(data, s)}
        raise UserError(
            f"No line of {task.name} {', '.join(splits)} has its photo in the store: "
            f"`gridvlp extract --images FOLDER` adds them, from {', '.join(folders)}."
        )
    return examples, skipped


def _fingerprint(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.id, example.sentence, example.images, example.target)).encode())
    return digest.hexdigest()
