"""The paper's tables on any data: what each row changes, and the engine that runs them.

    gridvlp reproduce 1                        # on the sample world, two CPU cores
    gridvlp reproduce 2 --scale full --data data

The engine calls what the commands call, in folders named for what they hold, so that rows and
tables share encoders, stores and runs; what is finished is not run again, and what was interrupted
goes on.
"""

from __future__ import annotations

import copy
import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from gridvlp.errors import UserError
from gridvlp.extract.settings import ExtractOptions, TrainExtractorOptions
from gridvlp.processes import in_processes
from gridvlp.results import markdown, summarize
from gridvlp.train.settings import (
    FINE_TUNING,
    FineTuningOptions,
    PreTrainingOptions,
    TrainingSettings,
)

TIMES = (
    "Times are of full-width encoders on one photo of 640 x 480 pixels, batch 1, on this machine; "
    "speed-ups count the fusion model (BERT-base, all grids), too. The paper's are of a V100."
)
PHOTO_FOLDERS = ("coco", "vg/VG_100K", "vg/VG_100K_2", "gqa/images", "nlvr2/images")

# --- the tables ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row: what it changes, and the paper's figures (percent; ms on a V100; times faster)."""

    name: str
    paper: dict[str, float] = field(default_factory=dict)
    backbone: str = "x152"
    size: str = "600x1000"
    regions: int | None = None
    grids: int = 100  # random ones, in pre-training
    fresh: bool = False  # fine-tuned without pre-training
    withheld: str | None = None  # the row whose models are scored with all grids zeroed


@dataclass(frozen=True)
class Claim:
    """What the paper says of two rows: one is better, or they differ by less than ``within``."""

    text: str
    better: str
    than: str
    columns: tuple[str, ...] | None = None  # None: all scores; "ms": less is better
    within: float | None = None  # points


@dataclass(frozen=True)
class Table:
    """A table of the paper: its columns of scores are ``task split``."""

    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    columns: tuple[str, ...] = ("vqa minival", "nlvr2 dev")
    times: bool = False


X152 = {"vqa minival": 76.05, "nlvr2 dev": 80.03}
TABLES = {
    "1": Table(
        "Results on VQA, NLVR2 and GQA",
        (
            Row(
                "ours",
                {**X152, "vqa test-dev": 76.05, "nlvr2 test1": 81.11, "gqa testdev": 63.50},
            ),
            Row("ours, without pre-training", fresh=True),
            Row("ours, on regions", {"vqa minival": 75.12, "nlvr2 dev": 79.14}, regions=100),
            Row("ours, image withheld", withheld="ours"),
        ),
        (
            Claim("Pre-training helps.", "ours", "ours, without pre-training"),
            Claim("Grids do no worse than regions.", "ours", "ours, on regions", within=0.0),
            Claim("The answers come from the image.", "ours", "ours, image withheld"),
        ),
        ("vqa minival", "vqa test-dev", "nlvr2 dev", "nlvr2 test1", "gqa testdev"),
    ),
    "2": Table(
        "Image encoders",
        (
            Row("x50", {"ms": 106, "vqa minival": 74.34, "nlvr2 dev": 78.01}, backbone="x50"),
            Row("x101", {"ms": 153, "vqa minival": 75.18, "nlvr2 dev": 78.95}, backbone="x101"),
            Row("x152", {"ms": 221, **X152}),
            Row(
                "x152 (region)",
                {"ms": 572, "vqa minival": 75.12, "nlvr2 dev": 79.14},
                regions=100,
            ),
        ),
        (
            Claim("x101 is better than x50.", "x101", "x50"),
            Claim("x152 is better than x101.", "x152", "x101"),
            Claim("Grids do better than regions.", "x152", "x152 (region)"),
            Claim("Grids are faster than regions.", "x152", "x152 (region)", columns=("ms",)),
        ),
        times=True,
    ),
    "3": Table(
        "Size of the input",
        (
            Row(
                "448x448",
                {"speed-up": 3, "vqa minival": 74.71, "nlvr2 dev": 79.22},
                size="448x448",
            ),
            Row(
                "448x746",
                {"speed-up": 2, "vqa minival": 75.64, "nlvr2 dev": 79.72},
                size="448x746",
            ),
            Row("600x1000", {"speed-up": 1, **X152}),
        ),
        (
            Claim("Larger is better.", "600x1000", "448x746"),
            Claim("Larger is better.", "448x746", "448x448"),
            Claim("448x746 loses at most a point.", "448x746", "600x1000", within=1.0),
        ),
        times=True,
    ),
    "sampling": Table(
        "Random grids per image in pre-training (footnote 2)",
        (Row("64", grids=64), Row("100", X152), Row("128", grids=128)),
        (
            Claim("64 makes not much difference.", "64", "100", within=1.0),
            Claim("128 makes not much difference.", "128", "100", within=1.0),
        ),
    ),
}


