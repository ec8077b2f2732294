"""Ctrl-C between steps of training and never within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[list[int]]:
    """Hold a Ctrl-C that comes within the block until the block is done.

    An optimiser step that is cut in two would be saved half done, and the resumed run would not be
    the uninterrupted one. Outside the main thread, where no signal arrives, it does nothing.

    Yields:
        The signals that came so far.

    Raises:
        KeyboardInterrupt: at the end, if one came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
