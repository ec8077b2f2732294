"""Trains as ever, with an optimiser that writes gradients and rates down and moves nothing."""

from collections import defaultdict
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import torch

from gridvlp.train import loop as training
from gridvlp.train.pretraining import PreTrainingBatches
from gridvlp.train.tasks.batches import TaskBatches


@contextmanager
def recorded():
    """What the training in the block does, step for step.

    Yields:
        gradients, the tensors by name of each step, rates, the learning rates of the groups at each
        step, and batches, the micro-batches of each step.
    """
    seen = SimpleNamespace(gradients=[], rates=[], batches=defaultdict(list))

    class Recorder(torch.optim.SGD):
        names: dict

        def step(self, closure=None):
            seen.gradients.append(
                {
                    name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
                    for name, p in self.names.items()
                }
            )
            seen.rates.append([group["lr"] for group in self.param_groups])

    def make_optimizer(model, settings, head):
        recorder = Recorder(model.parameters(), lr=1.0)
        recorder.names = dict(model.named_parameters())
        return recorder

    def keep(kind):
        made = kind.__call__

        def call(self, step):
            micro_batches = made(self, step)
            if getattr(getattr(self, "corpus", None), "part", "train") == "train":
                seen.batches[step] = micro_batches
            return micro_batches

        return mock.patch.object(kind, "__call__", call)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(training, "_make_optimizer", make_optimizer))
        for kind in (PreTrainingBatches, TaskBatches):
            stack.enter_context(keep(kind))
        yield seen
