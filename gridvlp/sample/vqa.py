"""VQA v2: questions, and the answers of ten annotators who slip now and then."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.sample.files import write_json
from gridvlp.sample.photos import Photos
from gridvlp.sample.questions import VQA_SHARES, Question, answers_of, balanced_questions

SPLITS = {"train": "train2014", "val": "val2014", "test": "test2015"}
QUESTIONS_PER_PHOTO = 9
ANNOTATORS = 10
TRUTHFUL = 0.95  # how often an annotator is right; slips more often would reward wrong answers
MOST_SLIPS = 4  # of the ten: the true answer stays the commonest
# Those of VQA's 65 official question types that occur here; a type is a prefix of the question.
QUESTION_TYPES = (
    "is there a", "is there", "do you", "is the", "is this", "does the", "what color is the",
    "what is the color of the", "what is the", "what", "what kind of", "what type of", "how",
    "how many",
)  # fmt: skip


def write_vqa(data: Path, splits: dict[str, Photos], seed: int) -> dict[str, int]:
    """Write questions and annotations of the three splits; returns the counts."""
    counts = {}
    for split, official in SPLITS.items():
        photos = splits[split]
        rng = np.random.default_rng([seed, 103, photos.ids[0]])
        questions: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        of_image: Counter[int] = Counter()
        for question in balanced_questions(photos.scenes, VQA_SHARES, QUESTIONS_PER_PHOTO, rng):
            image = photos.ids[question.scene]
            id = 1000 * image + of_image[image]
            of_image[image] += 1
            questions.append({"image_id": image, "question": question.text, "question_id": id})
            annotations.append(
                {
                    "question_type": question_type(question.text),
                    "multiple_choice_answer": question.answer,
                    "answers": _annotators(question, rng),
                    "image_id": image,
                    "answer_type": _answer_type(question),
                    "question_id": id,
                }
            )
        common = {
            "info": {"description": "gridvlp sample world (generated)", "version": "2.0"},
            "license": {"url": "", "name": "generated"},
            "data_type": "mscoco",
            "data_subtype": official,
        }
        write_json(
            data / "vqa" / f"v2_OpenEnded_mscoco_{official}_questions.json",
            {**common, "task_type": "Open-Ended", "questions": questions},
        )
        write_json(
            data / "vqa" / f"v2_mscoco_{official}_annotations.json",
            {**common, "annotations": annotations},
        )
        counts[f"VQA questions {split}"] = len(questions)
    return counts


def question_type(text: str) -> str:
    """The longest of the official question types with which the question begins."""
    return max((t for t in QUESTION_TYPES if text.lower().startswith(f"{t} ")), key=len)


def _answer_type(question: Question) -> str:
    if question.answer in ("yes", "no"):
        return "yes/no"
    return "number" if question.kind == "count" else "other"


def _annotators(question: Question, rng: np.random.Generator) -> list[dict[str, Any]]:
    others = [answer for answer in answers_of(question.kind) if answer != question.answer]
    slips = np.flatnonzero(rng.random(ANNOTATORS) >= TRUTHFUL)[:MOST_SLIPS]
    given = [question.answer] * ANNOTATORS
    for annotator in slips:
        given[annotator] = others[rng.integers(len(others))]
    return [
        {
            "answer": answer,
            "answer_confidence": "maybe" if answer != question.answer else "yes",
            "answer_id": number,
        }
        for number, answer in enumerate(given, 1)
    ]
