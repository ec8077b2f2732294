"""The training loop that pre-training and fine-tuning share.

A step's batch and its random numbers are functions of (seed, step): a run that was killed and
resumed is the run that was not.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertTokenizer
from transformers.modeling_utils import PreTrainedModel

from gridvlp.errors import UserError
from gridvlp.interrupt import interrupts_held
from gridvlp.prefetch import Prefetch
from gridvlp.progress import track
from gridvlp.run_folder import RunFolder
from gridvlp.train.allocator import keep_freed_memory
from gridvlp.train.averaging import Average
from gridvlp.train.model import choose_attention
from gridvlp.train.model_card import write_card
from gridvlp.train.settings import TrainingSettings

WEIGHT_DECAY = 0.01  # LXMERT's BertAdam; none on biases and LayerNorms, as in BERT
ADAM_EPS = 1e-6  # LXMERT's BertAdam; PyTorch's 1e-8 moves ten times as far at gradients of 1e-7
LOG_STEPS = 10

Losses = dict[str, tuple[Tensor, int]]
"""Per objective: the summed loss, and the number of terms that it is the sum of."""


class Batch(Protocol):
    """What a step is made of; ``keys`` are named when the loss goes wrong."""

    keys: list[str]

    def to(self, device: torch.device) -> Any:
        """The batch with its tensors on a device."""
        ...

    @property
    def terms(self) -> dict[str, int]:
        """Per objective, the number of terms in its loss."""
        ...


B = TypeVar("B", bound=Batch)


def make_accelerator(precision: str) -> Accelerator:
    """The device and the precision: bfloat16 by default where the hardware multiplies in it."""
    if precision == "auto":
        if torch.cuda.is_available():
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = bool(torch.cpu._is_avx512_bf16_supported())
        precision = "bfloat16" if fast else "float32"
    if not torch.cuda.is_available():
        keep_freed_memory()
    AcceleratorState._reset_state()  # a second run in one process may choose another precision
    # The first process may read annotations for longer than the ten minutes that others wait.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    _join_after_restart(patience.timeout)
    return Accelerator(
        mixed_precision="bf16" if precision == "bfloat16" else "no",
        cpu=not torch.cuda.is_available(),  # else it takes no notice of torchrun on a CPU
        kwargs_handlers=[patience],
    )


def _join_after_restart(timeout: timedelta | None) -> None:
    """Meet the other processes of a run that torchrun started again.

    torchrun's store outlives the processes (torch 2.14), and those of a second attempt would find
    in it the addresses of the dead: each attempt keeps its entries apart.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or torch.distributed.is_initialized():
        return
    store, rank, size = next(torch.distributed.rendezvous("env://", timeout=timeout))
    torch.distributed.init_process_group(
        store=torch.distributed.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
    )


