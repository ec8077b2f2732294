"""COCO's captions and instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.sample.captions import captions
from gridvlp.sample.files import write_json
from gridvlp.sample.photos import Photos
from gridvlp.sample.scene import SHAPES

INFO = {
    "description": "gridvlp sample world (generated)",
    "url": "",
    "version": "1.0",
    "year": 2026,
    "contributor": "gridvlp",
    "date_created": "",
}
LICENSE = {"url": "", "id": 1, "name": "generated"}


def write_coco(data: Path, splits: dict[str, Photos], seed: int) -> dict[str, int]:
    """Write captions_*2017.json and instances_*2017.json; returns the counts."""
    counts = {}
    categories = [
        {"supercategory": "thing", "id": number, "name": shape}
        for number, shape in enumerate(SHAPES, 1)
    ]
    for split in ("train", "val"):
        photos = splits[split]
        images: list[dict[str, Any]] = []
        told: list[dict[str, Any]] = []
        seen: list[dict[str, Any]] = []
        for place, (image, scene) in enumerate(zip(photos.ids, photos.scenes, strict=True)):
            images.append(
                {
                    "license": 1,
                    "file_name": photos.paths[place].name,
                    "coco_url": "",
                    "height": scene.height,
                    "width": scene.width,
                    "date_captured": "",
                    "flickr_url": "",
                    "id": image,
                }
            )
            rng = np.random.default_rng([seed, 100, image])
            for number, text in enumerate(captions(scene, rng)):
                told.append({"image_id": image, "id": 10 * image + number, "caption": text})
            boxes = photos.boxes[place]
            for number, (thing, box) in enumerate(zip(scene.things, boxes, strict=True)):
                x, y, w, h = box
                seen.append(
                    {
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                        "area": w * h,
                        "iscrowd": 0,
                        "image_id": image,
                        "bbox": list(box),
                        "category_id": SHAPES.index(thing.shape) + 1,
                        "id": 10 * image + number,
                    }
                )
        common = {"info": INFO, "licenses": [LICENSE], "images": images}
        folder = data / "coco" / "annotations"
        write_json(folder / f"captions_{split}2017.json", {**common, "annotations": told})
        write_json(
            folder / f"instances_{split}2017.json",
            {**common, "annotations": seen, "categories": categories},
        )
        counts[f"COCO captions {split}"] = len(told)
        counts[f"COCO instances {split}"] = len(seen)
    return counts
