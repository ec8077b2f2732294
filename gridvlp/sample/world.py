"""Writes the sample world: photos and annotations in the official formats and file names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.errors import UserError
from gridvlp.progress import track
from gridvlp.sample.questions import (
    GQA_SHARES,
    KINDS,
    VG_SHARES,
    VQA_SHARES,
    Question,
    balanced_questions,
)
from gridvlp.sample.render import Box, render
from gridvlp.sample.scene import SHAPES, Scene, Thing, draw_scene
from gridvlp.sample.statements import captions, choose_statements, region_phrases

VERSION = 1
IMAGES = 1600  # training photos of COCO; the other splits are shares of it
TRUTHFUL = 0.92  # how often an annotator gives the true answer
PAIRS_PER_SET, STATEMENTS_PER_SET = 4, 8
MARKER = "sample-world.json"
QUALITY = 88


@dataclass(frozen=True)
class Photos:
    """The photos of one split: their scenes, files and boxes."""

    name: str
    ids: list[int]
    scenes: list[Scene]
    paths: list[Path]
    boxes: list[list[Box]]


@dataclass(frozen=True)
class SampleSummary:
    """What was written: photos and lines per file or folder."""

    counts: dict[str, int]
    written: bool  # false when the folder held the same world already


def write_sample(folder: Path, images: int = IMAGES, seed: int = 0) -> SampleSummary:
    """Write a deterministic world of scenes below ``folder``/data.

    Args:
        folder: the working folder.
        images: training photos of COCO; all else scales with it.
        seed: decides the world.

    Returns:
        What was written. A call that was interrupted is taken up again; photos that are there
        are kept.

    Raises:
        UserError: too few images, or data/ holds something that this function did not write.
    """
    if images < 40:
        raise UserError(f"--images {images} is too few for a world: give at least 40.")
    data = Path(folder) / "data"
    asked = {"version": VERSION, "images": images, "seed": seed}
    marker = data / MARKER
    if marker.exists():
        found = json.loads(marker.read_text())
        if {name: found.get(name) for name in asked} != asked:
            raise UserError(
                f"{data} holds a sample world made with {found}: remove it, or name another folder."
            )
        if "counts" in found:
            return SampleSummary(found["counts"], written=False)
    elif data.exists() and any(data.iterdir()):
        raise UserError(f"{data} holds other data: name another folder for the sample world.")
    _write(marker, {**asked, "generated": True})

    splits = _take_photos(data, images, seed)
    counts = {f"photos {name}": len(photos.ids) for name, photos in splits.items()}
    counts |= _write_coco(data, splits, seed)
    counts |= _write_visual_genome(data, splits, seed)
    counts |= _write_vqa(data, splits, seed)
    counts |= _write_gqa(data, splits, seed)
    counts |= _write_nlvr2(data, splits, seed)
    _write(marker, {**asked, "generated": True, "counts": counts})
    return SampleSummary(counts, written=True)


# --- photos ----------------------------------------------------------------------------------


def _take_photos(data: Path, images: int, seed: int) -> dict[str, Photos]:
    coco, vg, gqa, nlvr2 = data / "coco", data / "vg", data / "gqa", data / "nlvr2" / "images"
    sizes = {
        "train": images,
        "val": max(8, images // 8),
        "test": max(8, images // 6),
        "vg": max(4, images // 20),
        "testdev": max(8, images // 6),
        "nlvr2-train": 2 * PAIRS_PER_SET * max(2, images // 11),
        "nlvr2-dev": 2 * PAIRS_PER_SET * max(2, images // 64),
        "nlvr2-test1": 2 * PAIRS_PER_SET * max(2, images // 40),
    }
    places = {
        "train": lambda i: coco / "train2017" / f"{i:012}.jpg",
        "val": lambda i: coco / "val2017" / f"{i:012}.jpg",
        "test": lambda i: coco / "test2015" / f"COCO_test2015_{i:012}.jpg",
        "vg": lambda i: vg / _vg_folder(i) / f"{i}.jpg",
        "testdev": lambda i: gqa / "images" / f"n{i}.jpg",
        "nlvr2-train": lambda i: nlvr2 / "train" / str(_pair(i)[0] % 10) / f"train-{_side(i)}.png",
        "nlvr2-dev": lambda i: nlvr2 / "dev" / f"dev-{_side(i)}.png",
        "nlvr2-test1": lambda i: nlvr2 / "test1" / f"test1-{_side(i)}.png",
    }
    first = {"train": 100_001, "val": 300_001, "test": 500_001, "vg": 2_390_001, "testdev": 400_001}
    splits = {}
    jobs = []
    for number, (name, size) in enumerate(sizes.items()):
        ids = [first.get(name, 0) + i for i in range(size)]
        scenes = [draw_scene(np.random.default_rng([seed, number, i])) for i in range(size)]
        paths = [places[name](i) for i in ids]
        jobs += [
            (scene, path, [seed, 50 + number, i])
            for i, (scene, path) in enumerate(zip(scenes, paths, strict=True))
        ]
        splits[name] = Photos(name, ids, scenes, paths, [])
    for folder in sorted({path.parent for _, path, _ in jobs}):
        folder.mkdir(parents=True, exist_ok=True)
    boxes = iter(_render_all(jobs))
    for photos in splits.values():
        photos.boxes.extend(next(boxes) for _ in photos.ids)
    return splits


def _render_all(jobs: Sequence[tuple[Scene, Path, list[int]]]) -> Iterable[list[Box]]:
    boxes = []
    # spawn: the parent may hold threads, which a fork would break
    with (
        track("photos", len(jobs), "photos") as bar,
        ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool,
    ):
        for found in pool.map(_render_one, jobs, chunksize=16):
            boxes.append(found)
            bar.advance()
    return boxes


def _render_one(job: tuple[Scene, Path, list[int]]) -> list[Box]:
    scene, path, seed = job
    photo, boxes = render(scene, np.random.default_rng(seed))
    if not path.exists():
        temporary = path.with_name(f".{path.name}.tmp")
        if path.suffix == ".png" and seed[-1] % 8:  # as in the real set, most are JPEG inside
            photo.save(temporary, format="JPEG", quality=QUALITY)
        elif path.suffix == ".png":
            photo.save(temporary, format="PNG", compress_level=1)
        else:
            photo.save(temporary, format="JPEG", quality=QUALITY)
        os.replace(temporary, path)
    return boxes


def _vg_folder(image: int) -> str:
    return "VG_100K" if image % 2 else "VG_100K_2"


def _vg_id(coco_id: int) -> int:
    return 2_000_000 + coco_id


def _pair(photo: int) -> tuple[int, int, int]:
    """(set, pair, side) of an NLVR2 photo's running number."""
    pair, side = divmod(photo, 2)
    return pair // PAIRS_PER_SET, pair % PAIRS_PER_SET, side