# --- the scales ------------------------------------------------------------------------------


def _fields(*options: type[Any], less: str, more: str = "") -> set[str]:
    return {f.name for one in options for f in fields(one)} - set(less.split()) | set(more.split())


# Each command's settings that a scale or a file may choose; the rest the rows decide.
CHOSEN = {
    "train-extractor": _fields(
        TrainExtractorOptions,
        less="visual_genome annotations valid_annotations photos run backbone width regions",
    ),
    "extract": _fields(
        ExtractOptions,
        less="images out weights backbone width size regions num_shards shard",
    ),
    "pretrain": _fields(
        PreTrainingOptions, TrainingSettings, less="features data run grids training seed"
    ),
    "finetune": _fields(
        TrainingSettings, less="seed", more="train_splits valid_split answers head loss"
    ),
}
RENAMED = {"source": "sources", "train_split": "train_splits"}  # options of fields


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        settings: option values for each command, as in a settings file; "train-extractor regions"
            has those of detectors of regions.
        width: of every backbone, over the published one.
        seeds: of pre-training and fine-tuning.
        sizes, grids: what stands for the paper's; those not named stay. Regions are counted as
            grids are.
        columns: splits that stand for the paper's.
        images: training photos of the sample world; 0 where there is none to make.
        processes: how many runs at a time.
    """

    settings: dict[str, dict[str, Any]]
    width: float = 1.0
    seeds: tuple[int, ...] = (0,)
    sizes: dict[str, str] = field(default_factory=dict)
    grids: dict[int, int] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    images: int = 0
    processes: int = 1

    def with_settings(
        self, sections: dict[str, dict[str, Any]], say: Callable[[str], object]
    ) -> Scale:
        """This scale with a settings file's values; ``say`` is told of those left out."""
        settings = {
            title: {
                option: value
                for option, value in section.items()
                # what the file says of a command holds for each of its tasks
                if option not in sections.get(title.split()[0], {})
            }
            for title, section in self.settings.items()
        }
        for title, section in sections.items():
            if title == "reproduce":
                continue
            chosen = CHOSEN.get(title.split()[0], set())
            for option, value in section.items():
                if _field(option) in chosen:
                    settings.setdefault(title, {})[option] = value
                else:
                    say(f"Left out: {title}'s {option}, which a table decides itself.")
        return replace(self, settings=settings)


def _field(option: str) -> str:
    name = option.replace("-", "_")
    return RENAMED.get(name, name)


def scales(name: str) -> Scale:
    """The scale "full" (the commands' own defaults are the paper's) or "sample" (two CPU cores).

    Raises:
        UserError: there is no such scale.
    """
    if name == "full":
        return Scale({})
    if name != "sample":
        raise UserError(f"There is no scale {name!r}: there are sample and full.")
    import torch
    import yaml

    from gridvlp.sample import SETTINGS

    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    # Its box head, res5 on each of 14 x 14 places, takes most of the time: it sees fewer boxes.
    settings["train-extractor regions"] = {"roi-batch": 8, "iterations": 600, "eval-steps": 600}
    cores = len(os.sched_getaffinity(0))
    return Scale(
        settings,
        width=0.25,
        seeds=(0, 1, 2),
        sizes={"600x1000": "144x256", "448x746": "108x192", "448x448": "108x108"},
        # A map has at most 40 grids here: 64, 100 and 128 of 608 keep their ratio to each other.
        grids={64: 16, 100: 25, 128: 32},
        columns={"vqa minival": "vqa test", "vqa test-dev": "", "nlvr2 dev": "nlvr2 test1"},
        images=1600,
        # Models this small gain little from a second thread; more would take much memory.
        processes=1 if torch.cuda.is_available() else min(cores, 4),
    )


# --- the engine ------------------------------------------------------------------------------


