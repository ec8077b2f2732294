"""Fine-tuning on VQA v2, NLVR2 and GQA (paper 4.3), all grids of every image.

gridvlp finetune nlvr2
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch import nn

from gridvlp.errors import UserError
from gridvlp.run.folder import RunFolder
from gridvlp.store import FeatureStore
from gridvlp.train.answers import AnswerVocabulary
from gridvlp.train.batch import Losses
from gridvlp.train.loop import fit
from gridvlp.train.model.checkpoints import model_folder, row_facts, start_task
from gridvlp.train.model.fusion import TASK_MODELS, TaskModel
from gridvlp.train.options import FineTuningOptions
from gridvlp.train.processes import agree, first_only, make_accelerator, with_precision
from gridvlp.train.tasks import get_task
from gridvlp.train.tasks.batches import TaskBatch, TaskBatches, predict, read_splits
from gridvlp.train.tasks.task import Example, Task
from gridvlp.train.tokenization import Encoder, load_tokenizer


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
    options = replace(options, training=with_precision(options.training))
    accelerator = make_accelerator(options.training.precision)
    say = first_only(say, accelerator)
    answers = AnswerVocabulary.from_file(options.answers) if options.answers else None
    task = get_task(options.task, answers, **options.own)
    set_seed(options.training.seed)
    store = FeatureStore(options.features)
    model, encoder = _start_model(options, task, store, say)
    counts: list[str] = []

    def count(line: str) -> None:
        counts.append(line.strip())
        say(line)

    train, _ = read_splits(
        task, options.data, options.train_splits or task.train_splits, store, count
    )
    valid_split = options.valid_split or task.valid_split
    valid, _ = read_splits(task, options.data, [valid_split], store, count, needed=False)
    if not any(example.truth is not None for example in valid):
        say(f"Nothing in {task.name} {valid_split} can be scored: the last epoch will be kept.")
        valid = []
    elif task.split_name(valid_split) == task.test_split:
        say(f"The best epoch is chosen on {task.name} {valid_split}, on which it is reported, too.")
    best = task.decisive(valid)
    run_path = options.run or Path("runs") / f"finetune-{task.name}"
    facts = {
        "examples": len(train),
        "lines": counts,
        "train": _fingerprint(train),
        "store": store.fingerprint,
        "encoder": store.encoder,
        "recipe": store.recipe,
        "init": str(options.init),
        **row_facts(
            model.config,
            encoder.tokenizer,
            options.init,
            options.answers or f"the training files in {options.data}",
        ),
    }
    for note in task.notes:
        say(note)
    for line in encoder.check(lambda number: train[number].sentence, len(train)):
        say(line)
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
        return {"task": (mean * batch.count, batch.count)}

    def validate(wrapped: nn.Module) -> dict[str, float]:
        if not valid:
            return {}
        found = predict(
            wrapped,
            valid,
            task,
            store,
            encoder,
            accelerator,
            batch_size=options.training.batch_size,
            threads=options.training.threads,
            title=valid_split,
        )
        figures = task.score(valid, found.answers(task))
        return {name: figures[name] for name in ("accuracy", best) if name in figures}

    with RunFolder(run_path, options.identity(), facts, accelerator.is_main_process) as run:
        if (finished := agree(run, accelerator)) is not None:
            say(f"{run_path} is finished already; give another --run to train again.")
            return finished
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
            best=best if valid else None,
            title=f"finetune {task.name}",
        )


def _start_model(
    options: FineTuningOptions, task: Task, store: FeatureStore, say: Callable[[str], object]
) -> tuple[TaskModel, Encoder]:
    folder = model_folder(options.init)
    if not (folder / "config.json").exists():
        raise UserError(
            f"{options.init} holds no pre-trained model: make it with `gridvlp pretrain` "
            "or name another with --init."
        )
    answers = task.build_answers(options.data)
    apart = task.head in ("triplet", "pair-attention")  # each image has a modality of its own
    modalities = 1 + (task.images_per_example if apart else 1)
    kind = TASK_MODELS[task.head]
    model = start_task(
        *(kind, folder, store, answers, modalities, options.fresh, say),
        other_recipe=options.other_recipe,
    )
    return model, Encoder(load_tokenizer(folder, say))


def _fingerprint(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.id, example.sentence, example.images, example.target)).encode())
    return digest.hexdigest()
