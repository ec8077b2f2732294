"""Where the model looked: how much each grid spoke for the answer that was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gridvlp.data import json_values
from gridvlp.errors import UserError
from gridvlp.store import FeatureStore
from gridvlp.train.evaluation import load_finetuned
from gridvlp.train.model.checkpoints import check_recipe, model_folder
from gridvlp.train.tasks.batches import make_batch
from gridvlp.train.tasks.task import Example, Task
from gridvlp.train.tokenization import Encoder, load_tokenizer

PAINTED = 64


@dataclass(frozen=True)
class Explanation:
    """An answer with its runners-up and, per image, the relevance of its grids."""

    answers: list[tuple[str, float]]  # best first, with probabilities
    relevance_HW: list[np.ndarray]  # float32, one per image, from 0 to 1; of regions, painted


def answer(
    run: Path,
    task_name: str,
    question: str,
    keys: Sequence[str],
    store: FeatureStore,
    top: int = 5,
    other_recipe: bool = False,
    say: Callable[[str], object] = print,
) -> Explanation:
    """Answer a question of one's own about images of a store, with a fine-tuned run.

    Raises:
        UserError: no such run, another number of images than the task takes, no such map, or maps
            of another recipe than the run's, unless ``other_recipe``.
    """
    model, task, _ = load_finetuned(run, task_name)
    check_recipe(model.config, store, run, other_recipe, say)
    if len(keys) != task.images_per_example:
        raise UserError(
            f"{task_name} takes {task.images_per_example} images; {len(keys)} were given."
        )
    question = json_values.text(question)
    if not question:
        raise UserError("The question is empty.")
    example = Example("0", question, tuple(keys), (), "", None)
    return explain(model, example, task, store, Encoder(load_tokenizer(model_folder(run))), top)


def explain(
    model: nn.Module,
    example: Example,
    task: Task,
    store: FeatureStore,
    encoder: Encoder,
    top: int = 5,
) -> Explanation:
    """Answer one example and attribute the best answer to the grids (gradient x input).

    Gradient x input (Shrikumar et al., 2017) on the grid features, its positive part summed over
    channels: a grid counts by how much it raises the logit of the answer over the mean logit.
    """
    batch = make_batch([example], task, store, encoder)
    grids_IGC = batch.inputs["grids_IGC"]
    assert grids_IGC is not None
    grids_IGC = grids_IGC.float().requires_grad_()
    model.eval()
    logits_A = model({**batch.inputs, "grids_IGC": grids_IGC})[0].float()
    best = logits_A.argmax()
    (gradient_IGC,) = torch.autograd.grad(logits_A[best] - logits_A.mean(), grids_IGC)
    score_IG = (gradient_IGC * grids_IGC).sum(-1).clamp(min=0).detach().numpy()
    maps = []
    for key in example.images:
        _, height, width = store.shape(key)
        score_G = score_IG[batch.keys.index(key), : height * width]
        if store.kind == "regions":
            score_HW = paint(score_G, store.regions(key).boxes_N4)
        else:
            score_HW = score_G.reshape(height, width)
        maps.append(score_HW / max(float(score_HW.max()), 1e-9))
    chances, places = logits_A.detach().softmax(-1).topk(min(top, len(logits_A)))
    ranked = [(task.answers[int(p)], float(c)) for c, p in zip(chances, places, strict=True)]
    return Explanation(ranked, maps)


def paint(score_N: np.ndarray, boxes_N4: np.ndarray) -> np.ndarray:
    """Regions as a map of PAINTED x PAINTED places, float32: each has its best region's score."""
    painted_HW = np.zeros((PAINTED, PAINTED), dtype=np.float32)
    for number in np.argsort(score_N):
        x1, y1 = np.floor(boxes_N4[number, :2] * PAINTED).astype(int)
        x2, y2 = np.ceil(boxes_N4[number, 2:] * PAINTED).astype(int)
        painted_HW[y1:y2, x1:x2] = score_N[number]
    return painted_HW
