"""Pairs (photo, sentence) and answers from the official files of each pre-training data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gridvlp.data import json_files, json_values
from gridvlp.data.image_ids import ImageIds, coco_id
from gridvlp.train.answers import normalize_answer, soft_score

# Keys under which the photo's map may be, the sentence, (answer, score)s.
Pair = tuple[tuple[str, ...], Any, Iterable[tuple[str, float]]]
Advance = json_files.Advance


def _coco_captions(files: Sequence[Path], ids: ImageIds, advance: Advance) -> Iterator[Pair]:
    seen: set[int] = set()  # the 2014 and the 2017 release hold the same captions
    for path in files:
        unique = json_values.Unique(path, "annotation id")
        for number, entry in enumerate(json_files.elements(path, "annotations", advance)):
            id = json_values.integer(entry, "id", path, number)
            unique.add(id, number)
            if id not in seen:
                seen.add(id)
                image = coco_id(entry, "image_id", path, number)
                yield (ids.coco(image),), json_values.field(entry, "caption", path, number), ()


def _vg_regions(files: Sequence[Path], ids: ImageIds, advance: Advance) -> Iterator[Pair]:
    for path in files:
        for number, entry in enumerate(json_files.elements(path, None, advance)):
            for region in json_values.array(entry, "regions", path, number):
                image = _vg_image(region, entry, path, number)
                phrase = json_values.field(region, "phrase", path, number)
                yield ids.visual_genome(image), phrase, ()


def _vg_qa(files: Sequence[Path], ids: ImageIds, advance: Advance) -> Iterator[Pair]:
    for path in files:
        for number, entry in enumerate(json_files.elements(path, None, advance)):
            for qa in json_values.array(entry, "qas", path, number):
                image = _vg_image(qa, entry, path, number)
                question = json_values.field(qa, "question", path, number)
                answer = json_values.string(qa, "answer", path, number)
                yield ids.visual_genome(image), question, ((normalize_answer(answer), 1.0),)


def _vqa(files: Sequence[Path], ids: ImageIds, advance: Advance) -> Iterator[Pair]:
    for questions in files[::2]:
        annotations = _vqa_annotations(questions)
        soft: dict[int, tuple[tuple[str, float], ...]] = {}
        unique = json_values.Unique(annotations, "question_id")
        known: dict[str, str] = {}  # few answers, many annotators: normalise each once
        for number, entry in enumerate(json_files.elements(annotations, "annotations", advance)):
            counts: dict[str, int] = {}
            for human in json_values.array(entry, "answers", annotations, number):
                raw = json_values.string(human, "answer", annotations, number)
                answer = known.setdefault(raw, normalize_answer(raw))
                counts[answer] = counts.get(answer, 0) + 1
            id = json_values.integer(entry, "question_id", annotations, number)
            unique.add(id, number)
            soft[id] = tuple((answer, soft_score(n)) for answer, n in counts.items())
        unique = json_values.Unique(questions, "question_id")
        for number, entry in enumerate(json_files.elements(questions, "questions", advance)):
            image = coco_id(entry, "image_id", questions, number)
            question = json_values.field(entry, "question", questions, number)
            id = json_values.integer(entry, "question_id", questions, number)
            unique.add(id, number)
            yield (ids.coco(image),), question, soft.get(id, ())


def _gqa(files: Sequence[Path], ids: ImageIds, advance: Advance) -> Iterator[Pair]:
    for path in files:
        unique = json_values.Unique(path, "question id")
        for number, (id, entry) in enumerate(json_files.items(path, advance)):
            unique.add(id, number)
            image = json_values.name(entry, "imageId", path, id)
            question = json_values.field(entry, "question", path, id)
            answer = normalize_answer(json_values.string(entry, "answer", path, id))
            yield ids.gqa(image), question, ((answer, 1.0),)


def _vg_image(entry: Any, image: Any, path: Path, number: int) -> int:
    """An entry's image_id, which Visual Genome repeats from the image that holds it."""
    if isinstance(entry, dict) and "image_id" in entry:
        return json_values.integer(entry, "image_id", path, number)
    return json_values.integer(image, "id", path, number)


def _vqa_annotations(questions: Path) -> Path:
    name = questions.name.replace("_OpenEnded", "").replace("_questions", "_annotations")
    return questions.with_name(name)


READERS: dict[str, Callable[[Sequence[Path], ImageIds, Advance], Iterator[Pair]]] = {
    "coco-captions": _coco_captions,
    "vg-regions": _vg_regions,
    "vqa": _vqa,
    "gqa": _gqa,
    "vg-qa": _vg_qa,
}
SOURCES = tuple(READERS)  # the paper, section 4.1


def source_files(data: Path, source: str) -> tuple[list[Path], list[Path]]:
    """The files of a source that are there, and those that are not.

    Captions of either release will do, and Visual Genome is one file; VQA questions count only
    with their annotations, which follow them in the list.
    """
    data = Path(data)
    if source == "coco-captions":
        folder = data / "coco" / "annotations"
        years = [[folder / f"captions_{s}{y}.json" for s in ("train", "val")] for y in (2017, 2014)]
        present = [path for paths in years for path in paths if path.is_file()]
        whole = any(all(path in present for path in paths) for paths in years)
        return present, [] if whole else [path for path in years[0] if path not in present]
    if source == "vqa":
        groups = []
        for split in ("train2014", "val2014"):
            questions = data / "vqa" / f"v2_OpenEnded_mscoco_{split}_questions.json"
            groups.append([questions, _vqa_annotations(questions)])
    elif source == "gqa":
        groups = [[data / "gqa" / f"{s}_balanced_questions.json"] for s in ("train", "val")]
    else:
        name = {"vg-regions": "region_descriptions.json", "vg-qa": "question_answers.json"}[source]
        groups = [[data / "vg" / name]]
    present = [path for group in groups if all(map(Path.is_file, group)) for path in group]
    return present, [path for group in groups for path in group if not path.is_file()]
