"""Every recipe is read by the commands that it names, whole; its values reach their options."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from gridvlp.cli import cli
from gridvlp.extract.options import ExtractOptions, TrainExtractorOptions
from gridvlp.train.options import FINE_TUNING, FineTuningOptions, PreTrainingOptions

ROOT = Path(__file__).parents[1]
RECIPES = sorted([*(ROOT / "recipes").iterdir(), ROOT / "gridvlp" / "sample" / "gridvlp.yaml"])
COMMANDS = {
    "train-extractor": (
        ["--visual-genome", "vg"],
        "gridvlp.extract.detector_training.train_extractor",
    ),
    "extract": (["--images", "photos"], "gridvlp.extract.extraction.extract"),
    "pretrain": ([], "gridvlp.train.pretraining.pretrain"),
    **{f"finetune {t}": ([], "gridvlp.train.finetuning.finetune") for t in FINE_TUNING},
}


class Reached(Exception):
    """The command has made its options."""


def options_of(recipe: Path, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The options with which a command of a recipe would begin its first step."""
    made: list[Any] = []

    def reach(options: Any, *_: object) -> None:
        made.append(options)
        raise Reached

    arguments, function = COMMANDS[command]
    monkeypatch.chdir(folder)
    (folder / "store.zarr").mkdir(exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(function, reach)
        patch.setattr("gridvlp.cli._complete_store", lambda *_: None)
        result = CliRunner().invoke(cli, [*command.split(), *arguments, "--config", str(recipe)])
    assert isinstance(result.exception, Reached), (result.output, result.exception)
    return made[0]


def flat(options: Any) -> dict[str, Any]:
    values = dict(vars(options))
    return values | (vars(values["training"]) if "training" in values else {})


def test_recipes_are_files_of_their_own() -> None:
    assert len(RECIPES) >= 4
    assert not any(path.is_symlink() for path in RECIPES)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_each_value_of_a_recipe_reaches_its_command(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = yaml.safe_load(recipe.read_text())
    reached = 0
    for command in COMMANDS:
        section = {**sections.get(command.split()[0], {}), **sections.get(command, {})}
        if not section:
            continue
        values = flat(options_of(recipe, command, tmp_path, monkeypatch))
        for option, value in section.items():
            name = {"source": "sources", "train-split": "train_splits"}.get(option, option)
            found = values[name.replace("-", "_")]
            if isinstance(found, tuple):
                assert list(found) == (value if isinstance(value, list) else [value])
            else:
                wanted = {"all": None, "100": 100}[value] if option == "grids" else value
                assert found == wanted, (command, option)
            reached += 1
    assert reached >= 5


def test_the_papers_recipe_is_the_commands_own_defaults_but_for_the_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ROOT / "recipes" / "paper.yaml"
    detector = options_of(recipe, "train-extractor", tmp_path, monkeypatch)
    assert detector == TrainExtractorOptions(Path("vg"), backbone="x152")
    extraction = options_of(recipe, "extract", tmp_path, monkeypatch)
    assert extraction == ExtractOptions((Path("photos"),))
    pretraining = options_of(recipe, "pretrain", tmp_path, monkeypatch)
    plain = PreTrainingOptions((Path("store.zarr"),))
    assert pretraining.training == plain.training
    assert pretraining.sizes == plain.sizes
    assert (pretraining.grids, pretraining.sentences_per_read) == (100, 1)
    for task, training in FINE_TUNING.items():
        options = options_of(recipe, f"finetune {task}", tmp_path, monkeypatch)
        assert options.training == training
        assert isinstance(options, FineTuningOptions)
