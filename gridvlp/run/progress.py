"""Progress of long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

LOG_SECONDS = 15.0
CONSOLE = Console(stderr=True)  # one, so that a bar within a bar is drawn below it
FIRST_PROCESS = os.environ.get("RANK", "0") == "0"  # the one that speaks (torchrun sets RANK)


class _RateAndETA(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        rate, left = task.speed or task.finished_speed, task.time_remaining
        return Text(f"{_rate(rate or 0, self.unit)}, ETA {_clock(left)}")


class Tracker:
    """What the work reports to: how far it is, and a short note shown beside the bar."""

    def __init__(self, title: str, total: int, unit: str, done: int, quiet: bool) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self.note, self._told = "", -1
        quiet = quiet or not FIRST_PROCESS
        self._console = Console(quiet=True) if quiet else CONSOLE
        self._bar: Progress | None = None
        self._first, self._start, self._logged = done, time.monotonic(), time.monotonic()
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                _RateAndETA(unit),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, note="")
            self._bar.start()

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Say that ``amount`` more units are done."""
        self.done += amount
        if note is not None:
            self.note = note
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, note=self.note)
        elif time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            self._line()

    def print(self, message: str) -> None:
        """Show a line without breaking the bar."""
        (self._bar.console if self._bar is not None else self._console).print(
            message, markup=False, highlight=False, soft_wrap=True
        )

    def close(self, complete: bool) -> None:
        """Take the bar down; in a log, say how it went."""
        if self._bar is not None:
            self._bar.stop()
        elif complete and self._told != self.done:
            self._line()

    def _line(self) -> None:
        self._told = self.done
        seconds = time.monotonic() - self._start
        rate = (self.done - self._first) / seconds if seconds else 0.0
        left = (self.total - self.done) / rate if rate else None
        self.print(
            f"{self.title}: {self.done:,}/{self.total:,}, {_rate(rate, self.unit)}, "
            f"ETA {_clock(left)} {self.note}".rstrip()
        )


@contextmanager
def track(
    title: str, total: int, unit: str, done: int = 0, quiet: bool = False
) -> Iterator[Tracker]:
    """Follow ``total`` units of work, ``done`` of them done before; ``quiet`` shows nothing."""
    tracker, complete = Tracker(title, total, unit, done, quiet), False
    try:
        yield tracker
        complete = True
    finally:
        tracker.close(complete)


def _rate(per_second: float, unit: str) -> str:
    if 0 < per_second < 0.05:
        return f"{3600 * per_second:,.1f} {unit}/h"
    return f"{per_second:,.1f} {unit}/s"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