class Engine:
    """Runs what rows need below one folder.

    Args:
        work: where encoders, stores and runs go.
        data: official data; None makes the sample world in ``work``.
        scale: how large.
        weights: checkpoints by backbone ("x152", "x152-regions"), in place of training.
        say: called with lines for the person at the keyboard.
    """

    def __init__(
        self,
        work: Path,
        data: Path | None,
        scale: Scale,
        weights: dict[str, str],
        say: Callable[[str], object],
    ) -> None:
        self.work, self.scale, self.weights, self.say = work, scale, weights, say
        if data is None and not scale.images:
            raise UserError("--scale full needs --data: docs/reproduce.md says what goes there.")
        self.data = data or work / "world" / "data"
        self._done: set[Path] = set()  # in this process: their options were checked
        if data is None:
            from gridvlp.sample import write_sample

            write_sample(work / "world", scale.images)

    def score(self, row: Row, column: str, seed: int) -> float | None:
        """The accuracy in percent of a row in a column; None where the split has no labels."""
        from gridvlp.train.evaluation import evaluate
        from gridvlp.train.finetuning import finetune

        task, split = column.split()
        store = self.store(row)
        pretrained = self.runs(row, seed) / "pretrain"
        self.pretrain(row, store, pretrained, seed)
        section = {**self.section("finetune"), **self.section(f"finetune {task}")}
        training, own = _apart(section)
        run = pretrained.with_name(f"{task}{'-fresh' if row.fresh else ''}")
        options = FineTuningOptions(
            task,
            (store,),
            replace(FINE_TUNING[task], **training, seed=seed),
            data=self.data,
            run=run,
            init=pretrained,
            fresh=row.fresh,
            **own,
        )
        self._once(run, partial(finetune, options, self.say))
        path = run / f"evaluate-{split}" / "metrics.json"

        def score() -> None:
            if not path.is_file():  # the last that is written
                evaluate(task, split, run=run, withheld=True, say=self.say)

        self._once(path.parent, score)
        figures = json.loads(path.read_text())["withheld" if row.withheld else "figures"]
        return None if figures is None else float(figures["accuracy"])

    def runs(self, row: Row, seed: int) -> Path:
        """The folder of what is trained on a row's store and from one pre-training."""
        name = f"{self.store_path(row).stem}-{self.grids(row.grids)}grids"
        return self.work / "runs" / name / f"seed{seed}"

    def pretrain(self, row: Row, store: Path, run: Path, seed: int) -> None:
        """Pre-train on a store, unless that is done."""
        from gridvlp.train.pretraining import pretrain

        training, own = _apart(self.section("pretrain"))
        options = PreTrainingOptions((store,), self.data, run, grids=self.grids(row.grids), **own)
        options = replace(options, training=replace(options.training, **training, seed=seed))
        self._once(run, partial(pretrain, options, self.say))

    def store(self, row: Row) -> Path:
        """The store of a row's maps or regions, extracted unless that is done."""
        from gridvlp.extract.extraction import extract

        encoder = self.encoder(row)
        path = self.store_path(row)
        images = tuple(f for name in PHOTO_FOLDERS if (f := self.data / name).is_dir())
        if not images:
            raise UserError(f"There are no photos in {self.data}: docs/data.md says where they go.")
        options = ExtractOptions(
            images,
            path,
            weights=encoder,
            backbone=row.backbone,
            width=self.scale.width,
            size=self.size(row),
            regions=None if row.regions is None else self.grids(row.regions),
            **self.section("extract"),
        )

        def run() -> None:
            for line in extract(options, self.say).lines():
                self.say(line)

        self._once(path, run)
        return path

    def encoder(self, row: Row) -> str:
        """Weights of a row's encoder: those given, or trained unless that is done."""
        from gridvlp.extract.training import train_extractor

        if self.kind(row) in self.weights:
            return self.weights[self.kind(row)]
        section = self.section("train-extractor")
        if row.regions is not None:
            section |= self.section("train-extractor regions")
        run = self.work / "encoders" / self.kind(row)
        options = TrainExtractorOptions(
            self.data / "vg",
            run=run,
            backbone=row.backbone,
            width=self.scale.width,
            regions=row.regions is not None,
            **section,
        )
        self._once(run, partial(train_extractor, options, self.say))
        return str(run)

    def milliseconds(self, row: Row, fusion: bool) -> float:
        """Time of a full-width encoder on one photo; ``fusion`` adds BERT-base on its grids."""
        path = self.work / "times.json"
        times: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
        name = f"{self.kind(row)} {row.size}{' and fusion' if fusion else ''}"
        if name not in times:
            from gridvlp.run_folder import write_json
            from gridvlp.timing import time_photo

            self.say(f"Timing {name}.")
            times[name] = 1000 * time_photo(row.backbone, row.size, row.regions, fusion)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, times)
        return times[name]

    def _once(self, path: Path, work: Callable[[], object]) -> None:
        """Do what fills a folder, unless this process has done so; others wait for the first."""
        if path in self._done:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say(f"Waiting for another process, which is at {path}.")
                fcntl.flock(lock, fcntl.LOCK_EX)
            work()
        self._done.add(path)

    def kind(self, row: Row) -> str:
        """The name of a row's encoder."""
        return row.backbone + ("-regions" if row.regions is not None else "")

    def size(self, row: Row) -> str:
        """The size of a row's photos at this scale."""
        return self.scale.sizes.get(row.size, row.size)

    def grids(self, count: int) -> int:
        """What stands at this scale for a number of grids or regions."""
        return self.scale.grids.get(count, count)

    def store_path(self, row: Row) -> Path:
        """Where a row's store is, or will be."""
        return self.work / "stores" / f"{self.kind(row)}-{self.size(row)}.zarr"

    def section(self, name: str) -> dict[str, Any]:
        """A command's settings by the names of option fields; what rows decide is left out."""
        settings = self.scale.settings.get(name, {})
        return {
            f: tuple(value) if isinstance(value, list) else value
            for option, value in settings.items()
            if (f := _field(option)) in CHOSEN[name.split()[0]]
        }


