"""A run, or several side by side, as one HTML page that opens offline.

    gridvlp report runs/finetune-vqa
    gridvlp report runs/*

The page loads nothing: style, curves and photos are inside it. Text of annotations is escaped by
the template; a content security policy forbids every request and script besides.
"""

from __future__ import annotations

import base64
import io
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.atomic import write_bytes
from gridvlp.errors import UserError
from gridvlp.report.charts import Chart, Line, chart, charts_of, is_accuracy
from gridvlp.run.environment import short_commit
from gridvlp.run.progress import track

SHOWN = 12  # examples right, and as many wrong
KINDS = 24  # question types with a table of their own
CLASSES = 8  # rows and columns of such a table
THUMBNAIL = 360  # pixels, the longer side
RIGHT = 0.5  # a score from here on counts as right; VQA's is a share of the annotators


@dataclass
class Kind:
    """The answers to one type of question: how often which truth was answered with what."""

    name: str
    count: int = 0
    score: float = 0.0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def accuracy(self) -> float:
        """The mean score in percent."""
        return 100 * self.score / self.count

    def mistakes(self) -> list[tuple[str, str, int]]:
        """The three commonest: truth, answer, how often."""
        wrong = ((truth, given, n) for (truth, given), n in self.pairs.items() if truth != given)
        return sorted(wrong, key=lambda row: -row[2])[:3]

    def matrix(self) -> tuple[list[str], list[tuple[str, list[int]]]]:
        """Columns (answers given) and rows (truth); the rarer ones are summed as "other"."""
        truths: Counter[str] = Counter()
        for (truth, _), n in self.pairs.items():
            truths[truth] += n
        names = [name for name, _ in truths.most_common(CLASSES)]
        place = {name: i for i, name in enumerate(names)}
        cells = np.zeros((len(names) + 1, len(names) + 1), dtype=int)
        for (truth, given), n in self.pairs.items():
            cells[place.get(truth, -1), place.get(given, -1)] += n
        labels = [*names, "other"]
        rows = [(name, row.tolist()) for name, row in zip(labels, cells, strict=True)]
        columns = labels if cells[:, -1].any() else names
        return columns, [(name, row[: len(columns)]) for name, row in rows if any(row)]


@dataclass
class Evaluated:
    """What ``gridvlp evaluate`` left for one split, and a choice of its examples."""

    split: str
    metrics: dict[str, Any]
    kinds: list[Kind]
    right: list[dict[str, Any]]
    wrong: list[dict[str, Any]]
    unlabelled: list[dict[str, Any]]
    notes: list[str]


@dataclass
class Run:
    """A run folder as the page shows it."""

    path: Path
    name: str
    title: str
    record: dict[str, Any]
    result: dict[str, Any] | None
    curves: dict[str, Line]
    charts: list[Chart]
    evaluated: list[Evaluated]


