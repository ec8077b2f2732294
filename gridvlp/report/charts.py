"""Curves as data for the drawings of a report: ticks, points, and what was averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

POINTS = 300  # of a curve; more are averaged


@dataclass(frozen=True)
class Line:
    """One curve: its name and its points."""

    name: str
    steps: list[float]
    values: list[float]


@dataclass(frozen=True)
class Chart:
    """Lines on common axes, in the coordinates of a 660 x 264 drawing."""

    title: str
    lines: list[dict[str, Any]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    note: str


def is_accuracy(name: str) -> bool:
    """Whether a figure of metrics.jsonl is an accuracy in percent."""
    return "accuracy" in name or name.startswith(("held_out/", "AP"))


def charts_of(curves: dict[str, Line]) -> list[Chart]:
    """The losses together, the accuracies together, and everything else by itself."""
    losses = [line for name, line in curves.items() if name.startswith("loss")]
    accuracies = [line for name, line in curves.items() if is_accuracy(name)]
    drawn = [chart("Losses", losses), chart("Accuracy in percent", accuracies)]
    shown = {line.name for line in losses + accuracies}
    titles = {"lr": "Learning rate"}
    drawn += [
        chart(titles.get(name, name), [line]) for name, line in curves.items() if name not in shown
    ]
    return [one for one in drawn if one is not None]


def chart(title: str, lines: Sequence[Line]) -> Chart | None:
    """Place lines in a drawing whose plot is x 60..632, y 10..226."""
    if not lines:
        return None
    thinned = [_thin(line) for line in lines]
    most = max(len(before.steps) for before in lines)
    bound_x = ticks(0, max(line.steps[-1] for line in thinned))
    values = [value for line in thinned for value in line.values]
    bound_y = ticks(min(values), max(values))

    def x(step: float) -> float:
        return round(60 + 572 * step / bound_x[-1], 1)

    def y(value: float) -> float:
        return round(226 - 216 * (value - bound_y[0]) / (bound_y[-1] - bound_y[0]), 1)

    drawn = [
        {
            "name": line.name,
            "points": " ".join(
                f"{x(s)},{y(v)}" for s, v in zip(line.steps, line.values, strict=True)
            ),
            "dots": [(x(s), y(v)) for s, v in zip(line.steps, line.values, strict=True)]
            if len(line.steps) <= 30
            else [],
            "first": whole.values[0],
            "last": whole.values[-1],
        }
        for line, whole in zip(thinned, lines, strict=True)
    ]
    note = (
        f"Each point is the mean of {math.ceil(most / POINTS)} logged steps."
        if most > POINTS
        else ""
    )
    return Chart(
        title,
        drawn,
        [(x(tick), f"{tick:,g}") for tick in bound_x],
        [
            (y(tick), f"{tick:,g}" if tick == 0 or abs(tick) >= 0.001 else f"{tick:.0e}")
            for tick in bound_y
        ],
        note,
    )


def _thin(line: Line) -> Line:
    size = math.ceil(len(line.steps) / POINTS)
    starts = range(0, len(line.steps), size)
    steps = [line.steps[min(i + size, len(line.steps)) - 1] for i in starts]
    return Line(line.name, steps, [float(np.mean(line.values[i : i + size])) for i in starts])


def ticks(least: float, most: float) -> list[float]:
    """Four to nine round numbers, the first not above ``least``, the last not below ``most``."""
    if most <= least:
        pad = abs(least) / 10 or 1.0
        least, most = least - pad, most + pad
    rough = (most - least) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]