def _apart(section: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of a section that are TrainingSettings, and the others."""
    known = {f.name for f in fields(TrainingSettings)}
    return (
        {k: v for k, v in section.items() if k in known},
        {k: v for k, v in section.items() if k not in known},
    )


# --- results ---------------------------------------------------------------------------------


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
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Fill a table of the paper, writing OUT/table-NAME.json and .md after every run.

    Args:
        name: one of TABLES.
        scale: how large everything is.
        label: the scale's name.
        work: encoders, stores, runs and logs; what is there is not made again.
        out: where the results go.
        data: official data; None makes the sample world.
        weights: checkpoints by encoder, in place of training.
        columns: scores, "vqa val"; none: the table's.
        say: called with lines for the person at the keyboard.

    Returns:
        What the JSON file holds.

    Raises:
        UserError: there is no such table, or none of its figures could be had.
    """
    from gridvlp.run_folder import environment, write_json, write_text
    from gridvlp.train.tasks import get_task

    if name not in TABLES:
        raise UserError(f"There is no table {name!r}: there are {', '.join(TABLES)}.")
    table, given = TABLES[name], weights or {}
    for column in columns:
        task, _, split = column.partition(" ")
        if task not in FINE_TUNING or not split:
            raise UserError(f"--column {column!r}: give a task and a split, as in 'vqa val'.")
        get_task(task).split_name(split)
    engine = Engine(Path(work), data, scale, given, say)
    if left := given.keys() - {engine.kind(row) for row in table.rows}:
        say(f"Table {name} has no use for weights of {', '.join(sorted(left))}.")
    stands_for = scale.columns if data is None else {}  # official data have the paper's splits
    columns = columns or tuple(stands_for.get(c, c) for c in table.columns)
    results: dict[str, Any] = {
        "table": name,
        "title": table.title,
        "scale": label,
        "data": "generated sample world" if data is None else str(data),
        "date": date.today().isoformat(),
        "environment": environment(),
        "processes": scale.processes,  # which share the threads
        "seeds": list(scale.seeds),
        "weights": given,
        "settings": scale.settings,
        "times": TIMES if table.times else None,
        "columns": list(dict.fromkeys(c for c in columns if c)),
        "rows": {row.name: {"paper": row.paper, "scores": {}, "not run": []} for row in table.rows},
    }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        results["claims"] = summarize(results, [vars(claim) for claim in table.claims])
        write_json(out / f"table-{name}.json", results)
        write_text(out / f"table-{name}.md", markdown(results))

    if table.times:
        whole = any("speed-up" in row.paper for row in table.rows)
        for row in table.rows:
            results["rows"][row.name]["ms"] = engine.milliseconds(row, whole)
    runs = _by_run(table, engine, results["columns"], scale.seeds)
    beside = copy.copy(engine)
    if scale.processes > 1:
        beside.say = print  # into the log
    for run, values in in_processes(
        partial(_scores, beside),
        runs,
        scale.processes,
        logs=engine.work / "logs",
        title=f"table {name}",
    ):
        for (row_name, _, column, seed), value in zip(runs[run], values, strict=True):
            entry = results["rows"][row_name]
            if isinstance(value, UserError):
                if str(value) not in entry["not run"]:
                    say(f"{row_name}, {column}: not run: {value}")
                    entry["not run"].append(str(value))
            elif value is not None:
                entry["scores"].setdefault(column, {})[str(seed)] = value
        write()
    if not any(row["scores"] or "ms" in row for row in results["rows"].values()):
        reasons = dict.fromkeys(r for row in results["rows"].values() for r in row["not run"])
        raise UserError(f"Table {name}: no figure could be had. {' '.join(reasons)}")
    return results


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


def _scores(engine: Engine, figures: list[Figure]) -> list[float | UserError | None]:
    """Scores of one run, or why there is none."""
    found: list[float | UserError | None] = []
    for _, row, column, seed in figures:
        try:
            found.append(engine.score(row, column, seed))
        except UserError as error:
            found.append(error)
    return found
