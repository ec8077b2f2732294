"""COCO's average precision, against answers known beforehand and against one plain COCOeval."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gridvlp.extract.annotations import Annotated
from gridvlp.extract.average_precision import Detections, average_precision
from gridvlp.extract.visual_genome import read_visual_genome


def test_answers_known_beforehand(visual_genome: Path) -> None:
    photos = [*read_visual_genome(visual_genome)][:7]

    def ap(answer: Callable[[Annotated], tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        found = {}
        for photo in photos:
            boxes_N4, classes_N = answer(photo)
            found[photo.image] = Detections(boxes_N4, np.ones(len(boxes_N4)), classes_N)
        return average_precision(photos, found)

    def truth(photo: Annotated) -> tuple[np.ndarray, np.ndarray]:
        return photo.boxes_N4, photo.classes_N

    def shrunk(photo: Annotated) -> tuple[np.ndarray, np.ndarray]:
        """Boxes of IoU 0.72 with the true ones: right up to a threshold of 0.7, five of ten."""
        narrow_N4 = photo.boxes_N4.copy()
        narrow_N4[:, 2] = narrow_N4[:, 0] + 0.72 * (narrow_N4[:, 2] - narrow_N4[:, 0])
        return narrow_N4, photo.classes_N

    assert ap(truth) == pytest.approx({"AP": 100, "AP50": 100})
    assert ap(shrunk) == pytest.approx({"AP": 50, "AP50": 100})
    assert ap(lambda photo: (photo.boxes_N4, 1 - photo.classes_N))["AP50"] < 50
    assert average_precision(photos, {}) == {"AP": 0, "AP50": 0}
    assert average_precision([], {}) == {"AP": 0, "AP50": 0}


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner_N2 = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corner_N2, corner_N2 + rng.uniform(5, 40, (count, 2))], 1)


@pytest.mark.parametrize("seed", range(4))
def test_equals_one_coco_evaluation_over_everything(seed: int) -> None:
    """With crowds, photos that hold nothing, classes that nobody found or that are nowhere."""
    rng = np.random.default_rng(seed)
    photos, found = [], {}
    for image in range(12):
        count = 0 if image == 3 else int(rng.integers(1, 9))
        boxes_N4, classes_N = boxes(rng, count), rng.integers(0, 5, count)
        crowd_N = rng.random(count) < 0.15
        photos.append(
            Annotated(
                *(image, Path(), 100, 100, boxes_N4[~crowd_N], classes_N[~crowd_N]),
                *(np.zeros((0, 16)), boxes_N4[crowd_N], classes_N[crowd_N]),
            )
        )
        near_N4 = boxes_N4 + rng.normal(0, 2, boxes_N4.shape)
        more_N4 = boxes(rng, 4)
        labels_N = np.concatenate([classes_N, rng.integers(0, 7, 4)])
        labels_N[labels_N == 4] = 6  # 4 is never found, 6 never there
        found[image] = Detections(
            np.concatenate([near_N4, more_N4]), rng.random(count + 4), labels_N
        )
    assert average_precision(photos, found) == pytest.approx(plain(photos, found))


def plain(photos: list[Annotated], found: dict[int, Detections]) -> dict[str, float]:
    annotations: list[dict[str, Any]] = []
    for photo in photos:
        for crowd, some_N4, classes_N in (
            (0, photo.boxes_N4, photo.classes_N),
            (1, photo.crowds_N4, photo.crowd_classes_N),
        ):
            for (left, top, right, bottom), category in zip(some_N4, classes_N, strict=True):
                box = [left, top, right - left, bottom - top]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": photo.image,
                        "category_id": int(category),
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": crowd,
                    }
                )
    results = [
        {
            "image_id": image,
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
            "category_id": int(category),
        }
        for image, some in found.items()
        for (left, top, right, bottom), score, category in zip(
            some.boxes_N4, some.scores_N, some.classes_N, strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": photo.image} for photo in photos],
            "annotations": annotations,
            "categories": [{"id": i} for i in range(7)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP": 100 * evaluation.stats[0], "AP50": 100 * evaluation.stats[1]}
