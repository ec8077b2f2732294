"""Visual Genome: objects, attributes, regions and questions of COCO's photos and a few more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.sample.captions import regions
from gridvlp.sample.files import link_or_copy, write_json
from gridvlp.sample.photos import Photos, object_id, visual_genome_file, visual_genome_id
from gridvlp.sample.questions import VG_SHARES, balanced_questions

QUESTIONS_PER_PHOTO = 5


def write_visual_genome(data: Path, splits: dict[str, Photos], seed: int) -> dict[str, int]:
    """Write the five files and give COCO's photos their second names; returns the counts."""
    image_data: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    attributes: list[dict[str, Any]] = []
    described: list[dict[str, Any]] = []
    asked: dict[int, list[dict[str, Any]]] = {}
    totals = {"VG photos": 0, "VG objects": 0, "VG regions": 0, "VG questions": 0}
    for photos in (splits["train"], splits["val"], splits["vg"]):
        in_coco = photos.name != "vg"
        images = [visual_genome_id(id) if in_coco else id for id in photos.ids]
        for place, image in enumerate(images):
            own_id, scene, boxes = photos.ids[place], photos.scenes[place], photos.boxes[place]
            if in_coco:
                link_or_copy(photos.paths[place], visual_genome_file(data, image))
            image_data.append(
                {
                    "width": scene.width,
                    "url": "",
                    "height": scene.height,
                    "image_id": image,
                    "coco_id": own_id if in_coco else None,
                    "flickr_id": None,
                }
            )
            named, having = [], []
            for number, (thing, (x, y, w, h)) in enumerate(zip(scene.things, boxes, strict=True)):
                common = {
                    "synsets": [f"{thing.shape}.n.01"],
                    "h": h,
                    "object_id": object_id(own_id, number),
                    "names": [thing.shape],
                    "w": w,
                    "y": y,
                    "x": x,
                }
                named.append({**common, "merged_object_ids": []})
                having.append({**common, "attributes": [thing.colour, thing.material, thing.size]})
            objects.append({"image_id": image, "objects": named, "image_url": ""})
            attributes.append({"image_id": image, "attributes": having})
            rng = np.random.default_rng([seed, 101, own_id])
            told = [
                {
                    "region_id": 100 * own_id + number,
                    "width": w,
                    "height": h,
                    "image_id": image,
                    "phrase": phrase,
                    "y": y,
                    "x": x,
                }
                for number, ((x, y, w, h), phrase) in enumerate(regions(scene, boxes, rng))
            ]
            described.append({"regions": told, "id": image})
            totals["VG photos"] += 1
            totals["VG objects"] += len(named)
            totals["VG regions"] += len(told)
            asked[image] = []
        rng = np.random.default_rng([seed, 102, photos.ids[0]])
        for question in balanced_questions(photos.scenes, VG_SHARES, QUESTIONS_PER_PHOTO, rng):
            image = images[question.scene]
            asked[image].append(
                {
                    "a_objects": [],
                    "question": question.text,
                    "image_id": image,
                    "qa_id": 100 * photos.ids[question.scene] + len(asked[image]),
                    "answer": f"{question.answer.capitalize()}.",
                    "q_objects": [],
                }
            )
            totals["VG questions"] += 1
    folder = data / "vg"
    write_json(folder / "image_data.json", image_data)
    write_json(folder / "objects.json", objects)
    write_json(folder / "attributes.json", attributes)
    write_json(folder / "region_descriptions.json", described)
    write_json(
        folder / "question_answers.json",
        [{"id": image, "qas": questions} for image, questions in asked.items()],
    )
    return totals
