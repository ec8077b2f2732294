"""The batches that the detector is trained on, each a function of its step alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from gridvlp.errors import UserError
from gridvlp.extract.annotations import Annotated, Annotations
from gridvlp.extract.options import TrainExtractorOptions, parse_size
from gridvlp.extract.photos import BadPhoto, read_photo

TRIES = 100  # photos in a row that cannot be read: something else is wrong
SAME_SHAPE = 0.02  # relative difference of side ratios; rounded sizes differ by less


class Batches:
    """The batch of a step: photos in shuffled epochs, half of them mirrored (Detectron2).

    Wide and tall photos go into different batches, as in Detectron2, so that little is padded. A
    photo that cannot be used is replaced by the next one of its kind and noted in ``bad``, path ->
    reason.

    Args:
        photos: to train on.
        options: batch size (of all processes together), size and seed.
        channel_order: of the backbone, "BGR" or "RGB".
        rank, processes: this process gets every n-th photo of a batch.
    """

    def __init__(
        self,
        photos: Annotations,
        options: TrainExtractorOptions,
        channel_order: str = "BGR",
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.photos, self.options, self.channel_order = photos, options, channel_order
        self.share = slice(rank, None, processes)
        self.size = parse_size(options.size)
        self.bad: dict[str, str] = {}
        tall_P = photos.sizes_P2[:, 1] > photos.sizes_P2[:, 0]
        self.groups = [
            group for group in (np.flatnonzero(tall_P), np.flatnonzero(~tall_P)) if len(group)
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

    def __call__(self, step: int) -> list[dict[str, Any]]:
        """This process's photos of a step, as Detectron2 takes them.

        Raises:
            UserError: many photos in a row cannot be read.
        """
        epoch, index = divmod(step, self.per_epoch)
        chosen = self.plan(epoch)[index]
        mirrored = np.random.default_rng([self.options.seed, 1, step]).random(len(chosen)) < 0.5
        return [
            self._load(int(photo), bool(mirror))
            for photo, mirror in zip(chosen[self.share], mirrored[self.share], strict=True)
        ]

    def _load(self, photo: int, mirrored: bool) -> dict[str, Any]:
        group = next(group for group in self.groups if photo in group)
        place = int(np.searchsorted(group, photo))
        for i in range(min(TRIES, len(group))):
            chosen = self.photos[int(group[(place + i) % len(group)])]
            if str(chosen.path) in self.bad:
                continue
            try:
                return load(chosen, self.size, mirrored, self.channel_order)
            except BadPhoto as error:
                self.bad[str(chosen.path)] = str(error)
        path = self.photos[photo].path
        raise UserError(
            f"{path} and the photos after it cannot be read ({self.bad[str(path)]}): is the disk "
            "there? Mend it, and the same command goes on from the last checkpoint."
        )


def load(
    photo: Annotated, size: tuple[int, int], mirrored: bool = False, channel_order: str = "BGR"
) -> dict[str, Any]:
    """A photo with its boxes as Detectron2 takes it.

    Raises:
        BadPhoto: it cannot be decoded, or its sides have not the ratio that was annotated (turned
            by EXIF data, or another photo).
    """
    found = read_photo(photo.path, size)
    tall, wide = found.original_size
    if abs(wide * photo.height - tall * photo.width) > SAME_SHAPE * wide * photo.height:
        raise BadPhoto(
            f"it has {wide} x {tall} pixels and was annotated with {photo.width} x {photo.height}"
        )
    pixels_HW3 = found.pixels_HW3
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