def _side(photo: int) -> str:
    number, pair, side = _pair(photo)
    return f"{number}-{pair}-img{side}"


# --- annotations -----------------------------------------------------------------------------


def _write_coco(data: Path, splits: dict[str, Photos], seed: int) -> dict[str, int]:
    counts = {}
    categories = [
        {"supercategory": "thing", "id": i, "name": shape} for i, shape in enumerate(SHAPES, 1)
    ]
    for split in ("train", "val"):
        photos = splits[split]
        images = [
            {
                "license": 1,
                "file_name": path.name,
                "coco_url": "",
                "height": scene.height,
                "width": scene.width,
                "date_captured": "",
                "flickr_url": "",
                "id": image,
            }
            for image, scene, path in zip(photos.ids, photos.scenes, photos.paths, strict=True)
        ]
        info = {"description": "gridvlp sample world (generated)", "version": str(VERSION)}
        common = {"info": info, "licenses": [{"id": 1, "name": "generated", "url": ""}]}
        told: list[dict[str, Any]] = []
        seen: list[dict[str, Any]] = []
        for image, scene, boxes in zip(photos.ids, photos.scenes, photos.boxes, strict=True):
            rng = np.random.default_rng([seed, 100, image])
            for text in captions(scene, rng):
                told.append({"image_id": image, "id": len(told) + image * 10, "caption": text})
            for number, (thing, (x, y, w, h)) in enumerate(zip(scene.things, boxes, strict=True)):
                seen.append(
                    {
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                        "area": w * h,
                        "iscrowd": 0,
                        "image_id": image,
                        "bbox": [x, y, w, h],
                        "category_id": SHAPES.index(thing.shape) + 1,
                        "id": image * 10 + number,
                    }
                )
        folder = data / "coco" / "annotations"
        _write(
            folder / f"captions_{split}2017.json",
            {**common, "images": images, "annotations": told},
        )
        _write(
            folder / f"instances_{split}2017.json",
            {**common, "images": images, "annotations": seen, "categories": categories},
        )
        counts[f"COCO captions {split}"] = len(told)
    return counts


