"""Regions of a photo: features with the boxes, classes and scores that a detector gave them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gridvlp.store.errors import MapError

UNKNOWN_CLASS, UNKNOWN_SCORE = -1, np.nan  # in the rows of a map that was added without
BOX_TOLERANCE = 1e-3  # boxes were clipped to the photo before they were divided by its size


@dataclass(frozen=True)
class Regions:
    """The regions of one photo, in the order in which they were added."""

    features_NC: np.ndarray
    boxes_N4: np.ndarray  # float32 x1, y1, x2, y2, as fractions of the photo's width and height
    classes_N: np.ndarray | None  # int32; None where they were not given
    scores_N: np.ndarray | None  # float32; None where they were not given


def region_rows(
    key: str, count: int, boxes: Any, classes: Any, scores: Any
) -> dict[str, np.ndarray]:
    """What a store keeps of N regions beside their features, by array, checked.

    Raises:
        MapError: a wrong shape, boxes that are none, or a class or score out of range.
    """
    if boxes is None:
        raise MapError(f"The regions of {key} need their boxes (boxes_N4).")
    boxes_N4 = _as_numbers(key, "boxes", boxes, (count, 4))
    within = (boxes_N4 >= -BOX_TOLERANCE) & (boxes_N4 <= 1 + BOX_TOLERANCE)
    if not within.all() or (boxes_N4[:, :2] > boxes_N4[:, 2:]).any():
        raise MapError(
            f"The boxes of {key} must be x1, y1, x2, y2 as fractions of the photo's width and "
            "height, x1 <= x2 and y1 <= y2."
        )
    rows = {
        "boxes": boxes_N4.astype(np.float32),
        "classes": np.full(count, UNKNOWN_CLASS, np.int32),
        "scores": np.full(count, UNKNOWN_SCORE, np.float32),
    }
    if classes is not None:
        classes_N = _as_numbers(key, "classes", classes, (count,))
        if classes_N.dtype.kind not in "iu" or ((classes_N < 0) | (classes_N >= 2**31)).any():
            raise MapError(f"The classes of {key} must be integers from 0 to 2^31 - 1.")
        rows["classes"] = classes_N.astype(np.int32)
    if scores is not None:
        rows["scores"] = _as_numbers(key, "scores", scores, (count,)).astype(np.float32)
        if not np.isfinite(rows["scores"]).all():
            raise MapError(f"The scores of {key} must be finite.")
    return rows


def _as_numbers(key: str, name: str, given: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(given)
    if values.shape != shape or values.dtype.kind not in "iuf":
        raise MapError(
            f"The {name} of {key} are {values.dtype} of shape {values.shape}; numbers of shape "
            f"{shape} are needed."
        )
    return values
