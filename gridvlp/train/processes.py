"""The processes that train together: their device and precision, and what they must agree on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from reprlib import repr as shortened
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from gridvlp.errors import UserError
from gridvlp.run.devices import choose_device, choose_precision
from gridvlp.run.folder import RunFolder
from gridvlp.train.allocator import keep_freed_memory
from gridvlp.train.options import TrainingSettings

MIXED = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}

T = TypeVar("T")


def make_accelerator(precision: str) -> Accelerator:
    """The device, the processes, and the precision by the rule of ``choose_precision``.

    Raises:
        UserError: float16 without a GPU.
    """
    device = choose_device()
    chosen = choose_precision(precision, device)
    if device.type == "cpu":
        if chosen == torch.float16:
            raise UserError("--precision float16 needs a GPU: give float32 or bfloat16 here.")
        keep_freed_memory()
    AcceleratorState._reset_state()  # a second run in one process may choose another precision
    # The first process may read annotations for longer than the ten minutes that others wait.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    _join_after_restart(patience.timeout)
    return Accelerator(
        mixed_precision=MIXED[chosen],
        cpu=device.type == "cpu",  # else it takes no notice of torchrun on a CPU
        kwargs_handlers=[patience],
    )


def with_precision(settings: TrainingSettings) -> TrainingSettings:
    """The settings with the precision that "auto" means here, which a run records."""
    chosen = choose_precision(settings.precision, choose_device())
    return replace(settings, precision=str(chosen).removeprefix("torch."))


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


def from_first(value: T, accelerator: Accelerator) -> T:
    """The value that the first process has, in all processes."""
    if accelerator.num_processes == 1:
        return value
    box = [value if accelerator.is_main_process else None]
    first: T = broadcast_object_list(box)[0]
    return first


def agree(run: RunFolder, accelerator: Accelerator) -> dict[str, Any] | None:
    """Check that all processes do the same run, on machines that share no disk, too.

    Returns:
        The final figures if the first process's run is finished.

    Raises:
        UserError: processes have different options or data.
    """
    if accelerator.num_processes > 1:
        records = gather_object([{**run.record["options"], **run.record["facts"]}])
        for rank, record in enumerate(records):
            for name in sorted(records[0].keys() | record.keys()):
                if record.get(name) != records[0].get(name):
                    raise UserError(
                        f"The processes do not train on the same: {name} is "
                        f"{shortened(records[0].get(name))} in process 0 and "
                        f"{shortened(record.get(name))} in process {rank}. Give all machines the "
                        "same command and the same data."
                    )
    return from_first(run.finished, accelerator)