def _visual_genome_photos(splits: dict[str, Photos]) -> list[tuple[int, int | None, Photos, int]]:
    """(VG id, COCO id or None, photos, place) of all of Visual Genome's photos."""
    listed: list[tuple[int, int | None, Photos, int]] = [
        (_vg_id(image), image, splits[split], place)
        for split in ("train", "val")
        for place, image in enumerate(splits[split].ids)
    ]
    own = splits["vg"]
    return listed + [(image, None, own, place) for place, image in enumerate(own.ids)]


def _write_visual_genome(data: Path, splits: dict[str, Photos], seed: int) -> dict[str, int]:
    folder = data / "vg"
    listed = _visual_genome_photos(splits)
    image_data: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    attributes: list[dict[str, Any]] = []
    regions: list[dict[str, Any]] = []
    region_count = 0
    serial = 1
    for image, coco_id, photos, place in listed:
        scene, boxes = photos.scenes[place], photos.boxes[place]
        if coco_id is not None:
            path = folder / _vg_folder(image) / f"{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                os.link(photos.paths[place], path)
        image_data.append(
            {
                "image_id": image,
                "width": scene.width,
                "height": scene.height,
                "coco_id": coco_id,
                "flickr_id": None,
                "url": "",
            }
        )
        named, described, told = [], [], []
        for thing, (x, y, w, h) in zip(scene.things, boxes, strict=True):
            common = {
                "object_id": serial,
                "x": x,
                "y": y,
                "w": w,
                "h": h,
                "names": [thing.shape],
                "synsets": [f"{thing.shape}.n.01"],
            }
            named.append({**common, "merged_object_ids": []})
            described.append({**common, "attributes": [thing.colour, thing.material, thing.size]})
            for number, phrase in enumerate(region_phrases(thing)):
                told.append(
                    {
                        "region_id": serial * 10 + number,
                        "image_id": image,
                        "x": x,
                        "y": y,
                        "width": w,
                        "height": h,
                        "phrase": phrase,
                    }
                )
            serial += 1
        objects.append({"image_id": image, "objects": named, "image_url": ""})
        attributes.append({"image_id": image, "attributes": described})
        regions.append({"id": image, "regions": told})
        region_count += len(told)

    asked: dict[int, list[dict[str, Any]]] = {image: [] for image, *_ in listed}
    for photos in (splits["train"], splits["val"], splits["vg"]):
        rng = np.random.default_rng([seed, 101, photos.ids[0]])
        for question in balanced_questions(photos.scenes, VG_SHARES, 5, rng):
            image = photos.ids[question.scene]
            image = image if photos.name == "vg" else _vg_id(image)
            asked[image].append(
                {
                    "a_objects": [],
                    "question": question.text,
                    "image_id": image,
                    "qa_id": 0,
                    "answer": question.answer.capitalize() + ".",
                    "q_objects": [],
                }
            )
    answers = []
    for image, qas in asked.items():
        for qa in qas:
            qa["qa_id"] = serial
            serial += 1
        answers.append({"id": image, "qas": qas})
    _write(folder / "image_data.json", image_data)
    _write(folder / "objects.json", objects)
    _write(folder / "attributes.json", attributes)
    _write(folder / "region_descriptions.json", regions)
    _write(folder / "question_answers.json", answers)
    return {
        "photos VG in all": len(listed),
        "VG regions": region_count,
        "VG questions": sum(map(len, asked.values())),
    }


