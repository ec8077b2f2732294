"""How large everything is when a table is filled: the paper's scale, and one for two cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gridvlp.errors import UserError
from gridvlp.extract.options import ExtractOptions, TrainExtractorOptions
from gridvlp.train.options import PreTrainingOptions, TrainingSettings


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
SAMPLE_SCALE = Path(__file__).with_name("sample.yaml")
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
                if option_field(option) in chosen:
                    settings.setdefault(title, {})[option] = value
                else:
                    say(f"Left out: {title}'s {option}, which a table decides itself.")
        return replace(self, settings=settings)


def option_field(option: str) -> str:
    """The name of an option's field: "train-split" is ``train_splits``."""
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

    numbers = yaml.safe_load(SAMPLE_SCALE.read_text(encoding="utf-8"))
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    cores = len(os.sched_getaffinity(0))
    return Scale(
        settings | numbers.pop("settings"),
        **{**numbers, "seeds": tuple(numbers["seeds"])},
        # Models this small gain little from a second thread; more would take much memory.
        processes=1 if torch.cuda.is_available() else min(cores, 4),
    )
