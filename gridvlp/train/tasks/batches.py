"""Examples of a task to batches, and a model's answers to examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gridvlp.errors import UserError
from gridvlp.run.prefetch import Prefetch
from gridvlp.run.progress import track
from gridvlp.store import FeatureStore
from gridvlp.train.grids import read_grids
from gridvlp.train.options import micro_batch_size
from gridvlp.train.tasks.task import Example, Task
from gridvlp.train.tokenization import Encoder

TOP = 5  # answers kept of each example


def read_splits(
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


@dataclass
class TaskBatch:
    """One micro-batch of a task."""

    inputs: dict[str, Tensor | None]
    targets_BA: Tensor
    keys: list[str]
    count: int

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
        return {"task": self.count}


def make_batch(
    examples: Sequence[Example],
    task: Task,
    store: FeatureStore,
    encoder: Encoder,
    withheld: bool = False,
) -> TaskBatch:
    """Encode examples with all grids of their images; ``withheld`` zeroes the grids."""
    keys = sorted({key for example in examples for key in example.images})
    place = {key: index for index, key in enumerate(keys)}
    image_index_BN = torch.tensor([[place[key] for key in e.images] for e in examples])
    # Several images beside each other in one sequence, or in a sequence each: all first images,
    # then all second ones.
    together = task.head == "triplet"
    sequences = 1 if together else task.images_per_example
    seen = read_grids(store, keys, None, [])
    if withheld:
        seen["grids_IGC"].zero_()
        if "boxes_IG4" in seen:
            seen["boxes_IG4"].zero_()
    ids_BL, text_mask_BL, _ = encoder.encode([example.sentence for example in examples])
    targets_BA = torch.from_numpy(task.targets(examples))
    return TaskBatch(
        inputs={
            "input_ids_BL": torch.from_numpy(ids_BL).repeat(sequences, 1),
            "text_mask_BL": torch.from_numpy(text_mask_BL).repeat(sequences, 1),
            **seen,
            "image_index_B": image_index_BN if together else image_index_BN.T.reshape(-1),
        },
        targets_BA=targets_BA,
        keys=keys,
        count=task.terms(targets_BA),
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
        self.examples, self.task, self.store, self.encoder = examples, task, store, encoder
        self.batch_size, self.seed, self.accumulate = batch_size, seed, accumulate
        self.micro_size = micro_batch_size(batch_size, processes, accumulate)
        self.first = process * accumulate
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


@dataclass(frozen=True)
class Predictions:
    """The best answers of each example.

    Attributes:
        classes_NK: int64, class numbers, best first.
        chances_NK: float32, their share of the softmax over all classes.
    """

    classes_NK: np.ndarray
    chances_NK: np.ndarray

    def answers(self, task: Task) -> list[str]:
        """The best answer of each example."""
        return [task.answers[best] for best in self.classes_NK[:, 0]]


def predict(
    model: nn.Module,
    examples: Sequence[Example],
    task: Task,
    store: FeatureStore,
    encoder: Encoder,
    accelerator: Accelerator,
    *,
    batch_size: int,
    threads: int = 2,
    withheld: bool = False,
    title: str = "predict",
) -> Predictions:
    """The best answers of examples, in their order.

    The processes take the batches in turn, and every one of them gets all answers.
    """
    steps = -(-len(examples) // batch_size)
    mine = range(accelerator.process_index, steps, accelerator.num_processes)

    def make(step: int) -> TaskBatch:
        chosen = examples[step * batch_size : (step + 1) * batch_size]
        return make_batch(chosen, task, store, encoder, withheld)

    kept = min(TOP, len(task.answers))
    # Rows of other processes stay zero, so that the sum over processes is the whole.
    classes_NK = torch.zeros(len(examples), kept, dtype=torch.int64, device=accelerator.device)
    chances_NK = torch.zeros(len(examples), kept, device=accelerator.device)
    with torch.no_grad(), track(title, len(examples), task.name) as bar:
        for step, batch in Prefetch(make, mine, threads):
            moved = batch.to(accelerator.device)
            rows = slice(step * batch_size, step * batch_size + len(batch.targets_BA))
            chances_NK[rows], classes_NK[rows] = (
                model(moved.inputs).float().softmax(-1).topk(kept, -1)
            )
            everywhere = len(batch.targets_BA) * accelerator.num_processes
            bar.advance(min(everywhere, bar.total - bar.done))  # the last round may be short
    return Predictions(
        *(accelerator.reduce(part, "sum").cpu().numpy() for part in (classes_NK, chances_NK))
    )