def _write_vqa(data: Path, splits: dict[str, Photos], seed: int) -> dict[str, int]:
    counts = {}
    names = {"train": "train2014", "val": "val2014", "test": "test2015"}
    for split, official in names.items():
        photos = splits[split]
        rng = np.random.default_rng([seed, 102, photos.ids[0]])
        made = balanced_questions(photos.scenes, VQA_SHARES, 9, rng)
        questions, annotations = [], []
        serial: dict[int, int] = {}
        for question in made:
            image = photos.ids[question.scene]
            number = serial[image] = serial.get(image, -1) + 1
            named = {"image_id": image, "question_id": image * 1000 + number}
            questions.append({**named, "question": question.text})
            given = _annotators(question, rng)
            annotations.append(
                {
                    **named,
                    "question_type": KINDS[question.kind].vqa_type,
                    "answer_type": KINDS[question.kind].answer_type,
                    "multiple_choice_answer": question.answer,
                    "answers": given,
                }
            )
        common = {
            "info": {"description": "gridvlp sample world (generated)", "version": "2.0"},
            "license": {"name": "generated", "url": ""},
            "data_type": "mscoco",
            "data_subtype": official,
        }
        _write(
            data / "vqa" / f"v2_OpenEnded_mscoco_{official}_questions.json",
            {**common, "task_type": "Open-Ended", "questions": questions},
        )
        _write(
            data / "vqa" / f"v2_mscoco_{official}_annotations.json",
            {**common, "annotations": annotations},
        )
        counts[f"VQA questions {split}"] = len(questions)
    return counts


