"""Runs what rows of the tables need, in folders named for what they hold.

Rows and tables share encoders, stores and runs; what is finished is not run again, and what was
interrupted goes on. The engine calls what the commands call.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from gridvlp.atomic import write_json
from gridvlp.errors import UserError
from gridvlp.extract.options import ExtractOptions, TrainExtractorOptions
from gridvlp.reproduce.scales import CHOSEN, Scale, option_field
from gridvlp.reproduce.tables import Row
from gridvlp.run.environment import environment, short_commit
from gridvlp.store import FeatureStore
from gridvlp.train.options import (
    FINE_TUNING,
    FineTuningOptions,
    PreTrainingOptions,
    TrainingSettings,
)
from gridvlp.train.tasks import get_task

PHOTO_FOLDERS = ("coco", "vg/VG_100K", "vg/VG_100K_2", "gqa/images", "nlvr2/images")


@dataclass(frozen=True)
class Score:
    """What one figure of a table is.

    Attributes:
        accuracy: percent; None where the split has no labels.
        examples: lines that it is of.
        left_out: lines that have no photo in the store or no text.
        commits: by which it was trained.
    """

    accuracy: float | None
    examples: int
    left_out: int
    commits: tuple[str, ...]


class Engine:
    """Runs what rows need below one folder.

    Args:
        work: where encoders, stores and runs go.
        data: official data; None makes the sample world in ``work``.
        scale: how large.
        weights: checkpoints by backbone ("x152", "x152-regions"), in place of training.
        say: called with lines for the person at the keyboard.

    Raises:
        UserError: this is one of torchrun's processes, or the full scale has no data.
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
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each would wait for what another holds
            raise UserError(
                "reproduce takes no part in torchrun: start it by itself. docs/reproduce.md has "
                "the commands that train on several GPUs; it finds what they have done."
            )
        if data is None and not scale.images:
            raise UserError("--scale full needs --data: docs/reproduce.md says what goes there.")
        self.data = data or work / "world" / "data"
        self._done: set[Path] = set()  # in this process: their options were checked
        if data is None:
            from gridvlp.sample import write_sample

            write_sample(work / "world", scale.images)
        elif absent := [name for name in PHOTO_FOLDERS if not (data / name).is_dir()]:
            say(f"Not in {data}: photos of {', '.join(absent)}. Lines on them will be left out.")

    def score(self, row: Row, column: str, seed: int) -> Score:
        """How well a row does in a column: trained and evaluated, unless that is done."""
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
            if not self._evaluated(path, store, task, split):
                evaluate(task, split, run=run, withheld=True, say=self.say)

        self._once(path.parent, score)
        metrics = json.loads(path.read_text())
        figures = metrics["withheld" if row.withheld else "figures"]
        trained = [run] if row.fresh else [run, pretrained]
        records = [json.loads((folder / "run.json").read_text()) for folder in trained]
        return Score(
            None if figures is None else float(figures["accuracy"]),
            metrics["examples"],
            metrics["left out"],
            tuple(short_commit(record["environment"]) or "unknown" for record in records),
        )

    def _evaluated(self, path: Path, store: Path, task: str, split: str) -> bool:
        """Whether metrics are there, with all that a table needs, of the present data."""
        if not path.is_file():
            return False
        metrics = json.loads(path.read_text())
        return (
            (metrics["figures"] is None or metrics["withheld"] is not None)
            and "left out" in metrics
            and metrics["store"] == FeatureStore(store).fingerprint
            and all(
                file.stat().st_mtime <= path.stat().st_mtime
                for file in get_task(task).files(self.data, split)
            )
        )

    def chooses_epochs_by(self, column: str) -> bool:
        """Whether a run's best epoch is chosen on the split of a column."""
        name, split = column.split()
        task = get_task(name)
        section = {**self.section("finetune"), **self.section(f"finetune {name}")}
        chosen = section.get("valid_split") or task.valid_split
        return task.aliases.get(chosen, chosen) == task.aliases.get(split, split)

    def missing(self, row: Row, column: str) -> list[Path]:
        """The files without which a score cannot be had, as far as that is known beforehand."""
        from gridvlp.extract.published import FILES as PUBLISHED
        from gridvlp.extract.visual_genome import FILES

        name, split = column.split()
        task = get_task(name)
        absent = task.missing(self.data, split)
        trained = self.section(f"finetune {name}").get("train_splits") or task.train_splits
        untrained = [task.missing(self.data, one) for one in trained]
        if all(untrained):
            absent += untrained[0]
        weights = self.weights.get(self.kind(row))
        if weights is None:
            absent += [f for file in FILES if not (f := self.data / "vg" / file).is_file()]
        elif weights != "random" and weights not in PUBLISHED and not Path(weights).exists():
            absent.append(Path(weights))
        return absent

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
        section = self.section("extract")
        if row.regions is not None:
            section |= self.section("extract regions")
        options = ExtractOptions(
            images,
            path,
            weights=encoder,
            backbone=row.backbone,
            width=self.scale.width,
            size=self.size(row),
            regions=None if row.regions is None else self.grids(row.regions),
            **section,
        )

        def run() -> None:
            for line in extract(options, self.say).lines():
                self.say(line)

        self._once(path, run)
        return path

    def encoder(self, row: Row) -> str:
        """Weights of a row's encoder: those given, or trained unless that is done."""
        from gridvlp.extract.detector_training import train_extractor

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

    def milliseconds(self, row: Row, fusion: bool) -> dict[str, Any]:
        """Time of a full-width encoder on one photo; ``fusion`` adds BERT-base on its grids.

        Returns:
            "ms", with its date, commit and machine. A time that was taken on another kind of
            machine, or with other versions of the libraries, is taken anew.
        """
        name = f"{self.kind(row)} {row.size}{' and fusion' if fusion else ''}"
        path = self.work / "times" / f"{name.replace(' ', '-')}.json"
        now = environment()
        machine = {key: now[key] for key in ("devices", "processor", "threads", "versions")}

        def take() -> None:
            if path.is_file() and json.loads(path.read_text())["machine"] == machine:
                return
            from gridvlp.reproduce.timing import time_photo

            self.say(f"Timing {name}.")
            ms = 1000 * time_photo(row.backbone, row.size, row.regions, fusion)
            about = {"date": date.today().isoformat(), "commit": short_commit(now)}
            write_json(path, {"ms": ms, **about, "machine": machine})

        self._once(path, take)
        taken: dict[str, Any] = json.loads(path.read_text())
        return taken

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
            if (f := option_field(option)) in CHOSEN[name.split()[0]]
        }


def _apart(section: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of a section that are TrainingSettings, and the others."""
    known = {f.name for f in fields(TrainingSettings)}
    return (
        {k: v for k, v in section.items() if k in known},
        {k: v for k, v in section.items() if k not in known},
    )
