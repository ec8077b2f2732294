"""The command line: a command reads its options, calls one function and prints what came back.

Nothing heavy is imported before a command runs, and a command imports only its own stage.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gridvlp import __version__
from gridvlp.config import read_settings
from gridvlp.errors import UserError
from gridvlp.extract.options import (
    BACKBONES,
    DTYPES,
    EXTRACT_PRECISIONS,
    OPTIMIZERS,
    PRECISIONS,
    ExtractOptions,
    TrainExtractorOptions,
)
from gridvlp.run.progress import FIRST_PROCESS
from gridvlp.run.signals import end_process, exit_code, termination_interrupts
from gridvlp.run.skip_list import SKIP_LIMIT
from gridvlp.train.options import (
    BERT_BASE,
    FINE_TUNING,
    SOURCES,
    FineTuningOptions,
    PreTrainingOptions,
)

CONFIG = Path("gridvlp.yaml")
STORE = Path("store.zarr")
TASKS = tuple(FINE_TUNING)
TASK_FILE = re.compile(r"finetune .+\.py")  # the section of a task of one's own
PRETRAIN = PreTrainingOptions(features=(STORE,))
FINETUNE = FineTuningOptions("", (STORE,), FINE_TUNING["vqa"])
FOLDER = click.Path(path_type=Path)


class StorePlace(click.ParamType[Any]):
    """A store: a folder, or a URL, whose slashes a path would fold."""

    name = "store"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | Path:
        """A Path, or the text of a URL."""
        from gridvlp.store.files import location

        return location(value)


STORE_PLACE = StorePlace()
DATA = Path("data")
TRAIN_EXTRACTOR = TrainExtractorOptions(Path())
EXTRACT = ExtractOptions((Path(),))


class Command(click.Command):
    """A command whose defaults may come from a YAML file.

    The file has a section for each command, and, where the settings differ by task, one for the
    command with its task: ``finetune: {...}``, ``finetune nlvr2: {...}``. Without --config,
    ``gridvlp.yaml`` in the working folder is read if it is there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {"show_default": True, "max_content_width": 100}
        self.params.append(
            click.Option(
                ["--config"],
                type=FOLDER,
                expose_value=False,
                show_default=f"{CONFIG}, if there",
                help="YAML file of option values; options given on the command line win.",
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the file's values as defaults, then the command line."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        path = Path(given["config"]) if given.get("config") else CONFIG
        if given.get("config") or path.exists():
            sections = self._read_config(path, ctx)
            names = {o.opts[0].lstrip("-"): str(o.name) for o in self.params}
            own = (str(self.name), f"{self.name} {given.get('task')}")
            ctx.default_map = {
                names[key]: value for title in own for key, value in sections.get(title, {}).items()
            }
            if given.get("config"):
                ctx.obj = sections
        return super().parse_args(ctx, args)

    def _read_config(self, path: Path, ctx: click.Context) -> dict[str, dict[str, Any]]:
        """The sections of a file by title, their values checked by their command's options."""
        known = {*cli.commands, *(f"finetune {name}" for name in TASKS)}
        read: dict[str, dict[str, Any]] = {}
        for title, section in read_settings(path).items():
            if title not in known and not TASK_FILE.fullmatch(title):
                raise UserError(f"{path}: {title!r} is no command.{_near(title, known)}")
            command = cli.commands[title.split()[0]]
            options = {o.opts[0].lstrip("-"): o for o in command.params if o.name != "config"}
            read[title] = {}
            for key, setting in section.items():
                where = f"{path}, line {setting.line}"
                if key not in options:
                    raise UserError(
                        f"{where}: {command.name} has no option {key!r}.{_near(key, options)}"
                    )
                read[title][key] = _converted(f"{where}: {title}", options[key], setting.value, ctx)
        _note(f"Defaults from {path}.")
        return read

    def invoke(self, ctx: click.Context) -> Any:
        """Print the values in force, then run."""
        chosen = []
        for parameter in self.params:
            name, value = parameter.name or "", ctx.params.get(parameter.name or "")
            if name in ctx.params:
                default = getattr(parameter, "show_default", None)
                if value in (None, ()) and default:
                    shown = f"({str(default).partition(':')[0]})"
                else:
                    shown = _shown(value)
                chosen.append(f"{_option(name)}={shown}")
        _note(f"{self.name}: {' '.join(chosen)}")
        return super().invoke(ctx)


def _converted(
    where: str, option: click.Parameter, value: str | list[str], ctx: click.Context
) -> Any:
    """What an option makes of a settings file's value, as on the command line."""
    several = option.multiple or option.nargs == -1
    if isinstance(value, list) and not several:
        raise UserError(f"{where}: {option.opts[0].lstrip('-')} takes one value, not a list.")
    if isinstance(value, str) and several:
        value = [value]
    try:
        return option.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise UserError(f"{where}: {error.format_message()[:400]}") from error


class Group(click.Group):
    """Commands in the order of the pipeline; a misspelt one gets a suggestion."""

    command_class = Command

    def list_commands(self, context: click.Context) -> list[str]:
        """The commands in the order in which they are defined here."""
        return list(self.commands)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise UserError(
                f"There is no command {args[0]!r}.{_near(args[0], self.commands)}"
                " See `gridvlp --help`."
            )
        return super().resolve_command(context, args)


@click.group(cls=Group)
@click.version_option(__version__)
def cli() -> None:
    """Vision-language pre-training on frozen grid features: extract once, train on maps."""


def main() -> None:
    """Entry point: errors that a person can mend are one sentence and exit code 2."""
    if not FIRST_PROCESS:  # of a distributed run; it keeps its errors, which may be its own
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"
    try:
        with termination_interrupts():
            cli.main(standalone_mode=False)
        if _distributed():
            end_process()
    except UserError as error:
        whose = "" if FIRST_PROCESS else f" (process {os.environ['RANK']})"
        click.echo(f"Error{whose}: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as error:
        click.echo("Interrupted. The same command goes on where this one stopped.", err=True)
        if _distributed():
            end_process(exit_code(error))
        sys.exit(exit_code(error))
    except ModuleNotFoundError as error:
        stage = {"detectron2": "extract", "torchvision": "extract", "PIL": "extract"}
        extra = stage.get((error.name or "").split(".")[0], "train")
        click.echo(
            f"Error: {error.name} is not installed, which this command needs: "
            f"`make install` in the checkout, or pip install '.[{extra}]' there"
            + (" and Detectron2 as in detectron2.txt." if extra == "extract" else "."),
            err=True,
        )
        sys.exit(2)


def _distributed() -> bool:
    torch = sys.modules.get("torch")  # of a command that needed it
    return torch is not None and torch.distributed.is_initialized()


# --- the sample world ------------------------------------------------------------------------


@cli.command("sample-data")
@click.argument("folder", type=FOLDER)
@click.option("--images", default=1600, help="Training photos; all else scales with it.")
@click.option("--seed", default=0, help="Decides the world.")
def sample_data(folder: Path, images: int, seed: int) -> None:
    """Write a generated world of scenes to FOLDER/data, in the official formats."""
    from gridvlp.sample import SETTINGS, write_sample

    summary = write_sample(folder, images, seed)
    if not (folder / CONFIG).exists():
        (folder / CONFIG).write_bytes(SETTINGS.read_bytes())
    for name, count in summary.counts.items():
        click.echo(f"  {name:24} {count:>9,}")
    state = "written to" if summary.written else "there already in"
    click.echo(f"Sample world (generated) {state} {folder / 'data'}, settings for it in {CONFIG}.")
    click.echo(f"Next, in {folder}: gridvlp train-extractor --visual-genome data/vg")


# --- extraction ------------------------------------------------------------------------------


@cli.command("train-extractor")
@click.option(
    "--visual-genome",
    type=FOLDER,
    show_default="none",
    help="Train on the official release in this folder (docs/data.md); or else:",
)
@click.option(
    "--annotations",
    type=FOLDER,
    multiple=True,
    show_default="none",
    help="Train on a COCO-style .json, with or without attribute_ids; give several times to join.",
)
@click.option(
    "--valid-annotations",
    type=FOLDER,
    show_default="a share of the photos, --valid",
    help="Measure on the photos of this .json.",
)
@click.option(
    "--photos",
    type=FOLDER,
    multiple=True,
    show_default="beside annotations/",
    help="Folder of the photos of --annotations, searched through; give several times.",
)
@click.option("--run", type=FOLDER, default=TRAIN_EXTRACTOR.run, help="Folder of this run.")
@click.option(
    "--backbone",
    type=click.Choice(BACKBONES),
    default=TRAIN_EXTRACTOR.backbone,
    help="ResNeXt-50, -101, -152, or ResNet-50.",
)
@click.option("--width", default=TRAIN_EXTRACTOR.width, help="Share of the published widths.")
@click.option(
    "--vocab",
    type=FOLDER,
    show_default="the release's most frequent names",
    help="Folder of visual_genome_objects.txt and visual_genome_attributes.txt.",
)
@click.option(
    "--objects", default=TRAIN_EXTRACTOR.objects, help="Names of the release without --vocab."
)
@click.option(
    "--attributes", default=TRAIN_EXTRACTOR.attributes, help="Its attributes without --vocab."
)
@click.option(
    "--weights",
    type=FOLDER,
    show_default="from scratch",
    help="Start the backbone from this: an ImageNet checkpoint (Detectron2's .pkl, torchvision's "
    "state dict), a detector's, a run, or r50, x101, x152 for grid-feats-vqa's.",
)
@click.option("--size", default=TRAIN_EXTRACTOR.size, help="Shorter x longest side in pixels.")
@click.option("--iterations", default=TRAIN_EXTRACTOR.iterations, help="Optimiser steps.")
@click.option("--batch-size", default=TRAIN_EXTRACTOR.batch_size, help="Photos per step.")
@click.option(
    "--optimizer",
    type=click.Choice(OPTIMIZERS),
    default=TRAIN_EXTRACTOR.optimizer,
    help="sgd as published; adamw learns faster from scratch.",
)
@click.option(
    "--learning-rate", default=TRAIN_EXTRACTOR.learning_rate, help="Peak; a tenth at 2/3 and 8/9."
)
@click.option("--warmup", default=TRAIN_EXTRACTOR.warmup, help="Steps to warm up.")
@click.option("--weight-decay", default=TRAIN_EXTRACTOR.weight_decay, help="Weight decay.")
@click.option(
    "--res5-dilation", default=TRAIN_EXTRACTOR.res5_dilation, help="Dilation of C5 in training."
)
@click.option(
    "--regions",
    is_flag=True,
    help="Train a C4 detector, for `extract --regions`: its box head is res5 on 14 x 14.",
)
@click.option(
    "--rpn-boundary",
    default=TRAIN_EXTRACTOR.rpn_boundary,
    help="Pixels that a trained anchor may reach beyond the photo; -1 for any.",
)
@click.option(
    "--rpn-batch", default=TRAIN_EXTRACTOR.rpn_batch, help="Anchors per photo in the loss."
)
@click.option(
    "--roi-batch", default=TRAIN_EXTRACTOR.roi_batch, help="Boxes per photo in the losses."
)
@click.option("--proposals", default=TRAIN_EXTRACTOR.proposals, help="Proposals kept per photo.")
@click.option(
    "--attribute-weight", default=TRAIN_EXTRACTOR.attribute_weight, help="Of the attribute loss."
)
@click.option("--valid", default=TRAIN_EXTRACTOR.valid, help="Share of photos held out.")
@click.option("--eval-steps", default=TRAIN_EXTRACTOR.eval_steps, help="Steps between checks.")
@click.option("--save-steps", default=TRAIN_EXTRACTOR.save_steps, help="Between checkpoints.")
@click.option("--seed", default=TRAIN_EXTRACTOR.seed, help="Decides every random choice.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=TRAIN_EXTRACTOR.precision,
    help="auto: bfloat16 where the hardware multiplies in it.",
)
@click.option("--threads", default=TRAIN_EXTRACTOR.threads, help="Threads that read ahead.")
@click.option(
    "--num-gpus",
    default=TRAIN_EXTRACTOR.num_gpus,
    help="Processes on this machine, one for each GPU; without GPUs they share the cores.",
)
@click.option(
    "--num-machines",
    default=TRAIN_EXTRACTOR.num_machines,
    help="Machines; give the command on each of them.",
)
@click.option(
    "--machine-rank", default=TRAIN_EXTRACTOR.machine_rank, help="Number of this machine, from 0."
)
@click.option(
    "--dist-url",
    default=TRAIN_EXTRACTOR.dist_url,
    help="Where the machines meet: tcp://HOST:PORT of machine 0; auto for one machine.",
)
def train_extractor(**values: Any) -> None:
    """Pre-train the encoder as a detector of objects and attributes (Detectron2).

    Either on Visual Genome's official release, --visual-genome, or on COCO-style annotations,
    --annotations, such as COCO's instances or the visual_genome_train.json that grid-feats-vqa
    published. The defaults are grid-feats-vqa's, from scratch: start from an ImageNet checkpoint
    with --weights as they did. Batch sizes are of all GPUs together.
    """
    options = TrainExtractorOptions(**values)
    from gridvlp.extract.detector_training import train_extractor as run

    _print_figures(run(options, click.echo))
    if options.machine_rank == 0:
        _report(options.run)
        weights = "" if options.run == TRAIN_EXTRACTOR.run else f" --weights {options.run}"
        click.echo(
            f"Encoder: {options.run / 'encoder'}. Next: gridvlp extract --images coco/{weights}"
        )


@cli.command()
@click.option(
    "--images",
    type=FOLDER,
    multiple=True,
    required=True,
    help="Folder of photos (searched through), a photo, a .txt list or a COCO .json; give several "
    "times. A path that is not there is looked for in data/.",
)
@click.option("--out", type=FOLDER, default=EXTRACT.out, help="Store to make or to add to.")
@click.option(
    "--weights",
    default=EXTRACT.weights,
    help="Run of train-extractor; r50, x101 or x152: grid-feats-vqa's published weights, fetched "
    "once; a checkpoint file (grid-feats-vqa, Detectron2, torchvision); 'random' for a trial.",
)
@click.option(
    "--backbone", type=click.Choice(BACKBONES), default=EXTRACT.backbone, help="Of random weights."
)
@click.option("--width", default=EXTRACT.width, help="Of random weights.")
@click.option(
    "--size", show_default="the encoder's own", help="Shorter x longest side, as 600x1000."
)
@click.option(
    "--precision",
    type=click.Choice(EXTRACT_PRECISIONS),
    default=EXTRACT.precision,
    help="auto: bfloat16 where the hardware multiplies in it, float16 on older GPUs.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=EXTRACT.dtype,
    help="Of the store; int8 is a byte with a scale for each channel of a map.",
)
@click.option("--batch-size", default=EXTRACT.batch_size, help="Photos of one size at a time.")
@click.option("--workers", default=EXTRACT.workers, help="Threads that decode.")
@click.option(
    "--regions",
    type=int,
    show_default="grid maps",
    help="Most regions of a photo, by a C4 detector, in place of grid maps; 100 as published.",
)
@click.option(
    "--proposals",
    default=EXTRACT.proposals,
    help="Boxes of which --regions are chosen; fewer take less time and leave fewer regions.",
)
@click.option(
    "--skip-limit",
    default=EXTRACT.skip_limit,
    help="Stop when so many photos in a row, or most of at least twice as many, are of no use; "
    "0: never.",
)
@click.option(
    "--num-shards",
    type=int,
    show_default="torchrun's WORLD_SIZE, or 1",
    help="Processes or machines that fill the store together.",
)
@click.option(
    "--shard", type=int, show_default="torchrun's RANK, or 0", help="Which of them this one is."
)
def extract(images: tuple[Path, ...], **values: Any) -> None:
    """Write the grid maps (or regions) of photos to a feature store."""
    if values["num_shards"] is None and values["shard"] is None and "WORLD_SIZE" in os.environ:
        try:
            parts, part = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
        except (KeyError, ValueError) as error:
            raise UserError(
                "The environment has WORLD_SIZE, but not two numbers in WORLD_SIZE and RANK as "
                "torchrun sets them: unset it, or give --num-shards and --shard."
            ) from error
        values |= {"num_shards": parts, "shard": part}
    options = ExtractOptions(images=tuple(map(_photos, images)), **values)
    from gridvlp.extract.extraction import extract as run

    for line in run(options, click.echo).lines():
        click.echo(line)
    click.echo(f"Next: gridvlp pretrain --features {options.out}")


def _photos(path: Path) -> Path:
    if not path.exists() and not path.is_absolute() and (DATA / path).exists():
        click.echo(f"{path}: taken from {DATA / path}.", err=True)
        return DATA / path
    return path


# --- the store -------------------------------------------------------------------------------

store_argument = click.argument("store", type=STORE_PLACE, default=STORE)


@cli.command()
@store_argument
@click.option("--threads", type=click.IntRange(1), default=4, help="Maps that are read at once.")
def verify(store: str | Path, threads: int) -> None:
    """Read every map of STORE and name those that are damaged."""
    from gridvlp.run.progress import track
    from gridvlp.store import FeatureStore
    from gridvlp.store.verification import verify as check

    maps = FeatureStore(store)
    with track("verify", len(maps), "maps") as bar:
        damaged = check(maps, threads, bar.advance)
    for note in maps.notes:
        click.echo(f"Note: {note}")
    for key, wrong in damaged.items():
        click.echo(f"{key}: {wrong}")
    if damaged:
        lost = sum(name in maps for name in damaged)
        raise UserError(
            f"{lost:,} of {len(maps):,} maps in {store} are damaged"
            + (
                f", and {len(damaged) - lost:,} files of the index and the metadata."
                if lost < len(damaged)
                else "."
            )
        )
    click.echo(f"All {len(maps):,} maps in {store} are whole.")


@cli.command()
@store_argument
@click.option(
    "--images", type=FOLDER, multiple=True, required=True, help="Folder of the store's photos."
)
@click.option("--weights", default=EXTRACT.weights, help="The encoder that filled the store.")
@click.option(
    "--maps", type=click.IntRange(1), default=8, help="Maps to make again, drawn at random."
)
@click.option("--seed", default=0, help="Of the draw.")
def audit(store: str | Path, images: tuple[Path, ...], **values: Any) -> None:
    """Extract some maps of STORE again and report how far each is from the stored one."""
    from gridvlp.extract.audit import audit as run

    outcome = run(store, tuple(map(_photos, images)), say=click.echo, **values)
    for line in outcome.lines():
        click.echo(line)
    if outcome.wrong or not outcome.errors:
        raise UserError(
            f"{len(outcome.wrong):,} of {len(outcome.errors):,} maps of {store} are not those of "
            "their photos: extract again into another store."
            if outcome.errors
            else f"No map of {store} could be made again."
        )
    click.echo(f"All {len(outcome.errors):,} maps are those of their photos.")


@cli.command()
@store_argument
@click.option("--image", show_default="none", help="Key of a map to draw over its photo.")
@click.option(
    "--picture", type=FOLDER, show_default="KEY.png", help="Where the picture of --image goes."
)
def inspect(store: str | Path, image: str | None, picture: Path | None) -> None:
    """Say what is inside STORE, or draw one map: its energy, or its boxes."""
    from gridvlp.store import FeatureStore
    from gridvlp.store.summary import summarize

    maps = FeatureStore(store)
    if image is not None:
        from gridvlp.report.pictures import draw_energy, draw_regions

        path = picture or Path(f"{Path(image).name}.png")
        with_photo = (draw_energy if maps.kind == "grids" else draw_regions)(maps, image, path)
        click.echo(f"{path} written" + ("." if with_photo else "; the photo itself is gone."))
        return
    for line in summarize(maps).lines():
        click.echo(line)


@cli.command()
@click.argument("source", type=FOLDER)
@click.option("--out", type=FOLDER, default=STORE, help="Store to make or to add to.")
@click.option("--encoder", required=True, help="What made the features, as 'grid-feats-vqa X-101'.")
@click.option("--channels-last", is_flag=True, help="The files hold H x W x C, not C x H x W.")
@click.option(
    "--max-grids",
    type=click.IntRange(1),
    default=608,
    help="The most grids H x W of a map, or regions.",
)
@click.option(
    "--coco-ids", is_flag=True, help="Ids in .tsv files are COCO's numbers: 42 is 000000000042."
)
@click.option(
    "--skip-limit",
    type=click.IntRange(0),
    default=SKIP_LIMIT,
    help="Stop when so many in a row, or most of at least twice as many, are of no use; 0: never.",
)
def convert(source: Path, out: Path, encoder: str, **options: Any) -> None:
    """Write the features in SOURCE to a store.

    SOURCE is a folder of .npy, .npz or grid-feats-vqa's .pth files, or a .tsv file of regions as
    LXMERT and bottom-up attention ship them.
    """
    from gridvlp.extract.convert import convert as run

    report = run(source, out, encoder, **options)
    for line in report.lines():
        click.echo(line)


@cli.command()
@store_argument
@click.option(
    "--to", "folder", type=FOLDER, required=True, help="Folder for KEY.npy or KEY.npz files."
)
def export(store: str | Path, folder: Path) -> None:
    """Write every map of STORE as an .npy file, or its regions as an .npz file."""
    from gridvlp.extract.export import export as run
    from gridvlp.store import FeatureStore

    run(FeatureStore(store), folder, click.echo)


# --- training --------------------------------------------------------------------------------

features_option = click.option(
    "--features",
    type=STORE_PLACE,
    multiple=True,
    default=[STORE],
    help="Feature store, a folder or a URL (s3://, gs://, https://); several are read as one.",
)
other_recipe_option = click.option(
    "--other-recipe",
    is_flag=True,
    help="Read maps that were made otherwise than those of the model's training (size, precision, "
    "dtype, weights), and say how.",
)
data_option = click.option(
    "--data", type=FOLDER, default=Path("data"), help="Folder of annotations."
)


def training_options(per_task: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of TrainingSettings; with ``per_task`` all of them default to the task's."""

    def option(name: str, text: str, **more: Any) -> Callable[..., Any]:
        default = getattr(PRETRAIN.training, name)
        if not more:
            more = {"type": type(default)}
        if per_task:  # which may be a file with settings of its own
            values = {task: getattr(s, name) for task, s in FINE_TUNING.items()}
            told = ", ".join(f"{task} {value}" for task, value in values.items())
            if len(set(values.values())) == 1:
                told = str(values["vqa"])
            more |= {"default": None, "show_default": f"the task's: {told}"}
        else:
            more["default"] = default
        return click.option("--" + name.replace("_", "-"), help=text, **more)

    precisions = click.Choice(EXTRACT_PRECISIONS)
    options = [
        option("epochs", "Passes over the data."),
        option("batch_size", "Sentences per optimiser step."),
        option("learning_rate", "Peak learning rate."),
        option("warmup", "Share of steps to warm up."),
        option("accumulate", "Micro-batches per step: less memory, the same result."),
        option(
            "gradient_checkpointing",
            "Compute activations twice: less memory, more time, the same result.",
            is_flag=True,
        ),
        option("clip", "Largest norm of the gradient; 0 for any."),
        option(
            "ema", "Decay (0.9999) of an average of the weights that becomes the model; 0: none."
        ),
        option("layer_lr_decay", "Learning rate of each layer over that of the layer above it."),
        option("seed", "Decides every random choice."),
        option(
            "precision",
            "auto: bfloat16 where the hardware multiplies in it, float16 on older GPUs.",
            type=precisions,
        ),
        option("threads", "Threads that read ahead."),
        option("save_steps", "Steps between checkpoints."),
    ]
    if per_task:
        text = "Learning rate of the answer head over the encoder's."
        options.insert(0, option("head_lr_multiplier", text))

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return add


TRAINING = (
    "epochs",
    "batch_size",
    "learning_rate",
    "warmup",
    "accumulate",
    "gradient_checkpointing",
    "clip",
    "ema",
    "layer_lr_decay",
    "seed",
    "precision",
    "threads",
    "save_steps",
)


def size_option(name: str, kind: type, text: str) -> Callable[..., Any]:
    """An option that a checkpoint decides."""
    default = BERT_BASE[name.lstrip("-").replace("-", "_")]
    shown = f"{default}; with --init the checkpoint's"
    return click.option(name, type=kind, show_default=shown, help=text)


@cli.command()
@features_option
@data_option
@click.option("--run", type=FOLDER, default=PRETRAIN.run, help="Folder of this run.")
@click.option(
    "--source",
    "sources",
    type=click.Choice(SOURCES),
    multiple=True,
    default=SOURCES,
    help="Source of sentences; give several times.",
)
@click.option(
    "--init",
    default=PRETRAIN.init,
    show_default="from scratch",
    help="BERT or gridvlp checkpoint to start from (folder or hub name).",
)
@click.option(
    "--vocabulary",
    type=FOLDER,
    show_default="DATA/vocab/bert-base-uncased-vocab.txt if there, else learned from the corpus",
    help="vocab.txt of any BERT.",
)
@click.option(
    "--answers",
    type=FOLDER,
    show_default="built as LXMERT's from the corpus",
    help="JSON list of answers for image QA.",
)
@click.option("--grids", default=str(PRETRAIN.grids), help="Random grids per image, or 'all'.")
@click.option(
    "--sentences-per-read",
    default=PRETRAIN.sentences_per_read,
    help="Sentences of an image that share one read of its map, and so stay together in the order: "
    "more of them read faster. 1 shuffles every pair alone, as published.",
)
@size_option("--hidden-size", int, "Width of the encoder.")
@size_option("--layers", int, "Layers of the encoder.")
@size_option("--heads", int, "Attention heads.")
@size_option("--dropout", float, "Dropout everywhere; with --init in place of the checkpoint's.")
@size_option(
    "--initializer-range",
    float,
    "Spread of fresh weights; BERT's suits 768, a narrow model wants 1/sqrt(width).",
)
@click.option(
    "--allow-leakage",
    is_flag=True,
    help="Train on images of the tasks' validation and test splits, too.",
)
@other_recipe_option
@training_options(per_task=False)
def pretrain(features: tuple[str | Path, ...], init: str | None, grids: str, **values: Any) -> None:
    """Pre-train the fusion model: masked words, image-text matching, image QA."""
    if grids != "all" and not re.fullmatch("[0-9]{1,9}", grids):
        raise UserError(f"--grids {grids}: give a number, or 'all'.")
    if init is not None:
        for name in BERT_BASE.keys() - {"dropout"}:
            if values[name] is not None and _by_default(name):
                _note(f"{_option(name)} {values[name]} of the settings file: --init decides.")
                values[name] = None
    training = {name: values.pop(name) for name in TRAINING}
    _need_stores(features)
    values["sources"] = tuple(values["sources"])
    options = replace(
        PRETRAIN,
        features=tuple(features),
        init=init,
        grids=None if grids == "all" else int(grids),
        training=replace(PRETRAIN.training, **training),
        **values,
    )
    from gridvlp.train.pretraining import pretrain as run

    _print_figures(run(options, click.echo))
    _report(options.run)
    click.echo(f"Model: {options.run / 'model'}. Next: gridvlp finetune {'|'.join(TASKS)}")


@cli.command()
@click.argument("task")
@features_option
@data_option
@click.option("--run", type=FOLDER, show_default="runs/finetune-TASK", help="Folder of this run.")
@click.option(
    "--init", type=FOLDER, default=FINETUNE.init, help="Pre-trained run or model to start from."
)
@click.option(
    "--fresh", is_flag=True, help="Take only sizes and vocabulary of --init, weights from scratch."
)
@click.option(
    "--answers",
    type=FOLDER,
    show_default="built from the training files",
    help="JSON list of the task's answers.",
)
@click.option(
    "--train-split",
    "train_splits",
    multiple=True,
    show_default="the task's, see docs/data.md",
    help="Split to train on; give several times.",
)
@click.option(
    "--valid-split",
    show_default="the task's, see docs/data.md",
    help="Split by which the best epoch is kept.",
)
@click.option(
    "--head",
    type=click.Choice(["pair", "triplet", "pair-attention"]),
    show_default="nlvr2 pair",
    help="How nlvr2 sees two photos: apart, in one sequence, or apart with attention between.",
)
@click.option(
    "--loss",
    type=click.Choice(["bce", "ce"]),
    show_default="gqa bce",
    help="Of gqa: binary cross-entropy or cross-entropy.",
)
@other_recipe_option
@training_options(per_task=True)
def finetune(task: str, features: tuple[str | Path, ...], **values: Any) -> None:
    """Fine-tune on TASK: vqa, gqa, nlvr2, or a file of Python with a task of your own."""
    from gridvlp.train.tasks import get_task

    own = get_task(task)
    names = (*TRAINING, "head_lr_multiplier")
    given = {name: values.pop(name) for name in names}
    training = replace(own.training, **{k: v for k, v in given.items() if v is not None})
    own_values = [f"{_option(k)}={getattr(training, k)}" for k in names if given[k] is None]
    if own_values:
        _note(f"Of the task: {' '.join(own_values)}")
    values["train_splits"] = tuple(values["train_splits"]) or None
    options = FineTuningOptions(task, tuple(features), training, **values)
    _need_stores(features)
    from gridvlp.train.finetuning import finetune as run

    if _by_default("features") and options.features == (STORE,):
        splits = (
            *(options.train_splits or own.train_splits),
            options.valid_split or own.valid_split,
        )
        _complete_store(task, splits, options.data)
    _print_figures(run(options, click.echo))
    folder = options.run or Path("runs") / f"finetune-{own.name}"
    _report(folder)
    click.echo(f"Model: {folder / 'model'}. Next: gridvlp evaluate {task}")


@cli.command()
@click.argument("task")
@click.option("--split", show_default="the task's test split", help="Split to evaluate on.")
@click.option(
    "--run", type=FOLDER, show_default="runs/finetune-TASK", help="Fine-tuning run to evaluate."
)
@click.option(
    "--features",
    type=STORE_PLACE,
    multiple=True,
    show_default="those of the run",
    help="Feature store, a folder or a URL (s3://, gs://, https://); several are read as one.",
)
@click.option("--data", type=FOLDER, show_default="that of the run", help="Folder of annotations.")
@click.option("--batch-size", default=64, help="Examples at a time.")
@click.option(
    "--precision",
    type=click.Choice(EXTRACT_PRECISIONS),
    default="auto",
    help="auto: bfloat16 where the hardware multiplies in it, float16 on older GPUs.",
)
@other_recipe_option
@click.option("--withheld", is_flag=True, help="Score with the image withheld (grids zeroed), too.")
def evaluate(task: str, split: str | None, run: Path | None, **values: Any) -> None:
    """Score a fine-tuned model on a split and write its predictions file."""
    from gridvlp.train.tasks import get_task

    own = get_task(task)
    values["features"] = tuple(values["features"]) or None
    from gridvlp.train.evaluation import evaluate as score

    split = split or own.test_split
    run = run or Path("runs") / f"finetune-{own.name}"
    if values["features"] is None and STORE.exists() and (run / "run.json").is_file():
        known = json.loads((run / "run.json").read_text())["options"]
        if known["features"] == [str(STORE)]:
            _complete_store(task, (split,), values["data"] or Path(known["data"]))
    outcome = score(task, split, run=run, say=click.echo, **values)
    if outcome.figures is None:
        click.echo("This split has no labels: no score.")
    else:
        _print_figures(outcome.figures)
        if outcome.withheld is not None:
            click.echo(f"image withheld: {outcome.withheld['accuracy']:.2f}")
        if outcome.majority is not None:
            click.echo(f"majority answer of the question type: {outcome.majority:.2f}")
    click.echo(f"Predictions: {outcome.predictions}")
    _report(run)


@cli.command()
@click.argument("task")
@click.option("--question", required=True, help="Question or statement.")
@click.option(
    "--image",
    "images",
    type=FOLDER,
    multiple=True,
    show_default="none",
    help="Photo file; for nlvr2 give two, left and right. Needs the extractor.",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    show_default="none",
    help="Photo by its key in the store, in place of --image.",
)
@click.option(
    "--run", type=FOLDER, show_default="runs/finetune-TASK", help="Fine-tuned run that answers."
)
@click.option(
    "--features", type=STORE_PLACE, default=STORE, help="Store in which --key is looked up."
)
@click.option(
    "--weights", default=EXTRACT.weights, help="Encoder for --image: the one of the training maps."
)
@click.option(
    "--size", show_default="the encoder's own", help="Shorter x longest side for --image."
)
@other_recipe_option
@click.option("--top", type=click.IntRange(1), default=5, help="Answers to show.")
@click.option(
    "--picture", type=FOLDER, show_default="none", help="PNG that shows where the model looked."
)
def predict(
    task: str,
    question: str,
    images: tuple[Path, ...],
    keys: tuple[str, ...],
    run: Path | None,
    features: str | Path,
    weights: str,
    size: str | None,
    top: int,
    picture: Path | None,
    other_recipe: bool,
) -> None:
    """Answer a question about a photo, or judge a statement about two (TASK: vqa, gqa, nlvr2)."""
    from gridvlp.train.tasks import get_task

    own = get_task(task)
    if bool(images) == bool(keys):
        raise UserError("Give either --image or --key.")
    from gridvlp.store import FeatureStore
    from gridvlp.train.relevance import answer

    run = run or Path("runs") / f"finetune-{own.name}"
    with tempfile.TemporaryDirectory() as folder:
        if images:
            features = Path(folder) / "store.zarr"
            keys = _extract_photos(images, run, features, weights, size)
        store = FeatureStore(features)
        found = answer(run, task, question, keys, store, top, other_recipe, click.echo)
        for name, chance in found.answers:
            click.echo(f"{100 * chance:5.1f}%  {name}")
        if picture is not None:
            from gridvlp.report.pictures import draw_answer

            sources = [store.record(key).get("source") for key in keys]
            draw_answer(picture, question, sources, found.relevance_HW, found.answers)
            click.echo(f"{picture} written.")


@cli.command()
@click.argument("runs", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--out",
    type=FOLDER,
    show_default="RUN/report.html; report.html for several runs",
    help="Page to write.",
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write one HTML page about RUNS: curves, scores, examples, where the model looked."""
    from gridvlp.report.page import write_report

    click.echo(f"Report: {write_report(runs, out, click.echo)}")


@cli.command()
@click.argument("table")
@click.option(
    "--scale",
    "label",
    type=click.Choice(["sample", "full"]),
    default="sample",
    help="sample: two CPU cores; full: the paper's settings.",
)
@click.option(
    "--data",
    type=FOLDER,
    show_default="a generated sample world",
    help="Folder of official data; full needs it.",
)
@click.option(
    "--weights",
    multiple=True,
    show_default="trained on the data",
    help="ENCODER=CHECKPOINT in place of training: x152=X-152.pth, x152-regions=C4.pth.",
)
@click.option("--seeds", type=int, show_default="3; full 1", help="Runs of each row.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    show_default="the table's",
    help='A score to fill, "vqa val"; give several times.',
)
@click.option(
    "--work",
    type=FOLDER,
    show_default="runs/reproduce-SCALE, or runs/reproduce-sample-DATA",
    help="Folder of encoders, stores and runs.",
)
@click.option("--out", type=FOLDER, default=Path("results"), help="Folder of the results.")
def reproduce(
    table: str,
    label: str,
    data: Path | None,
    weights: tuple[str, ...],
    seeds: int | None,
    columns: tuple[str, ...],
    work: Path | None,
    out: Path,
) -> None:
    """Fill TABLE of the paper (1, 2, 3 or sampling), with its figures beside ours.

    The sections that --config has for other commands change the settings of the scale.
    """
    from gridvlp.reproduce import reproduce as run
    from gridvlp.reproduce import scales

    named = {}
    for pair in weights:
        encoder, equals, path = pair.partition("=")
        if not (encoder and equals and path):
            raise UserError(f"--weights {pair}: give ENCODER=CHECKPOINT, as x152=X-152.pth.")
        if encoder.removesuffix("-regions") not in BACKBONES:
            raise UserError(
                f"--weights {pair}: there is no encoder {encoder!r}; there are "
                f"{', '.join(BACKBONES)}, and each with -regions."
            )
        named[encoder] = path
    if seeds is not None and seeds <= 0:
        raise UserError("--seeds must be above 0.")
    folder = f"reproduce-{label}"
    if data is not None and label == "sample":  # the sample world's runs are of other data
        folder += f"-{data.resolve().name}"
    scale = scales(label)
    if seeds is not None:
        scale = replace(scale, seeds=tuple(range(seeds)))
    scale = scale.with_settings(click.get_current_context().obj or {}, _note)
    run(
        table,
        scale,
        label=label,
        work=work or Path("runs") / folder,
        out=out,
        data=data,
        weights=named,
        columns=columns,
        command=shlex.join(["gridvlp", *sys.argv[1:]]),
        say=click.echo,
    )
    click.echo((out / f"table-{table}.md").read_text())


def _extract_photos(
    images: tuple[Path, ...], run: Path, out: Path, weights: str, size: str | None
) -> tuple[str, ...]:
    """Extract photos as the maps of a run's training were; returns their keys."""
    from gridvlp.extract.extraction import extract, options_of_recipe
    from gridvlp.train.model.checkpoints import load_config, model_folder

    recipe = load_config(model_folder(run)).grid_recipe if run.exists() else None
    distinct = tuple(dict.fromkeys(images))  # the two of a statement may be one photo
    options = replace(EXTRACT, images=distinct, out=out, weights=weights)
    if recipe is not None:
        options = options_of_recipe(options, recipe, f"The maps that {run} was trained on")
    report = extract(options if size is None else replace(options, size=size), lambda line: None)
    for path, reason in report.skipped.items():
        raise UserError(f"{path} cannot be used: {reason}.")
    if len(report.keys) != len(distinct):  # folders of photos
        return report.keys
    keys = dict(zip(distinct, report.keys, strict=True))
    return tuple(keys[image] for image in images)


# --- shared ----------------------------------------------------------------------------------


def _report(run: Path) -> None:
    """Leave a report in a run's folder; under torchrun the first process does."""
    if FIRST_PROCESS:
        from gridvlp.report.page import write_report

        click.echo(f"Report: {write_report([run], say=click.echo)}")


def _note(line: str) -> None:
    if FIRST_PROCESS:
        click.echo(line, err=True)


def _by_default(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def _complete_store(task: str, splits: tuple[str, ...], data: Path) -> None:
    """Extract the task's photos that the default store lacks, if their files and encoder are here.

    `gridvlp finetune nlvr2` then works after `gridvlp extract --images coco/`, too.
    """
    from gridvlp.store import FeatureStore
    from gridvlp.train.tasks import get_task

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # several would write one store
        return
    encoder = Path(EXTRACT.weights) / "encoder"
    if not encoder.is_dir() or not importlib.util.find_spec("detectron2"):
        return
    store, own = FeatureStore(STORE), get_task(task)
    try:
        sha256 = json.loads((encoder / "encoder.json").read_bytes())["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no whole encoder
    if store.encoder.get("weights_sha256") != sha256 or min(store.format_versions) < 5:
        return  # maps of another encoder, which this one's cannot join
    own.build_answers(data)
    wanted: set[str] = set()
    folders: dict[Path, None] = {}
    for split in splits:
        found = own.read(data, split, store)
        if found.report.without_photo:
            used = {example.id for example in found.examples}
            lacking = (e for e in own.read(data, split).examples if e.id not in used)
            wanted.update(key for example in lacking for key in example.images if key not in store)
            folders.update(dict.fromkeys(own.photo_folders(data, split)))
    if not wanted:
        return
    from gridvlp.extract.photos import SUFFIXES
    from gridvlp.store import canonical_key

    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                files.setdefault(canonical_key(path.stem), path)
    photos = tuple(files[key] for key in sorted(wanted & files.keys()))
    if photos:
        click.echo(
            f"{STORE} lacks {len(wanted):,} photos of {task}; extracting the {len(photos):,} that "
            f"are in {', '.join(map(str, folders))} first."
        )
        from gridvlp.extract.extraction import extract as run
        from gridvlp.extract.extraction import options_of_recipe

        options = options_of_recipe(
            replace(EXTRACT, images=photos, out=STORE), store.recipe, f"The maps of {STORE}"
        )
        for line in run(options, click.echo).lines():
            click.echo(line)


def _option(name: str) -> str:
    return name.replace("_", "-")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _need_stores(paths: tuple[str | Path, ...]) -> None:
    for path in paths:
        if isinstance(path, Path) and not path.exists():
            raise UserError(
                f"There is no feature store {path}: make it with `gridvlp extract --images coco/`, "
                "or name another with --features."
            )


def _print_figures(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        click.echo(
            f"  {name:32} {value:.2f}" if isinstance(value, float) else f"  {name:32} {value}"
        )


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    main()