def _annotators(question: Question, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Ten answers by people who slip now and then; six at least are right."""
    options = [answer for answer in KINDS[question.kind].answers if answer != question.answer]
    right = rng.random(10) < TRUTHFUL
    right[:6] = True
    given = [
        question.answer if true else options[rng.integers(len(options))]
        for true in rng.permutation(right)
    ]
    return [
        {
            "answer": answer,
            "answer_confidence": "yes" if answer == question.answer else "maybe",
            "answer_id": number,
        }
        for number, answer in enumerate(given, 1)
    ]


def _write_gqa(data: Path, splits: dict[str, Photos], seed: int) -> dict[str, int]:
    counts = {}
    folder = data / "gqa"
    for split, official in (("train", "train"), ("val", "val"), ("testdev", "testdev")):
        photos = splits[split]
        rng = np.random.default_rng([seed, 103, photos.ids[0]])
        names = [f"n{image}" if split == "testdev" else str(_vg_id(image)) for image in photos.ids]
        made = balanced_questions(photos.scenes, GQA_SHARES, 9, rng)
        first = 10_000_000 + 100 * photos.ids[0]
        ids = [str(first + number) for number in range(len(made))]
        same: dict[tuple[int, str, tuple[str, ...]], list[str]] = {}
        for id, question in zip(ids, made, strict=True):
            same.setdefault((question.scene, question.kind, question.arguments), []).append(id)
        entries = {
            id: _gqa_entry(id, question, names, photos, same)
            for id, question in zip(ids, made, strict=True)
        }
        _write(folder / f"{official}_balanced_questions.json", entries)
        counts[f"GQA questions {split}"] = len(entries)
        if split != "testdev":
            graphs = {
                name: _scene_graph(scene, boxes, 10 * image)
                for name, image, scene, boxes in zip(
                    names, photos.ids, photos.scenes, photos.boxes, strict=True
                )
            }
            _write(folder / f"{official}_sceneGraphs.json", graphs)
    return counts


def _gqa_entry(
    id: str,
    question: Question,
    names: list[str],
    photos: Photos,
    same: dict[tuple[int, str, tuple[str, ...]], list[str]],
) -> dict[str, Any]:
    kind = KINDS[question.kind]
    detailed, semantic, structural = kind.gqa_types
    equivalent = same[(question.scene, question.kind, question.arguments)]
    entailed = []
    if question.kind == "color":  # the colour says what the answer to "is it red?" must be
        shape = question.arguments[0]
        entailed = same.get((question.scene, "verify", (question.answer, shape)), [])
        entailed = entailed + same.get((question.scene, "exist", (question.answer, shape)), [])
    program = _program(question, photos.scenes[question.scene], 10 * photos.ids[question.scene])
    steps = [
        f"{step['operation']}: {step['argument']}"
        + "".join(f" [{place}]" for place in step["dependencies"])
        for step in program
    ]
    return {
        "semantic": program,
        "entailed": entailed,
        "equivalent": equivalent,
        "question": question.text,
        "imageId": names[question.scene],
        "isBalanced": True,
        "groups": {
            "global": structural,
            "local": f"{question.kind}-{'_'.join(question.arguments)}",
        },
        "answer": question.answer,
        "semanticStr": "->".join(steps),
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": detailed, "semantic": semantic, "structural": structural},
        "fullAnswer": f"{question.answer.capitalize()}.",
    }


def _program(question: Question, scene: Scene, first: int) -> list[dict[str, Any]]:
    """The question as GQA's functional program."""

    def step(operation: str, dependencies: list[int], argument: str = "") -> dict[str, Any]:
        return {"operation": operation, "dependencies": dependencies, "argument": argument}

    def select(name: str) -> dict[str, Any]:
        found = [first + n for n, thing in enumerate(scene.things) if thing.shape == name]
        return step("select", [], f"{name} ({found[0] if found else '-'})")

    arguments = question.arguments
    if question.kind in ("and", "or"):
        return [
            select(arguments[0]),
            step("exist", [0], "?"),
            select(arguments[1]),
            step("exist", [2], "?"),
            step(question.kind, [1, 3]),
        ]
    if question.kind == "exist":
        return [select(arguments[1]), step("filter", [0], arguments[0]), step("exist", [1], "?")]
    if question.kind == "verify":
        return [select(arguments[1]), step("verify", [0], arguments[0])]
    if question.kind == "shape":
        return [step("select", [], "thing"), step("filter color", [0], arguments[0]),
                step("query", [1], "name")]  # fmt: skip
    return [select(arguments[0]), step("query", [0], question.kind)]


def _scene_graph(scene: Scene, boxes: list[Box], first: int) -> dict[str, Any]:
    def relations(number: int, thing: Thing) -> list[dict[str, str]]:
        return [
            {
                "name": "to the left of" if thing.x < other.x else "to the right of",
                "object": str(first + place),
            }
            for place, other in enumerate(scene.things)
            if place != number
        ]

    return {
        "width": scene.width,
        "height": scene.height,
        "location": "",
        "objects": {
            str(first + number): {
                "name": thing.shape,
                "x": x,
                "y": y,
                "w": w,
                "h": h,
                "attributes": [thing.colour, thing.material, thing.size],
                "relations": relations(number, thing),
            }
            for number, (thing, (x, y, w, h)) in enumerate(zip(scene.things, boxes, strict=True))
        },
    }


def _write_nlvr2(data: Path, splits: dict[str, Photos], seed: int) -> dict[str, int]:
    counts = {}
    for official in ("train", "dev", "test1"):
        photos = splits[f"nlvr2-{official}"]
        rng = np.random.default_rng([seed, 104, len(photos.ids), official == "train"])
        lines = []
        pairs = list(zip(photos.scenes[::2], photos.scenes[1::2], strict=True))
        for number in range(len(pairs) // PAIRS_PER_SET):
            of_set = pairs[number * PAIRS_PER_SET : (number + 1) * PAIRS_PER_SET]
            chosen = choose_statements(of_set, STATEMENTS_PER_SET, rng)
            for pair in range(PAIRS_PER_SET):
                for place, (sentence, truths) in enumerate(chosen):
                    line: dict[str, Any] = {
                        "validation": {"1": str(truths[pair])},
                        "sentence": sentence,
                        "left_url": "",
                        "writer": "1",
                        "label": str(truths[pair]),
                        "right_url": "",
                        "synset": "thing",
                        "query": "generated things",
                        "identifier": f"{official}-{number}-{pair}-{place}",
                        "extra_validations": {},
                    }
                    if official == "train":
                        line["directory"] = number % 10
                    lines.append(json.dumps(line))
        _write_text(data / "nlvr2" / f"{official}.json", "\n".join(lines) + "\n")
        counts[f"NLVR2 lines {official}"] = len(lines)
    return counts


def _write(path: Path, value: object) -> None:
    _write_text(path, json.dumps(value))


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