def write_report(
    runs: Sequence[Path], out: Path | None = None, say: Callable[[str], object] = print
) -> Path:
    """Write the page about one run or several.

    Args:
        runs: run folders of any stage.
        out: where to; by default RUN/report.html for one run, report.html for several.
        say: called with lines for the person at the keyboard.

    Returns:
        The file that was written.

    Raises:
        UserError: a folder is no run, a file of it is broken, or the page cannot be written.
    """
    from jinja2 import Environment, PackageLoader

    read = [_read_run(Path(path)) for path in runs]
    if not read:
        raise UserError("Name a run folder, as in `gridvlp report runs/finetune-vqa`.")
    environment = Environment(
        loader=PackageLoader("gridvlp.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = _shown
    environment.filters["commit"] = short_commit
    page = environment.get_template("report.html").render(
        runs=read, compared=_compare(read), results=[row for run in read for row in _results(run)]
    )
    for run in read:
        for evaluated in run.evaluated:
            for note in evaluated.notes:
                say(f"{run.name} {evaluated.split}: {note}")
    path = out or (read[0].path / "report.html" if len(read) == 1 else Path("report.html"))
    try:
        write_bytes(path, page.encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    return path


def _read_run(path: Path) -> Run:
    record_path = path / "run.json"
    if not record_path.is_file():
        inside = sorted(p.parent.name for p in path.glob("*/run.json")) if path.is_dir() else []
        hint = f"; there are runs in it: {', '.join(inside)}" if inside else ""
        raise UserError(f"{path} is no run folder: it has no run.json{hint}.")
    record = _read_json(record_path, "options", "facts", "environment")
    options = record.get("options") or {}
    if "task" in options:
        title = f"fine-tuning on {options['task']}"
    else:
        title = "detector pre-training" if "visual_genome" in options else "pre-training"
    result = path / "result.json"
    curves = _read_curves(path / "metrics.jsonl")
    return Run(
        path,
        path.resolve().name,
        title,
        record,
        _read_json(result) if result.is_file() else None,
        curves,
        charts_of(curves),
        [
            _read_evaluation(path, folder, options)
            for folder in sorted(path.glob("evaluate-*"))
            if (folder / "metrics.json").is_file()
        ],
    )


def _read_json(path: Path, *objects: str) -> dict[str, Any]:
    """An object, in which the members of these names are objects or null, if they are there."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(read, dict) or any(
        not isinstance(read.get(name) or {}, dict) for name in objects
    ):
        raise UserError(f"{path} is not what a run leaves: delete it, or run the command again.")
    return read


def _results(run: Run) -> Iterator[dict[str, Any]]:
    """Rows of the table of results: one for each split that was evaluated, or one for the run."""
    shared = {"run": run.name, "title": run.title, "figures": []}
    for evaluated in run.evaluated:
        metrics = evaluated.metrics
        yield {
            **shared,
            "split": evaluated.split,
            "examples": metrics.get("examples"),
            "accuracy": (metrics.get("figures") or {}).get("accuracy"),
            "withheld": (metrics.get("withheld") or {}).get("accuracy"),
            "majority": metrics.get("majority"),
        }
    if not run.evaluated:
        result = run.result or {}
        names = [name for name in result if is_accuracy(name) and name != "accuracy"]
        yield {
            **shared,
            "split": "validation" if run.result else "unfinished",
            "accuracy": result.get("accuracy"),
            "figures": [(name, result[name]) for name in names],
        }


# --- curves ----------------------------------------------------------------------------------


def _read_curves(path: Path) -> dict[str, Line]:
    curves: dict[str, Line] = {}
    if not path.is_file():
        return curves
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(text)
        except ValueError:  # the line that a kill cut in half
            continue
        if not isinstance(values, dict):
            continue
        step = values.pop("step", None)
        for name, value in values.items():
            if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value):
                line = curves.setdefault(name, Line(name, [], []))
                line.steps.append(step)
                line.values.append(value)
    return curves


def _compare(runs: list[Run]) -> list[Chart]:
    """A chart for each loss and accuracy that two runs or more of one kind have."""
    charts = []
    for title in dict.fromkeys(run.title for run in runs):
        alike = [run for run in runs if run.title == title]
        for name in dict.fromkeys(name for run in alike for name in run.curves):
            having = [(run.name, run.curves[name]) for run in alike if name in run.curves]
            if len(having) > 1 and (name.startswith("loss") or is_accuracy(name)):
                lines = [Line(run, curve.steps, curve.values) for run, curve in having]
                charts.append(chart(f"{title}: {name}", lines))
    return [one for one in charts if one is not None]


# --- examples --------------------------------------------------------------------------------


def _read_evaluation(run: Path, folder: Path, options: dict[str, Any]) -> Evaluated:
    split = folder.name.removeprefix("evaluate-")
    metrics = _read_json(folder / "metrics.json", "figures", "withheld")
    found = Evaluated(split, metrics, [], [], [], [], [])
    path = folder / "examples.jsonl"
    if not path.is_file():
        found.notes.append(
            f"no examples are shown: {path} is not there; "
            f"`gridvlp evaluate {options.get('task')} --split {split}` writes it"
        )
        return found
    kinds: dict[str, Kind] = {}
    chosen: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    seen: Counter[tuple[str, str]] = Counter()
    draw = random.Random(0)
    for example in _read_examples(path):
        name, score = example["kind"] or "all", example["score"]
        side = "unlabelled" if score is None else "right" if score >= RIGHT else "wrong"
        if score is not None:
            kind = kinds.setdefault(name, Kind(name))
            kind.count += 1
            kind.score += score
            # of several right answers the one that was given is no mistake
            given = example["predicted"]
            kind.pairs[given if score >= RIGHT else _label(example), given] += 1
        place = _reservoir(draw, seen[side, name])
        seen[side, name] += 1
        group = chosen[side, name]
        if place is not None:
            group[place : place + 1] = [example]
    found.kinds = sorted(kinds.values(), key=lambda kind: -kind.count)
    if len(found.kinds) > KINDS:
        found.notes.append(
            f"the {KINDS} commonest of {len(found.kinds)} question types have a table"
        )
        found.kinds = found.kinds[:KINDS]
    explain = _Explainer(run, options, metrics, found.notes)
    for side in ("right", "wrong", "unlabelled"):
        groups = [group for (which, _), group in sorted(chosen.items()) if which == side]
        setattr(found, side, _one_of_each(groups, draw))
    shown = [*found.right, *found.wrong, *found.unlabelled]
    with track(f"report {run.name} {split}", len(shown), "examples") as bar:
        for example in shown:
            example["truths"] = _labels(example)
            example["pictures"] = explain(example)
            bar.advance()
    explain.finish()
    return found


def _read_examples(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                read = json.loads(line)
                score = read.get("score")
                example = {
                    **{name: str(read[name] or "") for name in ("id", "sentence", "kind")},
                    "predicted": str(read["predicted"]),
                    "images": [str(key) for key in read["images"]],
                    "labels": {name: float(share) for name, share in read["labels"].items()},
                    "top": [(str(answer), float(chance)) for answer, chance in read["top"]],
                    "score": None if score is None else float(score),
                }
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(f"{path}, line {number} is no example: {error}.") from error
            yield example


def _reservoir(draw: random.Random, before: int) -> int | None:
    """Where the next of a stream goes in an even sample of SHOWN, if anywhere."""
    if before < SHOWN:
        return before
    place = draw.randrange(before + 1)
    return place if place < SHOWN else None


def _one_of_each(groups: list[list[dict[str, Any]]], draw: random.Random) -> list[dict[str, Any]]:
    """SHOWN examples, the groups taking turns."""
    for group in groups:
        draw.shuffle(group)
    draw.shuffle(groups)
    turns = max(map(len, groups), default=0)
    dealt = [group[turn] for turn in range(turns) for group in groups if turn < len(group)]
    return dealt[:SHOWN]


def _labels(example: dict[str, Any]) -> list[tuple[str, float]]:
    """The answers that count as right with their scores, best first."""
    return sorted(example["labels"].items(), key=lambda pair: -pair[1])


def _label(example: dict[str, Any]) -> str:
    """The label under which a table of confusions files an example."""
    labels = _labels(example)
    return labels[0][0] if labels else "no class"


class _Explainer:
    """Photos of an example as data URIs, with the relevance of their grids where it can be had."""

    def __init__(
        self, run: Path, options: dict[str, Any], metrics: dict[str, Any], notes: list[str]
    ) -> None:
        self.notes, self.without_photo, self.without_map = notes, 0, 0
        self.store: Any = None
        self.model: Any = None
        try:
            from gridvlp.store import FeatureStore

            stores = metrics.get("stores") or options.get("features") or []
            self.store = FeatureStore(stores)
        except UserError as error:
            notes.append(f"no photos and no heat maps: {error}")
            return
        from gridvlp.train.tasks import is_file

        if is_file(options["task"]):  # a folder from elsewhere must not name what is executed
            notes.append("no heat maps: a report does not run the file that the task is in")
            return
        try:
            from gridvlp.train.evaluation import load_finetuned
            from gridvlp.train.model.checkpoints import model_folder
            from gridvlp.train.tokenization import Encoder, load_tokenizer

            self.model, self.task, _ = load_finetuned(run, options["task"])
            self.encoder = Encoder(load_tokenizer(model_folder(run)))
        except UserError as error:
            notes.append(f"no heat maps: {error}")

    def __call__(self, example: dict[str, Any]) -> list[dict[str, Any]]:
        """For each image: its key, its photo and its heat map as data URIs (or None)."""
        keys = example["images"]
        pictures = [{"key": key, "photo": self._photo(key), "heat": None} for key in keys]
        if self.model is None or not all(key in self.store for key in keys):
            self.without_map += 1
            return pictures
        from gridvlp.train.relevance import explain
        from gridvlp.train.tasks.task import Example

        line = Example(str(example["id"]), example["sentence"], tuple(keys), (), "", None)
        found = explain(self.model, line, self.task, self.store, self.encoder)
        for picture, relevance_HW in zip(pictures, found.relevance_HW, strict=True):
            picture["heat"] = _heat(relevance_HW)
        return pictures

    def _photo(self, key: str) -> str | None:
        if self.store is None or key not in self.store:
            self.without_photo += 1
            return None
        from PIL import Image

        from gridvlp.report.pictures import read_photo

        pixels_HW3 = read_photo(self.store.record(key).get("source"))
        if pixels_HW3 is None:
            self.without_photo += 1
            return None
        image = Image.fromarray(pixels_HW3)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return _data_uri(image, "jpeg", quality=75)

    def finish(self) -> None:
        """Note what could not be shown."""
        if self.store is not None and self.without_photo:
            self.notes.append(f"{self.without_photo} photos are not where they were extracted from")
        if self.model is not None and self.without_map:
            self.notes.append(f"{self.without_map} examples have no map in the store: no heat map")


def _heat(relevance_HW: np.ndarray) -> str:
    """A PNG of one pixel a grid, from clear to a strong red; the browser enlarges it smoothly."""
    from PIL import Image

    rgba_HW4 = np.zeros((*relevance_HW.shape, 4), np.uint8)
    rgba_HW4[..., 0] = 255
    rgba_HW4[..., 1] = np.round(200 * (1 - relevance_HW)).astype(np.uint8)
    rgba_HW4[..., 3] = np.round(190 * np.sqrt(relevance_HW)).astype(np.uint8)
    return _data_uri(Image.fromarray(rgba_HW4), "png", optimize=True)


def _data_uri(image: Any, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:,.2f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "–"
    return str(value)
