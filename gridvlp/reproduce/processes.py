"""Jobs in several processes at a time, each of which prints into a file of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

from gridvlp.errors import UserError
from gridvlp.run.progress import track
from gridvlp.run.signals import termination_interrupts

J = TypeVar("J")
R = TypeVar("R")
_stopping: Any = None  # in a worker: set once no further job is to begin


def in_processes(
    work: Callable[[J], R], jobs: dict[str, J], processes: int, *, logs: Path, title: str
) -> Iterator[tuple[str, R]]:
    """Do jobs, yielding the name and the result of each as it ends.

    With one process they are done here, in their order. Otherwise the processes share the
    processors' threads evenly, and what a job prints goes to LOGS/NAME.log. Each process gets one
    Ctrl-C, also for a SIGTERM, and time to leave a checkpoint; if this process is killed, they end
    with it.

    Raises:
        UserError: a process was killed.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        for name, job in jobs.items():
            yield name, work(job)
        return
    logs.mkdir(parents=True, exist_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    context = multiprocessing.get_context("spawn")
    stopping = context.Event()
    with (
        track(title, len(jobs), "runs") as bar,
        ProcessPoolExecutor(processes, context, _begin, (threads, stopping)) as pool,
    ):
        bar.print(f"{len(jobs)} runs, {processes} at a time; what they say is in {logs}.")
        futures = {
            pool.submit(_logged, work, job, logs / f"{name}.log"): name
            for name, job in jobs.items()
        }
        try:
            for future in as_completed(futures):
                result = future.result()
                bar.print(f"{futures[future]}: ended")
                bar.advance()
                yield futures[future], result
        except BrokenProcessPool as error:
            raise UserError(
                f"A process was ended from outside, perhaps for lack of memory; {logs} has what it "
                "said. The same command goes on."
            ) from error
        except BaseException:
            stopping.set()
            for future in futures:
                future.cancel()
            for process in multiprocessing.active_children():
                if process.pid is not None:
                    os.kill(process.pid, signal.SIGINT)
            raise


def _begin(threads: int, stopping: Any) -> None:
    """Prepare a worker."""
    global _stopping
    os.setpgrp()  # a terminal's Ctrl-C would come beside the one that the parent passes on
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _stopping = stopping
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch  # it takes seconds

    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _logged(work: Callable[[J], R], job: J, log: Path) -> R:
    with log.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if _stopping.is_set():  # queued too near to be called back, or before the line above
            raise KeyboardInterrupt
        with termination_interrupts():
            return work(job)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
