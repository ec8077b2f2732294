"""Pre-trains the encoder as a detector of Visual Genome's objects and attributes (paper 3.2).

gridvlp train-extractor --visual-genome data/vg
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from safetensors.torch import load_file, save_file

from gridvlp.errors import UserError
from gridvlp.extract.average_precision import average_precision
from gridvlp.extract.backbone import load_strictly, new_architecture
from gridvlp.extract.detector import NO_ATTRIBUTE, build_detector
from gridvlp.extract.encoder import choose_precision, read_weights, save_encoder
from gridvlp.extract.photos import BadPhoto, read_photo
from gridvlp.extract.settings import TrainExtractorOptions, parse_size
from gridvlp.extract.visual_genome import Annotated, VisualGenome, read_visual_genome
from gridvlp.interrupt import interrupts_held
from gridvlp.prefetch import Prefetch
from gridvlp.progress import track
from gridvlp.run_folder import RunFolder

LOG_STEPS = 20
MOMENTUM = 0.9  # Detectron2
MILESTONES = (60 / 90, 80 / 90)  # grid-feats-vqa: lr / 10 at 60k and 80k of 90k
VALID_BATCH = 16


@dataclass(frozen=True)
class Step:
    """One batch as Detectron2 takes it."""

    inputs: list[dict[str, Any]]


def train_extractor(
    options: TrainExtractorOptions, say: Callable[[str], object] = print
) -> dict[str, Any]:
    """Train the detector and leave its encoder in ``options.run``/encoder; resumes.

    Returns:
        On held-out photos, in percent: accuracy of classes and attributes on true boxes, AP.

    Raises:
        UserError: something is missing or does not fit, or the loss is not finite.
    """
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    data = read_visual_genome(
        options.visual_genome, options.vocab, options.objects, options.attributes
    )
    for line in data.counts.lines():
        say(line)
    train, valid = _hold_out(data, options.valid)
    vocabulary = data.vocabulary
    say(
        f"Training on {len(train):,} photos, {len(valid):,} held out; "
        f"{len(vocabulary.objects):,} objects, {len(vocabulary.attributes):,} attributes."
    )
    facts = {"counts": vars(data.counts), "photos": [photo.image for photo in train[:3]]}
    with RunFolder(options.run, options.identity(), facts) as run:
        if run.finished:
            say(f"{options.run} is finished already; give another --run to train again.")
            return run.finished
        architecture = new_architecture(options.backbone, options.width)
        given = read_weights(str(options.weights)) if options.weights is not None else None
        if given is not None:
            architecture = given.architecture
        torch.manual_seed(options.seed)
        model: Any = build_detector(
            options, architecture, len(vocabulary.objects), len(vocabulary.attributes)
        )
        if given is not None:
            load_strictly(model.backbone, given.state, given.name)
            say(f"Backbone starts from {options.weights}.")
        figures = _fit(model, train, valid, options, run)

        def fill(folder: Path) -> None:
            name = f"{architecture.backbone} x {architecture.width:g} on {options.visual_genome}"
            weights = model.backbone.state_dict()
            save_encoder(folder, name, architecture, weights, options.size, {"figures": figures})
            vocabulary.save(folder)

        run.replace_folder("encoder", fill)
        run.finish(figures)
    return figures


def _hold_out(data: VisualGenome, share: float) -> tuple[list[Annotated], list[Annotated]]:
    """Every n-th photo is held out."""
    every = max(2, round(1 / share))
    train = [photo for i, photo in enumerate(data.photos) if i % every]
    return train, data.photos[::every]


def _fit(
    model: Any,
    train: list[Annotated],
    valid: list[Annotated],
    options: TrainExtractorOptions,
    run: RunFolder,
) -> dict[str, Any]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    optimizer: torch.optim.Optimizer
    if options.optimizer == "sgd":
        optimizer = torch.optim.SGD(trained, momentum=MOMENTUM, **common)
    else:
        optimizer = torch.optim.AdamW(trained, **common, fused=True)
    begin = 0
    found = run.checkpoint()
    if found is not None:
        folder, state = found
        model.load_state_dict(load_file(folder / "model.safetensors"))
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        begin = state["step"]

    def save(folder: Path) -> None:
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        if not all(bool(value.isfinite().all()) for value in weights.values()):
            # one step after a loss that was finite; the checkpoint before this one is good
            raise UserError(_diverged(list(losses), step, options))
        save_file(weights, folder / "model.safetensors")

    model.train()
    model.backbone.to(memory_format=torch.channels_last)
    device = next(model.parameters()).device
    fast = choose_precision(options.precision, device) == torch.bfloat16
    make = _Batches(train, options, model.input_format)
    step = begin
    total = options.iterations * options.batch_size
    with (
        EventStorage(begin),
        track("train-extractor", total, "photos", begin * options.batch_size) as bar,
    ):
        try:
            for number, batch in Prefetch(make, range(begin, options.iterations), options.threads):
                torch.manual_seed((options.seed << 32) + number)
                for group in optimizer.param_groups:
                    group["lr"] = options.learning_rate * _schedule(number, options)
                with interrupts_held():
                    try:
                        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                            losses = model(batch.inputs)
                    except FloatingPointError as error:  # Detectron2, before it returns any loss
                        wrong = ["loss_rpn_cls", "loss_rpn_loc"]
                        raise UserError(_diverged(wrong, number, options)) from error
                    loss = sum(losses.values(), torch.zeros(()))
                    if not math.isfinite(float(loss.detach())):
                        wrong = [
                            n for n, v in losses.items() if not math.isfinite(float(v.detach()))
                        ]
                        raise UserError(_diverged(wrong, number, options))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    step = number + 1
                bar.advance(options.batch_size, f"loss {float(loss.detach()):.3f}")
                if step % LOG_STEPS == 0 or step == options.iterations:
                    values = {name: float(value.detach()) for name, value in losses.items()}
                    run.log(step, {"loss": float(loss.detach()), **values, "lr": group["lr"]})
                if step % options.eval_steps == 0 and step < options.iterations:
                    figures = evaluate(model, valid, options)
                    run.log(step, figures)
                    bar.print(f"step {step:,}: {told(figures)}")
                if step % options.save_steps == 0:
                    run.save_checkpoint(save, optimizer, {"step": step})
        except KeyboardInterrupt:
            run.save_checkpoint(save, optimizer, {"step": step})
            bar.print(f"Stopped after step {step:,}; the same command goes on from here.")
            raise
    run.save_checkpoint(save, optimizer, {"step": step})
    figures = evaluate(model, valid, options)
    run.log(step, figures)
    return figures


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


class _Batches:
    """The batch of a step: photos in shuffled epochs, half of them mirrored (Detectron2).

    Wide and tall photos go into different batches, as in Detectron2, so that little is padded.
    """

    def __init__(
        self, photos: list[Annotated], options: TrainExtractorOptions, channel_order: str = "BGR"
    ) -> None:
        self.photos, self.options, self.channel_order = photos, options, channel_order
        self.size = parse_size(options.size)
        tall_N = np.array([photo.height > photo.width for photo in photos])
        self.groups = [
            group for group in (np.flatnonzero(tall_N), np.flatnonzero(~tall_N)) if len(group)
        ]
        self.per_epoch = sum(-(-len(group) // options.batch_size) for group in self.groups)
        self._plan: tuple[int, np.ndarray] | None = None

    def plan(self, epoch: int) -> np.ndarray:
        """The photos of an epoch's steps (steps, B); a group's last batch is filled up."""
        plan = self._plan  # threads share it: read once
        if plan is None or plan[0] != epoch:
            rng = np.random.default_rng([self.options.seed, 0, epoch])
            size = self.options.batch_size
            rows = []
            for group in self.groups:
                order = rng.permutation(group)
                steps = -(-len(group) // size)
                rows.append(order.take(np.arange(steps * size), mode="wrap").reshape(steps, size))
            self._plan = plan = (epoch, rng.permutation(np.concatenate(rows)))
        return plan[1]

    def __call__(self, step: int) -> Step:
        epoch, index = divmod(step, self.per_epoch)
        chosen = self.plan(epoch)[index]
        mirrored = np.random.default_rng([self.options.seed, 1, step]).random(len(chosen)) < 0.5
        return Step(
            [
                load(self.photos[photo], self.size, bool(mirror), self.channel_order)
                for photo, mirror in zip(chosen, mirrored, strict=True)
            ]
        )


def load(
    photo: Annotated, size: tuple[int, int], mirrored: bool = False, channel_order: str = "BGR"
) -> dict[str, Any]:
    """A photo with its boxes as Detectron2 takes it.

    Raises:
        UserError: the photo cannot be decoded.
    """
    try:
        pixels_HW3 = read_photo(photo.path, size).pixels_HW3
    except BadPhoto as error:
        raise UserError(f"{photo.path}: {error}; remove it or fetch it again.") from error
    if channel_order == "BGR":
        pixels_HW3 = pixels_HW3[:, :, ::-1]
    height, width = pixels_HW3.shape[:2]
    boxes_N4 = photo.boxes_N4 * np.array(
        [width / photo.width, height / photo.height] * 2, dtype=np.float32
    )
    if mirrored:
        pixels_HW3 = pixels_HW3[:, ::-1]
        boxes_N4 = boxes_N4[:, [2, 1, 0, 3]]
        boxes_N4[:, [0, 2]] = width - boxes_N4[:, [0, 2]]
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.from_numpy(boxes_N4.copy()))
    instances.gt_classes = torch.from_numpy(photo.classes_N)
    instances.gt_attributes = torch.from_numpy(photo.attributes_NM)
    pixels_3HW = torch.from_numpy(np.ascontiguousarray(pixels_HW3.transpose(2, 0, 1)))
    return {"image": pixels_3HW, "instances": instances, "height": height, "width": width}


@torch.no_grad()
def evaluate(
    model: Any, photos: list[Annotated], options: TrainExtractorOptions
) -> dict[str, float]:
    """Accuracy in percent on true boxes, of classes and of attributes; COCO's AP of detections.

    An attribute counts as right where it is among the box's k best of k given ones.
    """
    model.eval()
    size = parse_size(options.size)

    def one(photo: Annotated) -> dict[str, Any]:
        return load(photo, size, channel_order=model.input_format)

    right = boxes = found = given = 0
    for first in range(0, len(photos), VALID_BATCH):
        inputs = [one(photo) for photo in photos[first : first + VALID_BATCH]]
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        instances = [entry["instances"].to(model.device) for entry in inputs]
        classes_NK, attributes_NK = model.roi_heads.describe(features, instances)
        truth_N = torch.cat([some.gt_classes for some in instances])
        right += int((classes_NK[:, :-1].argmax(1) == truth_N).sum())
        boxes += len(truth_N)
        for scores_K, true_M in zip(
            attributes_NK, torch.cat([some.gt_attributes for some in instances]), strict=True
        ):
            true = set(true_M[true_M != NO_ATTRIBUTE].tolist())
            if true:
                found += len(true & set(scores_K.topk(len(true)).indices.tolist()))
                given += len(true)
    precision = average_precision(model, photos, map(one, photos), VALID_BATCH)
    model.train()
    return {
        "class accuracy": 100 * right / max(boxes, 1),
        "attribute accuracy": 100 * found / max(given, 1),
        **precision,
    }
