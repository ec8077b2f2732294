"""Pre-trains the encoder as a detector of objects and attributes (paper 3.2).

gridvlp train-extractor --visual-genome data/vg
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import create_ddp_model, launch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.multiprocessing.spawn import ProcessException

from gridvlp.atomic import write_text
from gridvlp.errors import UserError
from gridvlp.extract.annotations import Annotations
from gridvlp.extract.backbone import load_strictly, new_architecture
from gridvlp.extract.batches import Batches
from gridvlp.extract.coco import photo_folders, read_coco
from gridvlp.extract.detector import build_detector
from gridvlp.extract.detector_evaluation import evaluate
from gridvlp.extract.encoder import Weights, read_weights, save_encoder
from gridvlp.extract.options import TrainExtractorOptions
from gridvlp.extract.visual_genome import read_visual_genome
from gridvlp.extract.vocabulary import Vocabulary
from gridvlp.run.devices import choose_precision
from gridvlp.run.folder import RunFolder
from gridvlp.run.prefetch import Prefetch
from gridvlp.run.progress import track
from gridvlp.run.seeding import seed_step
from gridvlp.run.signals import end_process, interrupts_held, termination_interrupts

LOG_STEPS = 20
MOMENTUM = 0.9  # Detectron2
MILESTONES = (60 / 90, 80 / 90)  # grid-feats-vqa: lr / 10 at 60k and 80k of 90k
LOSSES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_attributes")


def train_extractor(
    options: TrainExtractorOptions, say: Callable[[str], object] = print
) -> dict[str, Any]:
    """Train the detector and leave its encoder in ``options.run``/encoder; resumes.

    With several processes or machines it is started by Detectron2's launcher, once on each machine.

    Returns:
        On held-out photos, in percent: accuracy of classes and attributes on true boxes, AP.

    Raises:
        UserError: something is missing or does not fit, or the loss is not finite.
    """
    if options.processes == 1:
        return _train(options, say)
    if torch.cuda.is_available() and options.num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {options.num_gpus}: there are {torch.cuda.device_count()} on this machine."
        )
    with tempfile.TemporaryDirectory() as folder:
        outcome = Path(folder)
        try:
            launch(
                _process,
                options.num_gpus,
                options.num_machines,
                options.machine_rank,
                options.dist_url,
                args=(options, outcome),
            )
        except KeyboardInterrupt:
            # they have had the terminal's Ctrl-C; a kill of this process alone is passed on
            for child in multiprocessing.active_children():
                if child.pid is not None and child.is_alive():
                    os.kill(child.pid, signal.SIGINT)
                child.join()
            raise
        except ProcessException as error:
            told = sorted(outcome.glob("error-*"))
            if not told:
                raise
            raise UserError(told[0].read_text(encoding="utf-8")) from error
        if not (outcome / "figures.json").exists():  # they were interrupted, and this process not
            raise KeyboardInterrupt
        figures: dict[str, Any] = json.loads((outcome / "figures.json").read_text())
    return figures


def _process(options: TrainExtractorOptions, outcome: Path) -> None:
    """One of several processes; what became of it is left in the folder ``outcome``."""
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // options.num_gpus))
    try:
        with termination_interrupts():
            figures = _train(options, print if comm.is_main_process() else lambda line: None)
    except UserError as error:
        (outcome / f"error-{comm.get_rank()}").write_text(str(error), encoding="utf-8")
        raise
    if comm.get_local_rank() == 0:
        (outcome / "figures.json").write_text(json.dumps(figures))
    comm.synchronize()
    end_process()


def _train(options: TrainExtractorOptions, say: Callable[[str], object]) -> dict[str, Any]:
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    if comm.get_local_rank() != 0:
        comm.synchronize()  # one process of a machine fills the cache
    train, valid = read_annotations(options)
    if comm.get_local_rank() == 0:
        comm.synchronize()
    for line in dict.fromkeys([*train.counts.lines(), *valid.counts.lines()]):
        say(line)
    vocabulary = train.vocabulary
    say(
        f"Training on {len(train):,} photos, {len(valid):,} held out; "
        f"{len(vocabulary.objects):,} objects, {len(vocabulary.attributes):,} attributes."
    )
    given = read_weights(str(options.weights)) if options.weights is not None else None
    # by content: a file may move, and another may be put in its place
    identity = {**options.identity(), "weights": given.sha256 if given else None}
    facts = {"annotations": train.fingerprint, "valid annotations": valid.fingerprint}
    with RunFolder(options.run, identity, facts, comm.is_main_process()) as run:
        finished: dict[str, Any] | None = _from_first(run.finished)
        if finished:
            say(f"{options.run} is finished already; give another --run to train again.")
            return finished
        architecture = new_architecture(options.backbone, options.width)
        if given is not None:
            _check_backbone(given, options)
            architecture = given.architecture
        torch.manual_seed(options.seed)
        model: Any = build_detector(
            options, architecture, len(vocabulary.objects), len(vocabulary.attributes)
        )
        if given is not None:
            load_backbone(model, given, options.regions)
            for line in (f"Backbone starts from {options.weights}.", *given.notes):
                say(line)
        figures = _from_first(_Training(model, train, valid, options, run, say).fit())

        def fill(folder: Path) -> None:
            data = options.visual_genome or train.counts.source
            name = f"{architecture.backbone} x {architecture.width:g} on {data}"
            weights = (model if options.regions else model.backbone).state_dict()
            save_encoder(folder, name, architecture, weights, options.size, {"figures": figures})
            vocabulary.save(folder)

        run.replace_folder("encoder", fill)
        run.finish(figures)
    return figures


def read_annotations(options: TrainExtractorOptions) -> tuple[Annotations, Annotations]:
    """The photos to train on and those to measure on.

    Raises:
        UserError: a file is missing or broken, or too few photos are left.
    """
    if options.visual_genome is not None:
        data = read_visual_genome(
            options.visual_genome, options.vocab, options.objects, options.attributes
        )
    else:
        folders = options.photos or photo_folders(
            [*options.annotations, *filter(None, [options.valid_annotations])]
        )
        given = Vocabulary.load(options.vocab) if options.vocab is not None else None
        data = read_coco(options.annotations, folders, given)
        if options.valid_annotations is not None:
            files = [options.valid_annotations]
            return data, read_coco(files, folders, data.vocabulary, keep_empty=True)
    if len(data) < 2:
        raise UserError("One photo alone cannot be trained and measured on.")
    every = max(2, round(1 / options.valid))
    held = torch.arange(len(data)).numpy() % every == 0
    return data.subset(~held), data.subset(held)


def load_backbone(model: Any, given: Weights, regions: bool) -> None:
    """Start from a backbone's weights; a C4 detector has its res5 in the box head.

    Raises:
        UserError: a weight is missing, unknown or of another shape.
    """
    head = {k: v for k, v in given.state.items() if regions and k.startswith("res5.")}
    rest = {k: v for k, v in given.state.items() if k not in head}
    load_strictly(model.backbone, rest, given.name)
    if regions:
        res5 = {key.removeprefix("res5."): value for key, value in head.items()}
        load_strictly(model.roi_heads.res5, res5, given.name)


def _check_backbone(given: Weights, options: TrainExtractorOptions) -> None:
    found = given.architecture
    if (found.backbone, found.width) != (options.backbone, options.width):
        raise UserError(
            f"{options.weights} holds an {found.backbone} of width {found.width:g}: train it with "
            f"--backbone {found.backbone} --width {found.width:g}."
        )


def _from_first(value: Any) -> Any:
    """The value that the first process has."""
    if comm.get_world_size() == 1:
        return value
    box = [value]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    distributed.broadcast_object_list(box, src=0, device=device)
    return box[0]


class _Training:
    """The loop, in one process or in each of several."""

    def __init__(
        self,
        model: Any,
        train: Annotations,
        valid: Annotations,
        options: TrainExtractorOptions,
        run: RunFolder,
        say: Callable[[str], object],
    ) -> None:
        self.model, self.valid, self.options, self.run, self.say = model, valid, options, run, say
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
        self.optimizer: torch.optim.Optimizer
        if options.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(trained, momentum=MOMENTUM, **common)
        else:
            self.optimizer = torch.optim.AdamW(trained, **common, fused=True)
        self.names = LOSSES if train.vocabulary.attributes else LOSSES[:-1]
        self.losses = dict.fromkeys(self.names, 0.0)
        self.batches = Batches(
            train, options, model.input_format, comm.get_rank(), comm.get_world_size()
        )
        self.device = model.device
        synced_here = comm.get_world_size() > 1 and options.weights is None
        self.fast = choose_precision(options.precision, self.device) == torch.bfloat16 and not (
            # Detectron2's norm over processes loses its variance in bfloat16
            synced_here and self.device.type == "cpu"
        )
        self.step = self._resume()
        model.train()
        model.backbone.to(memory_format=torch.channels_last)
        ids: dict[str, Any] = {} if self.device.type == "cuda" else {"device_ids": None}
        # it begins with the first process's weights in all
        self.parallel = create_ddp_model(model, broadcast_buffers=False, **ids)

    def _resume(self) -> int:
        found = self.run.checkpoint() if self.run.writer else None
        state: tuple[int, Any] = (0, None)
        if found is not None:
            folder, about = found
            self.model.load_state_dict(load_file(folder / "model.safetensors"))
            state = (about["step"], torch.load(folder / "optimizer.pt", weights_only=True))
        step, optimizer = _from_first(state)
        if optimizer is not None:
            self.optimizer.load_state_dict(optimizer)
        return step

    def fit(self) -> dict[str, Any]:
        """Train to the end and measure.

        Raises:
            UserError: a loss is not finite.
        """
        options = self.options
        alone = comm.get_world_size() == 1
        total = options.iterations * options.batch_size
        steps = range(self.step, options.iterations)
        with (
            # several processes stop after one and the same step, whenever each was told to
            nullcontext() if alone else interrupts_held() as stop,
            EventStorage(self.step),
            track(
                *("train-extractor", total, "photos", self.step * options.batch_size),
                quiet=not self.run.writer,
            ) as bar,
        ):
            try:
                for number, inputs in Prefetch(self.batches, steps, options.threads):
                    with interrupts_held() if alone else nullcontext():
                        stopped = self._advance(number, inputs, bool(stop))
                    loss = sum(self.losses.values())
                    bar.advance(options.batch_size, f"loss {loss:.3f}")
                    if self.step % LOG_STEPS == 0 or self.step == options.iterations:
                        rate = self.optimizer.param_groups[0]["lr"]
                        self.run.log(self.step, {"loss": loss, **self.losses, "lr": rate})
                    if stopped:
                        raise KeyboardInterrupt
                    if self.step % options.eval_steps == 0 and self.step < options.iterations:
                        bar.print(f"step {self.step:,}: {told(self._measure())}")
                    if self.step % options.save_steps == 0:
                        self._save()
                        self._list_bad()
            except KeyboardInterrupt:
                self._save()
                bar.print(f"Stopped after step {self.step:,}; the same command goes on from here.")
                raise
        self._save()
        figures = self._measure()
        self._list_bad()
        return figures

    def _advance(self, number: int, inputs: list[dict[str, Any]], stop: bool) -> bool:
        """One step; returns whether any process was told to stop."""
        options = self.options
        seed_step(options.seed, number, comm.get_rank())
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * _schedule(number, options)
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
                losses = self.parallel(inputs)
            values = torch.stack([losses[name] for name in self.names])
        except FloatingPointError:  # Detectron2, before it returns any loss
            losses, values = {}, torch.full((len(self.names),), math.nan, device=self.device)
        shared = torch.cat([values.detach().double(), values.new_tensor([float(stop)]).double()])
        if comm.get_world_size() > 1:
            distributed.all_reduce(shared)
            shared /= comm.get_world_size()
        *means, stops = shared.tolist()
        self.losses = dict(zip(self.names, means, strict=True))
        wrong = [name for name, value in self.losses.items() if not math.isfinite(value)]
        if wrong:
            # without any loss it was the proposals that Detectron2 found not to be finite
            raise UserError(_diverged(wrong if losses else list(LOSSES[:2]), number, options))
        self.optimizer.zero_grad()
        values.sum().backward()
        self.optimizer.step()
        self.step = number + 1
        return stops > 0

    def _measure(self) -> dict[str, float]:
        with track("held out", len(self.valid), "photos", quiet=not self.run.writer) as bar:
            figures = evaluate(
                self.model, self.valid, self.options, self.batches.bad.__setitem__, bar.advance
            )
        self.run.log(self.step, figures)
        return figures

    def _save(self) -> None:
        self.run.save_checkpoint(self._write_weights, self.optimizer, {"step": self.step})

    def _write_weights(self, folder: Path) -> None:
        state = self.model.state_dict()
        weights = {name: value.contiguous() for name, value in state.items()}
        if not all(bool(value.isfinite().all()) for value in weights.values()):
            # one step after a loss that was finite; the checkpoint before this one is good
            raise UserError(_diverged(list(self.names), self.step, self.options))
        save_file(weights, folder / "model.safetensors")

    def _list_bad(self) -> None:
        """Write down the photos that could not be used, and say so when there are new ones."""
        gathered = comm.gather(dict(self.batches.bad))
        if not self.run.writer:
            return
        path = self.run.path / "bad-photos.txt"
        before = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
        lines = {f"{name}: {reason}" for part in gathered for name, reason in part.items()}
        if lines - before:
            lines |= before
            write_text(path, "".join(line + "\n" for line in sorted(lines)))
            self.say(
                f"{len(lines):,} photos cannot be used and others take their places; they are "
                f"listed in {path}."
            )


def told(figures: dict[str, float]) -> str:
    """Figures as a line."""
    return ", ".join(f"{name} {value:.1f}" for name, value in figures.items())


def _diverged(wrong: list[str], number: int, options: TrainExtractorOptions) -> str:
    return (
        f"Training diverged: {', '.join(wrong)} not finite at step {number + 1}. The last "
        f"checkpoint in {options.run} is kept; try a tenth of --learning-rate "
        f"{options.learning_rate} in a new --run."
    )


def _schedule(step: int, options: TrainExtractorOptions) -> float:
    passed = sum(step >= share * options.iterations for share in MILESTONES)
    warm = min(1.0, (step + 1) / options.warmup) if options.warmup else 1.0
    return warm * 0.1**passed
