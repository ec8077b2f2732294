"""A table of the paper filled on any data: every run that it needs, then its figures on a page."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from gridvlp.atomic import write_json, write_text
from gridvlp.errors import UserError
from gridvlp.reproduce.engine import Engine, Score
from gridvlp.reproduce.processes import in_processes
from gridvlp.reproduce.results import markdown, summarize
from gridvlp.reproduce.scales import Scale
from gridvlp.reproduce.tables import TABLES, Row, Table
from gridvlp.run.environment import environment
from gridvlp.train.options import FINE_TUNING
from gridvlp.train.tasks import get_task


def reproduce(
    name: str,
    scale: Scale,
    *,
    label: str = "sample",
    work: Path = Path("runs/reproduce"),
    out: Path = Path("results"),
    data: Path | None = None,
    weights: dict[str, str] | None = None,
    columns: tuple[str, ...] = (),
    command: str = "",
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Fill a table of the paper: OUT/table-NAME.json and .md.

    Until every run is done they are table-NAME.unfinished.json and .md, and so they stay where an
    older table has more scores.

    Args:
        name: one of TABLES.
        scale: how large everything is.
        label: the scale's name.
        work: encoders, stores, runs and logs; what is there is not made again.
        out: where the results go.
        data: official data; None makes the sample world.
        weights: checkpoints by encoder, in place of training.
        columns: scores, "vqa val"; none: the table's.
        command: what is told to have been given; none: this table at this scale.
        say: called with lines for the person at the keyboard.

    Returns:
        What the JSON file holds.

    Raises:
        UserError: there is no such table, or none of its scores could be had.
    """
    if name not in TABLES:
        raise UserError(f"There is no table {name!r}: there are {', '.join(TABLES)}.")
    table, given = TABLES[name], weights or {}
    for column in columns:
        task, _, split = column.partition(" ")
        if task not in FINE_TUNING or not split:
            raise UserError(f"--column {column!r}: give a task and a split, as in 'vqa val'.")
        get_task(task).split_name(split)
    engine = Engine(Path(work), data, scale, given, say)
    kinds = {engine.kind(row) for row in table.rows}
    if left := given.keys() - kinds:
        say(f"Table {name} has no use for weights of {', '.join(sorted(left))}.")
    stands_for = scale.columns if data is None else {}  # official data have the paper's splits
    columns = columns or tuple(stands_for.get(c, c) for c in table.columns)
    results: dict[str, Any] = {
        "table": name,
        "title": table.title,
        "command": command or f"gridvlp reproduce {name} --scale {label}",
        "scale": label,
        "data": "generated sample world" if data is None else str(data),
        "date": date.today().isoformat(),
        "environment": environment(),
        "processes": scale.processes,  # which share the threads
        "seeds": list(scale.seeds),
        "weights": {kind: given[kind] for kind in given if kind in kinds},
        "settings": scale.settings,
        "fusion": table.times and any("speed-up" in row.paper for row in table.rows),
        "columns": list(dict.fromkeys(c for c in columns if c)),
        "epochs chosen by": [
            c for c in dict.fromkeys(columns) if c and engine.chooses_epochs_by(c)
        ],
        "stand-ins": {**scale.sizes, **scale.grids},
        "unlabelled": [],
        "lines": {},
        "commits": [],
        "rows": {row.name: {"paper": row.paper, "scores": {}, "not run": []} for row in table.rows},
    }
    runs = _by_run(table, engine, results["columns"], scale.seeds)
    finished = Path(out) / f"table-{name}.md"
    unfinished = finished.with_name(f"table-{name}.unfinished.md")

    def write(path: Path, done: int) -> None:
        results["unfinished"] = f"{done} of {len(runs)} runs" if path == unfinished else None
        results["claims"] = summarize(results, [vars(claim) for claim in table.claims])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path.with_suffix(".json"), results)
            write_text(path, markdown(results))
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from error

    failures, everything = [], []
    for run, figures in list(runs.items()):
        lacks = [(figure, engine.missing(figure[1], figure[2])) for figure in figures]
        failures += [(figure[0], figure[2], _absent(paths)) for figure, paths in lacks if paths]
        everything += [path for _, paths in lacks for path in paths]
        runs[run] = [figure for figure, paths in lacks if not paths]
    runs = {run: figures for run, figures in runs.items() if figures}
    if not runs:
        raise UserError(f"Table {name}: no score can be had. {_absent(everything)}")
    _tell_not_run(failures, results, say)
    write(unfinished, 0)
    if table.times:
        for row in table.rows:
            timed = engine.milliseconds(row, results["fusion"])
            results["rows"][row.name] |= {"ms": timed.pop("ms"), "timed": timed}
    beside = copy.copy(engine)
    if scale.processes > 1:
        beside.say = print  # into the log
    ended = in_processes(
        partial(_scores, beside),
        runs,
        scale.processes,
        logs=engine.work / "logs",
        title=f"table {name}",
    )
    for done, (run, values) in enumerate(ended, 1):
        failures = []
        for (row_name, _, column, seed), found in zip(runs[run], values, strict=True):
            if isinstance(found, UserError):
                failures.append((row_name, column, str(found)))
                continue
            lines = {"examples": found.examples, "left out": found.left_out}
            least = min((lines, results["lines"].get(column, lines)), key=lambda n: n["examples"])
            results["lines"][column] = least
            results["commits"] = sorted({*results["commits"], *found.commits})
            if found.accuracy is not None:
                scores = results["rows"][row_name]["scores"]
                scores.setdefault(column, {})[str(seed)] = found.accuracy
            elif column not in results["unlabelled"]:
                results["unlabelled"].append(column)
        _tell_not_run(failures, results, say)
        write(unfinished, done)
    if not _count(results):
        raise UserError(f"Table {name}: no score could be had; {unfinished} says why.")
    older = finished.with_suffix(".json")
    if older.is_file() and _count(json.loads(older.read_text())) > _count(results):
        say(f"{finished} has more scores and stays; this table is {unfinished}.")
        return results
    write(finished, len(runs))
    for path in (unfinished, unfinished.with_suffix(".json")):
        path.unlink(missing_ok=True)
    return results


