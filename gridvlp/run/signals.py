"""Ctrl-C and SIGTERM, between steps of training and never within one; the end of a process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Termination(KeyboardInterrupt):
    """SIGTERM came: the notice of spot machines, of schedulers and of torchrun."""


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Let a SIGTERM that comes within the block interrupt the main thread, as Ctrl-C does.

    Outside the main thread it does nothing.

    Raises:
        Termination: a SIGTERM came.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Termination

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interrupts_held() -> Iterator[list[int]]:
    """Hold a Ctrl-C or SIGTERM that comes within the block until the block is done.

    An optimiser step that is cut in two would be saved half done, and the resumed run would not be
    the uninterrupted one. A signal that would be ignored, or would end the process at once, is not
    held. Outside the main thread, where no signal arrives, it does nothing.

    Yields:
        The signals that came so far.

    Raises:
        KeyboardInterrupt: at the end, if one came. One that came while the block failed is dropped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    held = [number for number, handler in before.items() if callable(handler)]
    for number in held:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        for number in held:
            signal.signal(number, before[number])
    for each in dict.fromkeys(came):
        signal.raise_signal(each)


def exit_code(error: BaseException) -> int:
    """The exit code of a command that was interrupted, by the shell's rule 128 + signal."""
    by_sigterm = isinstance(error, Termination) or isinstance(error.__cause__, Termination)
    return 128 + (signal.SIGTERM if by_sigterm else signal.SIGINT)


def end_process(code: int = 0) -> NoReturn:
    """End this process at once: all that it made has been written.

    The interpreter's own end meets threads of gloo at times, which abort a run that is whole.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
