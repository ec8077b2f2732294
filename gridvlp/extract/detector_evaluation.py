"""How good a detector is on held-out photos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.utils import comm

from gridvlp.extract.annotations import Annotated, Annotations
from gridvlp.extract.average_precision import Detections, average_precision
from gridvlp.extract.batches import load
from gridvlp.extract.detector import NO_ATTRIBUTE
from gridvlp.extract.options import TrainExtractorOptions, parse_size
from gridvlp.extract.photos import BadPhoto, resized
from gridvlp.run.prefetch import Prefetch

BATCH = 16


class _Hits:
    """Right ones and all of them, of classes and of attributes."""

    def __init__(self) -> None:
        self.values = np.zeros(4, dtype=np.int64)

    def add(self, model: Any, features: Any, inputs: list[dict[str, Any]]) -> None:
        instances = [entry["instances"].to(model.device) for entry in inputs]
        classes_NK, attributes_NK = model.roi_heads.describe(features, instances)
        truth_N = torch.cat([some.gt_classes for some in instances])
        self.values[:2] += (int((classes_NK[:, :-1].argmax(1) == truth_N).sum()), len(truth_N))
        if attributes_NK is None:
            return
        for scores_K, true_M in zip(
            attributes_NK, torch.cat([some.gt_attributes for some in instances]), strict=True
        ):
            true = set(true_M[true_M != NO_ATTRIBUTE].tolist())
            if true:
                self.values[2] += len(true & set(scores_K.topk(len(true)).indices.tolist()))
                self.values[3] += len(true)


@torch.no_grad()
def evaluate(
    model: Any,
    photos: Annotations,
    options: TrainExtractorOptions,
    note_bad: Callable[[str, str], object] = lambda path, reason: None,
    advance: Callable[[int], object] = lambda photos: None,
) -> dict[str, float]:
    """Accuracy in percent on true boxes, of classes and of attributes; COCO's AP of detections.

    An attribute counts as right where it is among the box's k best of k given ones. Photos that
    cannot be read are left out. Only photos of one size are put together: padding would change
    what is found. All processes of a distributed run take part.

    Args:
        model: a Detectron2 detector; it is left in training mode.
        photos: the truth.
        options: size and threads.
        note_bad: told the path of a photo that was left out, and why.
        advance: told how many more photos of all are done; each process tells of all.

    Returns:
        The figures; without any in all processes but the first.
    """
    model.eval()
    size = parse_size(options.size)
    everyones, processes = _of_one_size(photos, size), comm.get_world_size()
    groups = everyones[comm.get_rank() :: processes]

    def read(number: int) -> list[tuple[Annotated, dict[str, Any]]]:
        read = []
        for row in groups[number]:
            photo = photos[row]
            try:
                read.append((photo, load(photo, size, channel_order=model.input_format)))
            except BadPhoto as error:
                note_bad(str(photo.path), str(error))
        return read

    hits, found = _Hits(), dict[int, Detections | None]()
    for number, batch in Prefetch(read, range(len(groups)), options.threads):
        advance(sum(map(len, everyones[number * processes :][:processes])))
        found.update({photos[row].image: None for row in groups[number]})
        if not batch:
            continue
        inputs = [one for _, one in batch]
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        hits.add(model, features, inputs)
        proposals, _ = model.proposal_generator(images, features, None)
        results, _ = model.roi_heads(images, features, proposals, None)
        # detections in the pixels of the annotations
        own = [{"height": photo.height, "width": photo.width} for photo, _ in batch]
        outputs = GeneralizedRCNN._postprocess(results, own, images.image_sizes)
        for (photo, _), output in zip(batch, outputs, strict=True):
            some = output["instances"]
            found[photo.image] = Detections(
                some.pred_boxes.tensor.cpu().numpy(),
                some.scores.cpu().numpy(),
                some.pred_classes.cpu().numpy(),
            )
    model.train()
    gathered = comm.gather((hits.values, found))
    if not gathered:
        return {}
    right, boxes, recalled, given = sum(values for values, _ in gathered).tolist()
    everything = {image: some for _, part in gathered for image, some in part.items()}
    seen = {image: some for image, some in everything.items() if some is not None}
    figures = {"class accuracy": 100 * right / max(boxes, 1)}
    if given:
        figures["attribute accuracy"] = 100 * recalled / given
    return {
        **figures,
        **average_precision((photo for photo in photos if photo.image in seen), seen),
    }


def _of_one_size(photos: Annotations, size: tuple[int, int]) -> list[list[int]]:
    """Groups of at most BATCH photos that have one size after resizing."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for row, (width, height) in enumerate(photos.sizes_P2.tolist()):
        by_size.setdefault(resized(height, width, *size), []).append(row)
    return [
        rows[i : i + BATCH]
        for _, rows in sorted(by_size.items())
        for i in range(0, len(rows), BATCH)
    ]