def _count(results: dict[str, Any]) -> int:
    scores = [column for row in results["rows"].values() for column in row["scores"].values()]
    return sum(map(len, scores))


def _absent(paths: list[Path]) -> str:
    names = ", ".join(map(str, dict.fromkeys(paths)))
    return f"Not there: {names}; docs/data.md says where the data come from."


def _tell_not_run(
    failures: list[tuple[str, str, str]], results: dict[str, Any], say: Callable[[str], object]
) -> None:
    """Note which columns of which rows have no score and why, each reason once a row."""
    columns: dict[tuple[str, str], list[str]] = {}
    for row_name, column, why in dict.fromkeys(failures):
        columns.setdefault((row_name, why), []).append(column)
    for (row_name, why), without in columns.items():
        told = f"{', '.join(without)}: {why}"
        if told not in results["rows"][row_name]["not run"]:
            say(f"{row_name}: not run: {told}")
            results["rows"][row_name]["not run"].append(told)


Figure = tuple[str, Row, str, int]
"""Of the row of that name: what is scored, the column, the seed."""


def _by_run(
    table: Table, engine: Engine, columns: list[str], seeds: tuple[int, ...]
) -> dict[str, list[Figure]]:
    """Every score of a table by the pre-training that it needs; each encoder's first one first."""
    rows = {row.name: row for row in table.rows}
    runs: dict[str, list[Figure]] = {}
    for seed in seeds:
        for row in table.rows:
            scored = replace(rows[row.withheld], withheld=row.withheld) if row.withheld else row
            folder = engine.runs(scored, seed)
            run = f"{folder.parent.name}-{folder.name}"
            runs.setdefault(run, []).extend((row.name, scored, c, seed) for c in columns)
    return runs


def _scores(engine: Engine, figures: list[Figure]) -> list[Score | UserError]:
    """Scores of one run, or why there is none."""
    found: list[Score | UserError] = []
    for _, row, column, seed in figures:
        try:
            found.append(engine.score(row, column, seed))
        except UserError as error:
            found.append(error)
    return found
