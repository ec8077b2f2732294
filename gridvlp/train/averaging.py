"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gridvlp.errors import UserError

FILE = "average.safetensors"


class Average:
    """The average of a model's parameters over its training (Polyak and Juditsky 1992).

    Step n (from 0) keeps min(decay, (1 + n) / (10 + n)) of the average, as TensorFlow's
    ``ExponentialMovingAverage`` with ``num_updates`` does: a constant 0.9999 would keep a third of
    the first, random weights after 10,000 steps.

    Args:
        model: whose parameters are averaged, in float32 on their device.
        decay: the most of the average that a step keeps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self.averages: dict[str, Tensor] = {
            name: parameter.detach().float().clone() for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        now = [parameter.detach().float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self.averages.values()), now, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the averages for weights; its own come back at the end."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._fill(self.averages)
        try:
            yield
        finally:
            self._fill(own)

    def save(self, folder: Path) -> None:
        """Write the averages beside a checkpoint's weights."""
        save_file({name: average.cpu() for name, average in self.averages.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Take up the averages of a checkpoint.

        Raises:
            UserError: they are those of another model.
        """
        found = load_file(folder / FILE)
        if found.keys() != self.averages.keys():
            raise UserError(f"{folder / FILE} does not fit the model.")
        for name, average in self.averages.items():
            average.copy_(found[name])

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
