"""COCO's average precision of a detector on held-out photos."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gridvlp.extract.annotations import Annotated

MOST = 100  # detections of a photo that count, COCO's largest


@dataclass(frozen=True)
class Detections:
    """What was found in one photo: boxes_N4 (x1, y1, x2, y2 in the photo's own pixels)."""

    boxes_N4: np.ndarray
    scores_N: np.ndarray
    classes_N: np.ndarray


def average_precision(
    photos: Iterable[Annotated], detections: dict[int, Detections]
) -> dict[str, float]:
    """AP (mean over IoU 0.5 to 0.95) and AP50 in percent, by pycocotools.

    The figures are those of one COCOeval over everything. It is run class by class because it
    walks all pairs of a photo and a class: of 5,000 photos and 1,600 classes most are empty.

    Args:
        photos: the truth.
        detections: by image id; a photo without an entry has none.
    """
    truth: dict[int, list[dict[str, Any]]] = defaultdict(list)
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for photo in photos:
        given = ((photo.boxes_N4, photo.classes_N, 0), (photo.crowds_N4, photo.crowd_classes_N, 1))
        for boxes_N4, classes_N, crowd in given:
            for box, category in zip(_sides(boxes_N4), classes_N.tolist(), strict=True):
                entry = {"image_id": photo.image, "bbox": box, "category_id": 1, "iscrowd": crowd}
                entry["area"] = box[2] * box[3]
                entry["id"] = len(truth[category]) + 1
                truth[category].append(entry)
        if photo.image in detections:
            some = detections[photo.image]
            for box, score, category in zip(
                _sides(some.boxes_N4), some.scores_N.tolist(), some.classes_N.tolist(), strict=True
            ):
                entry = {"image_id": photo.image, "bbox": box, "category_id": 1, "score": score}
                found[category].append(entry)
    precisions_CTR = []
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        for category, boxes in sorted(truth.items()):
            if not all(entry["iscrowd"] for entry in boxes):
                precisions_CTR.append(_precision(boxes, found.get(category, [])))
    if not precisions_CTR:
        return {"AP": 0.0, "AP50": 0.0}
    mean_TR = np.mean(precisions_CTR, axis=0)
    return {"AP": 100 * float(mean_TR.mean()), "AP50": 100 * float(mean_TR[0].mean())}


def _precision(truth: list[dict[str, Any]], found: list[dict[str, Any]]) -> np.ndarray:
    """Precision of one class at each IoU threshold and recall (T, R)."""
    params = COCOeval(iouType="bbox").params
    if not found:
        return np.zeros((len(params.iouThrs), len(params.recThrs)))
    coco = COCO()
    images = sorted({entry["image_id"] for entry in truth + found})
    coco.dataset = {
        "info": {},
        "images": [{"id": image} for image in images],
        "annotations": truth,
        "categories": [{"id": 1}],
    }
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
    evaluation.params.maxDets = [MOST]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision_TR: np.ndarray = evaluation.eval["precision"][:, :, 0, 0, 0]
    return precision_TR


def _sides(boxes_N4: np.ndarray) -> list[list[float]]:
    """Corners as left, top, width, height."""
    sides_N4 = np.concatenate([boxes_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]], axis=1)
    listed: list[list[float]] = sides_N4.tolist()
    return listed
