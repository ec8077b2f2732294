"""The photos of all splits: their scenes, files and boxes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal

import numpy as np

from gridvlp.run.progress import track
from gridvlp.sample.files import new_file
from gridvlp.sample.render import Box, box_of, render
from gridvlp.sample.scene import Scene, draw_scene

QUALITY = 88  # of the JPEGs
PAIRS_PER_SET = 4  # NLVR2: each sentence is about the four pairs of a set
PNG_SHARE = 16  # one in so many of NLVR2's .png is PNG; the others are JPEG, as many of NLVR2's
DIRECTORIES = 10  # of NLVR2's training photos

Job = tuple[Scene, Path, list[int]]


@dataclass(frozen=True)
class Photos:
    """The photos of one split; the lists run in parallel.

    ``ids`` are those of COCO (train, val, test), Visual Genome (vg), GQA (testdev) or running
    numbers (nlvr2-*).
    """

    name: str
    ids: list[int]
    scenes: list[Scene]
    paths: list[Path]
    boxes: list[list[Box]]


def take_photos(data: Path, images: int, seed: int) -> dict[str, Photos]:
    """Draw the scenes of every split and write their photos below ``data``.

    The outcome depends on the numbers given alone, not on how many processes share the work.
    """
    coco, nlvr2 = data / "coco", data / "nlvr2" / "images"
    plan: dict[str, tuple[int, int, Callable[[int], Path]]] = {  # photos, first id, file of an id
        "train": (images, 100_001, lambda i: coco / "train2017" / f"{i:012}.jpg"),
        "val": (max(8, images // 8), 300_001, lambda i: coco / "val2017" / f"{i:012}.jpg"),
        "test": (
            max(8, images * 5 // 32),
            500_001,
            lambda i: coco / "test2015" / f"COCO_test2015_{i:012}.jpg",
        ),
        "vg": (max(4, images // 20), 2_390_001, lambda i: visual_genome_file(data, i)),
        "testdev": (
            max(8, images * 5 // 32),
            400_001,
            lambda i: data / "gqa" / "images" / f"n{i}.jpg",
        ),
        "nlvr2-train": (
            _photos_of_sets(images * 9 // 64),
            0,
            lambda i: nlvr2 / "train" / str(_set_of(i) % DIRECTORIES) / f"train-{_side(i)}.png",
        ),
        "nlvr2-dev": (
            _photos_of_sets(images // 53),
            0,
            lambda i: nlvr2 / "dev" / f"dev-{_side(i)}.png",
        ),
        "nlvr2-test1": (
            _photos_of_sets(images // 42),
            0,
            lambda i: nlvr2 / "test1" / f"test1-{_side(i)}.png",
        ),
    }
    splits: dict[str, Photos] = {}
    jobs: list[Job] = []
    for number, (name, (size, first, place)) in enumerate(plan.items()):
        ids = [first + i for i in range(size)]
        scenes = [draw_scene(np.random.default_rng([seed, number, i])) for i in range(size)]
        paths = [place(i) for i in ids]
        for i, (scene, path) in enumerate(zip(scenes, paths, strict=True)):
            jobs.append((scene, path, [seed, 50 + number, i]))
        splits[name] = Photos(name, ids, scenes, paths, [])
    boxes = iter(_render_all(jobs))
    for photos in splits.values():
        photos.boxes.extend(next(boxes) for _ in photos.ids)
    return splits


def visual_genome_id(coco_id: int) -> int:
    """Visual Genome's number of a COCO photo."""
    return 2_000_000 + coco_id


def visual_genome_file(data: Path, image: int) -> Path:
    """Where Visual Genome keeps a photo: one of two folders."""
    return data / "vg" / ("VG_100K" if image % 2 else "VG_100K_2") / f"{image}.jpg"


def object_id(image: int, number: int) -> int:
    """The number of a thing in Visual Genome and GQA; ``image`` is an id of Photos."""
    return 10 * image + number


def _photos_of_sets(sets: int) -> int:
    return 2 * PAIRS_PER_SET * max(2, sets)


def _set_of(photo: int) -> int:
    return photo // (2 * PAIRS_PER_SET)


def _side(photo: int) -> str:
    pair, side = divmod(photo, 2)
    return f"{_set_of(photo)}-{pair % PAIRS_PER_SET}-img{side}"


def _render_all(jobs: Sequence[Job]) -> list[list[Box]]:
    boxes = []
    # spawn: the parent may hold threads, which a fork would break. Ctrl-C is the parent's.
    pool = ProcessPoolExecutor(_processors(), get_context("spawn"), signal, (SIGINT, SIG_IGN))
    with track("sample-data", len(jobs), "photos") as bar:
        try:
            for found in pool.map(_render_one, jobs, chunksize=16):
                boxes.append(found)
                bar.advance()
        finally:
            pool.shutdown(cancel_futures=True)
    return boxes


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _render_one(job: Job) -> list[Box]:
    scene, path, seed = job
    photo, seen_HW = render(scene, np.random.default_rng(seed))
    with new_file(path) as temporary:
        if path.suffix == ".png" and seed[-1] % PNG_SHARE == 0:
            photo.save(temporary, format="PNG", compress_level=1)
        else:
            photo.save(temporary, format="JPEG", quality=QUALITY)
    return [box_of(seen_HW, number) for number in range(len(scene.things))]
