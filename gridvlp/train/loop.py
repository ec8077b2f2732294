"""The training loop that pre-training and fine-tuning share.

A step's batch and its random numbers are functions of (seed, step): a run that was killed and
resumed is the run that was not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors.torch import load_file
from torch import nn
from transformers import BertTokenizer
from transformers.modeling_utils import PreTrainedModel

from gridvlp.errors import UserError
from gridvlp.run.folder import RunFolder
from gridvlp.run.prefetch import Prefetch
from gridvlp.run.progress import Tracker, track
from gridvlp.run.seeding import seed_step
from gridvlp.run.signals import interrupts_held
from gridvlp.train.averaging import Average
from gridvlp.train.batch import Batch, Losses
from gridvlp.train.failures import describe, memory_ran_out, not_finite, out_of_memory
from gridvlp.train.model.card import write_card
from gridvlp.train.model.fusion import choose_attention, freeze_unused
from gridvlp.train.options import TrainingSettings
from gridvlp.train.processes import from_first

WEIGHT_DECAY = 0.01  # LXMERT's BertAdam; none on biases and LayerNorms, as in BERT
ADAM_EPS = 1e-6  # LXMERT's BertAdam; PyTorch's 1e-8 moves ten times as far at gradients of 1e-7
LOG_STEPS = 10
MOST_SKIPPED = 20  # in a row: from 65,536 the scale falls below 1, so it is not the scale's doing

B = TypeVar("B", bound=Batch)


def fit(
    model: PreTrainedModel,
    tokenizer: BertTokenizer,
    make_step: Callable[[int], list[B]],
    losses: Callable[[nn.Module, B], Losses],
    *,
    steps_per_epoch: int,
    settings: TrainingSettings,
    run: RunFolder,
    accelerator: Accelerator,
    validate: Callable[[nn.Module], dict[str, float]],
    best: str | None = None,
    head: str = "answering",
    title: str,
) -> dict[str, Any]:
    """Train, validating at the end of each epoch; resume from the run's checkpoint if it has one.

    Of several processes the first one's checkpoint counts: the others need none.

    Args:
        model: what to train, in the transformers layout.
        tokenizer: saved beside the weights.
        make_step: the micro-batches of one step for this process; called in threads.
        losses: the losses of one micro-batch.
        steps_per_epoch: steps in an epoch.
        settings: how to train.
        run: where to write.
        accelerator: device, precision and processes.
        validate: figures on held-out data.
        best: the figure by which the best epoch is kept as ``model/``; None keeps the last.
        head: the prefix of parameters that ``settings.head_lr_multiplier`` applies to.
        title: shown at the progress bar.

    Returns:
        The figures of the kept epoch, with "epoch" and "step".

    Raises:
        UserError: the loss is not a finite number, or the memory ran out.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the checkpoint is of the last step.
    """
    accelerator.wait_for_everyone()  # until the first process has put the run's folder in order
    training = _Training(
        model, tokenizer, losses, steps_per_epoch, settings, run, accelerator, validate, best, title
    )
    training.start(head)
    return training.fit(make_step)


class _Training(Generic[B]):
    """The loop, in one process or in each of several."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: BertTokenizer,
        losses: Callable[[nn.Module, B], Losses],
        steps_per_epoch: int,
        settings: TrainingSettings,
        run: RunFolder,
        accelerator: Accelerator,
        validate: Callable[[nn.Module], dict[str, float]],
        best: str | None,
        title: str,
    ) -> None:
        self.model, self.tokenizer, self.losses = model, tokenizer, losses
        self.steps_per_epoch, self.settings, self.run = steps_per_epoch, settings, run
        self.accelerator, self.validate, self.best, self.title = accelerator, validate, best, title
        self.total = steps_per_epoch * settings.epochs
        self.warmup = math.ceil(self.total * settings.warmup)
        self.step = 0  # done
        self.saved = 0  # the step of the last checkpoint
        self.validated = 0  # epochs
        self.kept: dict[str, Any] | None = None
        self.skipped = self.skipped_in_a_row = 0  # steps, because of float16

    def start(self, head: str) -> None:
        """Make the optimiser, take up the checkpoint and put all on the device."""
        model, accelerator, settings = self.model, self.accelerator, self.settings
        optimizer = _make_optimizer(model, settings, head)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self._restore(optimizer)
        freeze_unused(model)
        choose_attention(model, accelerator.device)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        # Several processes begin with the first one's weights (DistributedDataParallel).
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.average = Average(model, settings.ema) if settings.ema else None
        if self.average is not None and self.step:
            if accelerator.is_main_process:
                self.average.load(self.run.path / "checkpoint")
            broadcast(list(self.average.averages.values()))

    def _restore(self, optimizer: torch.optim.Optimizer) -> None:
        state: dict[str, Any] | None = None
        moments: dict[str, Any] | None = None
        if self.accelerator.is_main_process and (found := self.run.checkpoint()) is not None:
            folder, state = found
            _load_weights(self.model, folder)
            moments = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        state, moments = from_first((state, moments), self.accelerator)
        if state is None or moments is None:
            return
        try:
            optimizer.load_state_dict(moments)
        except ValueError as error:
            raise UserError(_no_fit(self.run.path / "checkpoint", str(error))) from error
        self.step = self.saved = state["step"]
        self.kept, self.skipped = state["kept"], state.get("skipped", 0)
        # Older versions did not say whether the validation of a whole epoch was done.
        self.validated = state.get("validated", (self.step - 1) // self.steps_per_epoch)
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def fit(self, make_step: Callable[[int], list[B]]) -> dict[str, Any]:
        """Train to the end."""
        batches = Prefetch(make_step, range(self.step, self.total), self.settings.threads)
        size = self.settings.batch_size
        with (
            track(self.title, self.total * size, "samples", self.step * size) as bar,
            closing(iter(batches)) as upcoming,
        ):
            try:
                self._validate_if_owed(bar)
                while self.step < self.total:
                    self._train_epoch(upcoming, bar)
                    self._validate_if_owed(bar)
            except KeyboardInterrupt:
                with interrupts_held():
                    if self.step != self.saved:
                        self._save_checkpoint()
                    bar.print(
                        f"Stopped after step {self.step:,}; the same command goes on from here."
                    )
                raise
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                raise memory_ran_out(self.step, self.settings) from error
            if self.skipped:
                bar.print(
                    f"{self.skipped:,} of {self.total:,} steps were skipped: their gradient was "
                    "beyond float16."
                )
        if self.kept is None:
            raise UserError("Nothing was trained: the run has no steps.")
        self.run.finish({**self.kept, "waited_seconds": round(batches.waited, 3)})
        return self.kept

    def _train_epoch(self, upcoming: Iterator[tuple[int, list[B]]], bar: Tracker) -> None:
        """Do the steps that are left of an epoch.

        Several processes stop after one and the same step, whenever each was interrupted: one that
        left alone would take the others down within a step.
        """
        left = self.steps_per_epoch - self.step % self.steps_per_epoch
        stopped = False
        with self._held_together() as came:
            for number, micro_batches in islice(upcoming, left):
                with interrupts_held():
                    stopped = self._advance(number, micro_batches, bool(came), bar)
                if stopped:
                    break
        if stopped:
            raise KeyboardInterrupt

    def _held_together(self) -> AbstractContextManager[list[int]]:
        return interrupts_held() if self.accelerator.num_processes > 1 else nullcontext([])

    def _advance(self, number: int, micro_batches: list[B], stop: bool, bar: Tracker) -> bool:
        """One step with its log and checkpoint; returns whether any process is to stop."""
        settings = self.settings
        seed_step(settings.seed, number, self.accelerator.process_index)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * _schedule(number, self.warmup, self.total)
        values, stopped = self._step(number, micro_batches, stop)
        if self.average is not None:
            self.average.update(number)
        self.step = number + 1
        bar.advance(settings.batch_size, f"loss {values['loss']:.3f}")
        if self.step % LOG_STEPS == 0 or self.step == self.total:
            self.run.log(self.step, {**values, "lr": self.optimizer.param_groups[0]["lr"]})
        if self.step % self.steps_per_epoch == 0 or self.step % settings.save_steps == 0:
            self._save_checkpoint()
        return stopped

    def _step(
        self, number: int, micro_batches: list[B], stop: bool
    ) -> tuple[dict[str, float], bool]:
        """One optimiser step; the gradient is that of the whole batch, however it is divided."""
        accelerator, device = self.accelerator, self.accelerator.device
        names = sorted({name for batch in micro_batches for name in batch.terms})
        terms = [sum(batch.terms[name] for batch in micro_batches) for name in names]
        shared = torch.tensor([*terms, int(stop)], device=device)
        *reduced, stops = accelerator.reduce(shared, "sum").tolist()
        counts = dict(zip(names, reduced, strict=True))
        sums = dict.fromkeys(names, 0.0)
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                parts = self.losses(self.wrapped, batch.to(device))
                # DDP averages over processes; the sum over all terms is wanted.
                total = sum(parts[name][0] / max(counts[name], 1) for name in names)
                accelerator.backward(total * accelerator.num_processes)
            for name in names:
                sums[name] += float(parts[name][0].detach())
        all_sums = accelerator.reduce(
            torch.tensor([sums[name] for name in names], device=device), "sum"
        ).tolist()
        values = {
            name: value / max(counts[name], 1) for name, value in zip(names, all_sums, strict=True)
        }
        self._apply_gradient(number, micro_batches, values)
        apart = {f"loss/{k}": v for k, v in values.items()} if len(values) > 1 else {}
        return {"loss": sum(values.values()), **apart}, stops > 0

    def _apply_gradient(
        self, number: int, micro_batches: list[B], values: dict[str, float]
    ) -> None:
        """Move the weights; float16 skips a step whose scaled gradient overflows.

        Raises:
            UserError: the loss or the gradient is not finite, or too many steps were skipped.
        """
        scaler = self.accelerator.scaler
        norm = float(
            self.accelerator.clip_grad_norm_(
                self.model.parameters(), self.settings.clip or math.inf
            )
        )
        finite = math.isfinite(norm)
        lost = not math.isfinite(sum(values.values())) or (scaler is None and not finite)
        if not lost:
            scale = 0.0 if scaler is None else scaler.get_scale()
            self.optimizer.step()
            self.optimizer.zero_grad()
            skipped = scaler is not None and scaler.get_scale() < scale
            self.skipped += skipped
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
            lost = not finite and (not skipped or self.skipped_in_a_row >= MOST_SKIPPED)
        if lost:
            raise not_finite(number, micro_batches, values, norm, scaler is not None)

    def _validate_if_owed(self, bar: Tracker) -> None:
        """Measure at the end of an epoch, and keep its model where it is the best."""
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        if rest or epoch <= self.validated:
            return
        with self._averaged():
            figures = _validated(self.model, self.validate)
        with interrupts_held():
            self.run.log(self.step, figures)
            bar.print(f"epoch {epoch}: {describe(figures) or 'nothing held out to measure on'}")
            best = self.best
            if best is None or self.kept is None or figures[best] > self.kept[best]:
                self.kept = {**figures, "epoch": epoch, "step": self.step}
                with self._averaged():
                    self.run.replace_folder("model", self._write_result)
            self.validated = epoch
            self.run.save_state(self._state())

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.in_place()

    def _save_checkpoint(self) -> None:
        self.run.save_checkpoint(self._write_weights, self.optimizer.optimizer, self._state())
        self.saved = self.step

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "validated": self.validated,
            "kept": self.kept,
            "skipped": self.skipped,
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _write_weights(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.average is not None:
            self.average.save(folder)

    def _write_result(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_card(folder, self.title, self.model.config, self.run.record, self.kept or {})


def _load_weights(model: PreTrainedModel, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    tied = set(model._tied_weights_keys or {})
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # another shape
        raise UserError(_no_fit(folder, str(error).splitlines()[-1].strip())) from error
    if unexpected or set(missing) - tied:
        raise UserError(_no_fit(folder, f"{missing[:3]} missing, {unexpected[:3]} unexpected"))


def _no_fit(folder: Path, why: str) -> str:
    return f"The checkpoint {folder} does not fit the model ({why}): name another --run."


def _make_optimizer(
    model: PreTrainedModel, settings: TrainingSettings, head: str
) -> torch.optim.AdamW:
    layers = model.config.num_hidden_layers
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = settings.learning_rate * settings.layer_lr_decay ** _depth(name, layers)
        if name.startswith(head):
            rate *= settings.head_lr_multiplier
        groups.setdefault((parameter.ndim > 1, rate), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": WEIGHT_DECAY if decay else 0.0,
                "lr": rate,
            }
            for (decay, rate), parameters in groups.items()
        ],
        eps=ADAM_EPS,
        fused=True,
    )


def _depth(name: str, layers: int) -> int:
    """How many layers lie above a parameter: 0 of heads and pooler, layers + 1 of embeddings."""
    if match := re.search(r"encoder\.layer\.(\d+)\.", name):
        return layers - int(match[1])
    below = ("embeddings.", "grid_projection.", "box_projection.")
    return layers + 1 if any(part in name for part in below) else 0


def _validated(
    model: nn.Module, validate: Callable[[nn.Module], dict[str, float]]
) -> dict[str, float]:
    model.eval()
    try:
        with torch.no_grad():
            return validate(model)
    finally:
        model.train()


def _schedule(step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then linear decay to zero (BERT, LXMERT)."""
    if step < warmup:
        return (step + 1) / warmup
    return (total - step) / max(1, total - warmup)