def first_only(say: Callable[[str], object], accelerator: Accelerator) -> Callable[[str], object]:
    """``say`` in the first process, nothing in the others."""
    return say if accelerator.is_main_process else lambda line: None


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
    """
    total = steps_per_epoch * settings.epochs
    warmup = math.ceil(total * settings.warmup)
    accelerator.wait_for_everyone()  # until the first process has put the run's folder in order
    optimizer = _make_optimizer(model, settings, head)
    begin, kept = _restore(model, optimizer, run)
    choose_attention(model, accelerator.device)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    average = Average(model, settings.ema) if settings.ema else None
    if average is not None and begin:
        average.load(run.path / "checkpoint")
    rates = [group["initial_lr"] for group in optimizer.param_groups]

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if average is not None:
            average.save(folder)

    def save_result(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_card(folder, title, model.config, run.record, kept or {})

    def checkpoint(step: int) -> None:
        run.save_checkpoint(save, optimizer.optimizer, {"step": step, "kept": kept})

    def averaged() -> AbstractContextManager[None]:
        return nullcontext() if average is None else average.in_place()

    batches = Prefetch(make_step, range(begin, total), settings.threads)
    step = begin
    with track(title, total * settings.batch_size, "samples", begin * settings.batch_size) as bar:
        try:
            for number, micro_batches in batches:
                torch.manual_seed((settings.seed << 32) + number * 64 + accelerator.process_index)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * _schedule(number, warmup, total)
                with interrupts_held():
                    values = _step(
                        wrapped, optimizer, micro_batches, losses, accelerator, number, settings
                    )
                    if average is not None:
                        average.update()
                    step = number + 1
                bar.advance(settings.batch_size, f"loss {values['loss']:.3f}")
                if step % LOG_STEPS == 0 or step == total:
                    run.log(step, {**values, "lr": optimizer.param_groups[0]["lr"]})
                if step % steps_per_epoch == 0:
                    with averaged():
                        figures = _validated(model, validate)
                    run.log(step, figures)
                    told = _told(figures) or "nothing held out to measure on"
                    bar.print(f"epoch {step // steps_per_epoch}: {told}")
                    if best is None or kept is None or figures[best] > kept[best]:
                        kept = {**figures, "epoch": step // steps_per_epoch, "step": step}
                        with averaged():
                            run.replace_folder("model", save_result)
                    checkpoint(step)
                elif step % settings.save_steps == 0:
                    checkpoint(step)
        except KeyboardInterrupt:
            checkpoint(step)
            bar.print(f"Stopped after step {step:,}; the same command goes on from here.")
            raise
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            raise UserError(
                f"The memory ran out at step {step + 1}. Give --accumulate a larger number (now "
                f"{settings.accumulate})"
                + ("" if settings.gradient_checkpointing else " or --gradient-checkpointing")
                + ": both leave the result as it is. The last checkpoint is kept."
            ) from error
    if kept is None:
        raise UserError("Nothing was trained: the run has no steps.")
    run.finish({**kept, "waited_seconds": round(batches.waited, 3)})
    return kept


def _step(
    model: nn.Module,
    optimizer: Any,
    micro_batches: list[B],
    losses: Callable[[nn.Module, B], Losses],
    accelerator: Accelerator,
    number: int,
    settings: TrainingSettings,
) -> dict[str, float]:
    """One optimiser step; the gradient is that of the whole batch, however it is divided."""
    names = sorted({name for batch in micro_batches for name in batch.terms})
    terms = torch.tensor(
        [sum(batch.terms[name] for batch in micro_batches) for name in names],
        device=accelerator.device,
    )
    counts = dict(zip(names, accelerator.reduce(terms, "sum").tolist(), strict=True))
    sums = dict.fromkeys(names, 0.0)
    for index, batch in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            parts = losses(model, batch.to(accelerator.device))
            # DDP averages over processes; the sum over all terms is wanted.
            total = sum(parts[name][0] / max(counts[name], 1) for name in names)
            accelerator.backward(total * accelerator.num_processes)
        for name in names:
            sums[name] += float(parts[name][0].detach())
    reduced = accelerator.reduce(
        torch.tensor([sums[name] for name in names], device=accelerator.device), "sum"
    ).tolist()
    values = {
        name: value / max(counts[name], 1) for name, value in zip(names, reduced, strict=True)
    }
    loss = sum(values.values())
    norm = float(accelerator.clip_grad_norm_(model.parameters(), settings.clip or math.inf))
    if not math.isfinite(loss) or not math.isfinite(norm):
        keys = sorted({key for batch in micro_batches for key in batch.keys})
        raise UserError(
            f"The loss or its gradient is not finite at step {number + 1} ({_told(values)}, "
            f"gradient {norm:.4g}); images of the batch: {', '.join(keys[:8])}"
            f"{f' and {len(keys) - 8} more' if len(keys) > 8 else ''}. The last checkpoint is "
            "kept; try a lower --learning-rate."
        )
    optimizer.step()
    optimizer.zero_grad()
    return {
        "loss": loss,
        **({f"loss/{k}": v for k, v in values.items()} if len(values) > 1 else {}),
    }


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
                "initial_lr": rate,
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


def _out_of_memory(error: BaseException) -> bool:
    # A CPU's allocator raises a plain RuntimeError.
    plain = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return plain or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _restore(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, run: RunFolder
) -> tuple[int, dict[str, Any] | None]:
    found = run.checkpoint()
    if found is None:
        return 0, None
    folder, state = found
    weights = load_file(folder / "model.safetensors")
    tied = set(model._tied_weights_keys or {})
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - tied:
        raise UserError(
            f"The checkpoint {folder} does not fit the model: {missing[:3]} {unexpected[:3]}"
        )
    optimizer.load_state_dict(
        torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    )
    return state["step"], state["kept"]


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


def _told(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
