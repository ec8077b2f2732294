"""Region features as bottom-up attention and LXMERT ship them: a line of base64 for each photo.

The original (peteanderson80/bottom-up-attention, tools/generate_tsv.py) has six columns, LXMERT's
(airsplay/lxmert, data/README.md) ten; neither names them in the file. A first line of names is
taken as such. Lines are read one at a time: a file of 30 GB takes no more memory than one photo.
"""

from __future__ import annotations

import binascii
import codecs
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.errors import UserError

BOTTOM_UP = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT = (
    *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    *("num_boxes", "boxes", "features"),
)
SAME = {"image_id": "img_id", "image_w": "img_w", "image_h": "img_h"}
LONGEST_LINE = 64 << 20
OUTSIDE = 2.0  # pixels by which boxes may leave the photo; they are clipped to it


@dataclass(frozen=True)
class TsvLine:
    """One line of a file, not decoded yet."""

    number: int  # from 1
    size: int  # bytes
    fields: dict[str, bytes] | None  # by LXMERT's names; None where the columns are not theirs

    def key(self, coco_ids: bool) -> str:
        """The photo's key, "" where there is none.

        Args:
            coco_ids: the ids are COCO's numbers, whose files are named with 12 digits.
        """
        try:
            key = (self.fields or {}).get("img_id", b"").decode()
        except UnicodeDecodeError:
            return ""
        return f"{int(key):012}" if coco_ids and key.isascii() and key.isdigit() else key

    def regions(self) -> dict[str, Any]:
        """Arguments of ``StoreWriter.add``: map_CHW (C, 1, N), boxes, and what else there is.

        Raises:
            UserError: the line is damaged.
        """
        if self.fields is None:
            raise UserError(
                f"is damaged: it has not the {len(LXMERT)} columns of LXMERT, nor the "
                f"{len(BOTTOM_UP)} of bottom-up attention."
            )
        try:
            width, height = float(self.fields["img_w"]), float(self.fields["img_h"])
            count = int(self.fields["num_boxes"])
            if count < 1 or not (0 < width < np.inf and 0 < height < np.inf):
                raise ValueError(f"{count} boxes in a photo of {width:g}x{height:g}")
            boxes_N4 = _numbers(self.fields, "boxes", np.float32, 4 * count).reshape(count, 4)
            features_NC = _numbers(self.fields, "features", np.float32, None)
            if not len(features_NC) or len(features_NC) % count:
                raise ValueError(f"features have {len(features_NC)} numbers for {count} boxes")
            features_NC = features_NC.reshape(count, -1)
            found: dict[str, Any] = {"image_size": [int(height), int(width)]}
            if "objects_id" in self.fields:
                found["classes_N"] = _numbers(self.fields, "objects_id", np.int64, count)
                found["scores_N"] = _numbers(self.fields, "objects_conf", np.float32, count)
                found["attributes"] = _numbers(self.fields, "attrs_id", np.int64, count).tolist()
                scores_N = _numbers(self.fields, "attrs_conf", np.float32, count)
                found["attribute_scores"] = scores_N.tolist()
        except (ValueError, KeyError) as error:
            raise UserError(f"is damaged: {error}.") from error
        size_4 = np.array([width, height, width, height], np.float32)
        if (boxes_N4 < -OUTSIDE).any() or (boxes_N4 > size_4 + OUTSIDE).any():
            raise UserError(f"has boxes outside of its photo of {width:g}x{height:g}.")
        return {
            "grid_map": np.ascontiguousarray(features_NC.T)[:, None],
            "boxes_N4": np.clip(boxes_N4 / size_4, 0, 1),
            **found,
        }


def read_tsv(path: Path) -> Iterator[TsvLine]:
    """The lines of a file.

    Raises:
        UserError: the file cannot be read.
    """
    names: tuple[str, ...] | None = None
    number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE):
                number += 1
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                columns = line.rstrip(b"\r\n").split(b"\t")
                if number == 1 and {b"boxes", b"features", b"num_boxes"} <= set(columns):
                    names = tuple(column.decode() for column in columns)
                    continue
                order = names or {len(n): n for n in (BOTTOM_UP, LXMERT)}.get(len(columns))
                if order is None or len(order) != len(columns):
                    yield TsvLine(number, len(line), None)
                    continue
                fields = {SAME.get(name, name): c for name, c in zip(order, columns, strict=True)}
                yield TsvLine(number, len(line), fields)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def _numbers(fields: dict[str, bytes], name: str, dtype: Any, count: int | None) -> np.ndarray:
    try:
        content = b64decode(fields[name], validate=True)
    except binascii.Error as error:
        raise ValueError(f"{name} is no base64 ({error})") from error
    wanted = np.dtype(dtype).newbyteorder("<")
    if len(content) % wanted.itemsize or count not in (None, len(content) // wanted.itemsize):
        raise ValueError(f"{name} has {len(content)} bytes")
    return np.frombuffer(content, wanted)
