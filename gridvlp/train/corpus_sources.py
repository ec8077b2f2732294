"""Pairs (photo, sentence) and answers from the official files of each pre-training data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gridvlp import json_files
from gridvlp.image_ids import ImageIds
from gridvlp.train.answers import normalize_answer, soft_score

# Keys under which the photo's map may be, the sentence, (answer, score)s.
Pair = tuple[tuple[str, ...], Any, Iterable[tuple[str, float]]]
Advance = Callable[[int], None]  # told the characters read


def _coco_captions(files: Sequence[Path], ids: ImageIds, advance: Advance) -> Iterator[Pair]:
    seen: set[int] = set()  # the 2014 and the 2017 release hold the same captions
    for path in files:
        for number, entry in enumerate(json_files.elements(path, "annotations", advance)):
            if (id := json_files.integer(entry, "id", path, number)) not in seen:
                seen.add(id)
                image = json_files.integer(entry, "image_id", path, number)
                yield (ids.coco(image),), json_files.field(entry, "caption", path, number), ()


def _vg_regions(files: Sequence[Path], ids: ImageIds, advance: Advance) -> Iterator[Pair]:
    for path in files:
        for number, entry in enumerate(json_files.elements(path, None, advance)):
            for region in json_files.field(entry, "regions", path, number):
                image = _vg_image(region, entry, path, number)
                phrase = json_files.field(region, "phrase", path, number)
                yield ids.visual_genome(image), phrase, ()


def _vg_qa(files: Sequence[Path], ids: ImageIds, advance: Advance) -> Iterator[Pair]:
    for path in files:
        for number, entry in enumerate(json_files.elements(path, None, advance)):
            for qa in json_files.field(entry, "qas", path, number):
                image = _vg_image(qa, entry, path, number)
                question = json_files.field(qa, "question", path, number)
                answer = str(json_files.field(qa, "answer", path, number))
                yield ids.visual_genome(image), question, ((normalize_answer(answer), 1.0),)


def _vqa(files: Sequence[Path], ids: ImageIds, advance: Advance) -> Iterator[Pair]:
    for questions in files[::2]:
        annotations = _vqa_annotations(questions)
        soft: dict[int, tuple[tuple[str, float], ...]] = {}
        known: dict[str, str] = {}  # few answers, many annotators: normalise each once
        for number, entry in enumerate(json_files.elements(annotations, "annotations", advance)):
            counts: dict[str, int] = {}
            for human in json_files.field(entry, "answers", annotations, number):
                raw = str(json_files.field(human, "answer", annotations, number))
                answer = known.setdefault(raw, normalize_answer(raw))
                counts[answer] = counts.get(answer, 0) + 1
            id = json_files.integer(entry, "question_id", annotations, number)
            soft[id] = tuple((answer, soft_score(n)) for answer, n in counts.items())
        for number, entry in enumerate(json_files.elements(questions, "questions", advance)):
            image = json_files.integer(entry, "image_id", questions, number)
            question = json_files.field(entry, "question", questions, number)
            id = json_files.integer(entry, "question_id", questions, number)
            yield (ids.coco(image),), question, soft.get(id, ())


def _gqa(files: Sequence[Path], ids: ImageIds, advance: Advance) -> Iterator[Pair]:
    for path in files:
        for id, entry in json_files.items(path, advance):
            image = json_files.field(entry, "imageId", path, id)
            question = json_files.field(entry, "question", path, id)
            answer = normalize_answer(str(json_files.field(entry, "answer", path, id)))
            yield ids.gqa(image), question, ((answer, 1.0),)


def _vg_image(entry: Any, image: Any, path: Path, number: int) -> int:
    """An entry's image_id, which Visual Genome repeats from the image that holds it."""
    if "image_id" in entry:
        return json_files.integer(entry, "image_id", path, number)
    return json_files.integer(image, "id", path, number)


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
