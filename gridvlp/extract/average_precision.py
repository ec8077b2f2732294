"""COCO's average precision of a detector on held-out photos."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gridvlp.extract.visual_genome import Annotated


@torch.no_grad()
def average_precision(
    model: Any, photos: Sequence[Annotated], inputs: Iterable[dict[str, Any]], batch_size: int
) -> dict[str, float]:
    """AP (mean over IoU 0.5 to 0.95) and AP50 in percent, by pycocotools.

    Args:
        model: a Detectron2 detector, in evaluation mode.
        photos: the truth.
        inputs: the same photos as Detectron2 takes them.
        batch_size: photos at a time.
    """
    found: list[dict[str, Any]] = []
    batch: list[tuple[Annotated, dict[str, Any]]] = []
    for number, (photo, one) in enumerate(zip(photos, inputs, strict=True), 1):
        # detections come back in the pixels of this size: those of the photo's own boxes
        batch.append((photo, {**one, "height": photo.height, "width": photo.width}))
        if len(batch) == batch_size or number == len(photos):
            for (told, _), output in zip(batch, model([one for _, one in batch]), strict=True):
                found += _detections(told.image, output["instances"].to("cpu"))
            batch = []
    if not found:
        return {"AP": 0.0, "AP50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = _as_coco(photos)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # -1 where there is no box to find
    return {
        name: 100 * max(0.0, float(evaluation.stats[i])) for i, name in enumerate(("AP", "AP50"))
    }


def _detections(image: int, instances: Any) -> list[dict[str, Any]]:
    boxes_N4 = instances.pred_boxes.tensor.clone()
    boxes_N4[:, 2:] -= boxes_N4[:, :2]
    rows = zip(
        boxes_N4.tolist(), instances.scores.tolist(), instances.pred_classes.tolist(), strict=True
    )
    return [
        {"image_id": image, "bbox": box, "score": score, "category_id": category}
        for box, score, category in rows
    ]


def _as_coco(photos: Sequence[Annotated]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for photo in photos:
        for (left, top, right, bottom), category in zip(
            photo.boxes_N4.tolist(), photo.classes_N.tolist(), strict=True
        ):
            width, height = right - left, bottom - top
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": photo.image,
                    "category_id": category,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    return {
        "info": {},
        "images": [{"id": p.image, "width": p.width, "height": p.height} for p in photos],
        "annotations": annotations,
        "categories": [{"id": i} for i in sorted({a["category_id"] for a in annotations})],
    }
