"""A world small enough to be read here: squares that are red or blue, in the official formats."""

import json
from pathlib import Path

import numpy as np

from gridvlp.store import StoreWriter

CHANNELS = 8
COLOURS = ("red", "blue")


def colour_of(image: int) -> str:
    return COLOURS[image % 2]


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_data(data: Path) -> None:
    """48 COCO photos (train 1-32, val 33-48) with captions and VQA, and NLVR2 pairs of 24 more."""
    for split, images in (("train", range(1, 33)), ("val", range(33, 49))):
        captions = [
            {"id": 10 * i + n, "image_id": i, "caption": text.format(colour_of(i))}
            for i in images
            for n, text in enumerate(("A {} square.", "there is a {} square", "one {} thing here"))
        ]
        photos = [{"id": i, "file_name": f"{i:012}.jpg"} for i in images]
        write(
            data / f"coco/annotations/captions_{split}2017.json",
            {"images": photos, "annotations": captions},
        )
        questions, annotations = [], []
        for i in images:
            for n, (asked, answer) in enumerate(
                (
                    ("What color is the square?", colour_of(i)),
                    ("Is the square red?", "yes" if colour_of(i) == "red" else "no"),
                )
            ):
                named = {"question_id": 10 * i + n, "image_id": i}
                questions.append({**named, "question": asked})
                annotations.append(
                    {
                        **named,
                        "question_type": asked.split()[0].lower(),
                        "answer_type": "yes/no" if n else "other",
                        "multiple_choice_answer": answer,
                        "answers": [
                            {"answer": answer, "answer_confidence": "yes", "answer_id": k}
                            for k in range(1, 11)
                        ],
                    }
                )
        write(
            data / f"vqa/v2_OpenEnded_mscoco_{split}2014_questions.json", {"questions": questions}
        )
        write(data / f"vqa/v2_mscoco_{split}2014_annotations.json", {"annotations": annotations})
    for split, pairs in (("train", range(16)), ("dev", range(16, 24))):
        lines = []
        for i in pairs:
            left, right = i % 2, (i // 2) % 2
            for n, (text, true) in enumerate(
                (
                    ("The left square is red.", left == 0),
                    ("Both squares are blue.", left + right == 2),
                )
            ):
                lines.append(
                    json.dumps(
                        {
                            "identifier": f"{split}-{i}-0-{n}",
                            "sentence": text,
                            "label": str(true),
                            "directory": 1,
                        }
                    )
                )
        path = data / f"nlvr2/{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def grid_map(colour: int, rng: np.random.Generator) -> np.ndarray:
    height, width = rng.integers(2, 5, size=2)
    map_CHW = rng.random((CHANNELS, height, width)).astype(np.float32) * 0.2
    map_CHW[colour] += 1.0
    return map_CHW


def write_store(path: Path, kind: str = "grids") -> None:
    """The maps of all photos; of kind "regions", each grid is a region with a box somewhere."""
    rng = np.random.default_rng(0)
    with StoreWriter.create(
        path,
        channels=CHANNELS,
        max_grids=16,
        dtype="float16",
        encoder={"name": "squares", "weights_sha256": "0" * 64},
        kind=kind,
    ) as writer:

        def add(key: str, colour: int) -> None:
            map_CHW = grid_map(colour, rng)
            if kind == "grids":
                writer.add(key, map_CHW)
                return
            map_C1N = map_CHW.reshape(CHANNELS, 1, -1)
            corners = np.sort(rng.random((map_C1N.shape[2], 2, 2)), axis=1)  # (x1, y1), (x2, y2)
            writer.add(key, map_C1N, corners.reshape(-1, 4).astype(np.float32))

        for image in range(1, 49):
            add(f"{image:012}", image % 2)
        for split, pairs in (("train", range(16)), ("dev", range(16, 24))):
            for i in pairs:
                add(f"{split}-{i}-0-img0", i % 2)
                add(f"{split}-{i}-0-img1", (i // 2) % 2)
