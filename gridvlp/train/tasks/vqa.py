"""VQA v2: one question, one photo, ten human answers (Goyal et al. 2017)."""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridvlp.data import json_files, json_values
from gridvlp.data.image_ids import ImageIds, coco_id
from gridvlp.errors import UserError
from gridvlp.train.answers import NUMBER_WORDS, soft_score
from gridvlp.train.corpus.leakage import minival
from gridvlp.train.tasks.task import Example, Reader, Task, json_text, percent

if TYPE_CHECKING:
    from torch import Tensor

OCCURRENCES = (
    9  # an answer seen less often is no class (bottom-up attention, LXMERT: 3,129 classes)
)
ENOUGH = 4  # answers: three others agree with each, which the official accuracy asks for
EXACT = "exact match"
COVERAGE = 0.8  # ours: below this share of questions with a class, OCCURRENCES is lowered


@dataclass(frozen=True, slots=True)
class Truth:
    """What the official accuracy needs: the annotators' answers, and two types to report by."""

    answers: tuple[str, ...]
    answer_type: str
    question_type: str


class VQA(Task):
    """VQA v2 with soft targets and the official accuracy.

    Splits: ``train`` is train2014; ``val`` is val2014, which divides into ``minival`` (COCO's 2017
    validation photos) and ``nominival`` (the others, trained on too, as LXMERT does); where no
    list of the 2017 split is there, all of val2014 is minival. ``test-dev`` and ``test`` have no
    labels, unless v2_mscoco_test2015_annotations.json stands beside the questions.
    """

    name = "vqa"
    splits = ("train", "nominival", "minival", "val", "test-dev", "test")
    aliases = {"test2015": "test", "test-std": "test", "test-dev2015": "test-dev"}  # noqa: RUF012
    train_splits = ("train", "nominival")
    valid_split = "minival"
    test_split = "test"

    def files(self, data: Path, split: str) -> list[Path]:
        """Questions, and for train and val the annotations."""
        questions, annotations = _files(data, split)
        return [questions] if split.startswith("test") else [questions, annotations]

    def photo_folders(self, data: Path, split: str) -> list[Path]:
        """COCO's folders; the 2017 release holds the same photos in other folders."""
        years = {"train": ("train2014", "train2017"), "test": ("test2015",)}
        folders = years["test"] if split.startswith("test") else years.get(split)
        return [Path(data) / "coco" / f for f in folders or ("val2014", "val2017", "train2017")]

    def count_answers(self, data: Path) -> list[str]:
        """Normalised majority answers seen at least 9 times in train + val (RECIPES: 3,129)."""
        counts: Counter[str] = Counter()
        for split in ("train", "val"):
            path = _files(data, split)[1]
            if split == "train" or path.is_file():
                for number, entry in enumerate(json_files.elements(path, "annotations")):
                    counts[_class_name(_majority_answer(entry, path, number))] += 1
            else:
                self.notes.append(f"classes from train alone: {path} is not there")
        total = sum(counts.values())
        if not total:
            raise UserError(f"{_files(data, 'train')[1]} has no annotations.")
        least = next(
            least
            for least in range(OCCURRENCES, 0, -1)
            if sum(n for n in counts.values() if n >= least) >= COVERAGE * total or least == 1
        )
        if least < OCCURRENCES:
            self.notes.append(
                f"few questions: answers seen {least} times or more are classes "
                f"(the official rule is {OCCURRENCES})"
            )
        return sorted(answer for answer, n in counts.items() if n >= least)

    def _read(self, data: Path, split: str, reader: Reader) -> None:
        questions, annotations = _files(data, split)
        labels = _annotations(annotations) if annotations.is_file() else {}
        held_out = minival(data) if split in ("minival", "nominival") else None
        if split in ("minival", "nominival") and held_out is None:
            reader.report.notes.append(
                "captions_val2017.json is not there to list minival: all of val2014 is minival"
            )
        matched = 0
        for number, entry in enumerate(json_files.elements(questions, "questions")):
            id = json_values.integer(entry, "question_id", questions, number)
            image = coco_id(entry, "image_id", questions, number)
            truth = labels.get(id)
            matched += truth is not None
            in_minival = held_out is None or image in held_out
            if split in ("minival", "nominival") and in_minival != (split == "minival"):
                continue
            reader.add(
                str(id),
                json_values.field(entry, "question", questions, number),
                [(ImageIds.coco(image),)],
                _soft_target(truth.answers) if truth else (),
                truth.question_type if truth else "",
                truth,
                number,
            )
        if labels and not matched:
            raise UserError(
                f"No question of {questions} has an annotation in {annotations}: these two files "
                "are not of one split."
            )
        if len(labels) > matched:
            reader.report.notes.append(f"{len(labels) - matched:,} annotations without a question")

    def loss(self, logits_BA: Tensor, targets_BA: Tensor) -> Tensor:
        """Binary cross-entropy, mean times the number of classes (LXMERT)."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(logits_BA, targets_BA) * logits_BA.shape[1]

    def credit(self, truth: Truth, answer: str) -> float:
        """The official accuracy of one answer."""
        return vqa_accuracy(answer, truth.answers)

    def score(self, examples: Sequence[Example], predicted: Sequence[str]) -> dict[str, float]:
        """Official accuracy: of all, per answer type, per question type.

        Where no question has a second answer, "exact match" is there, too: the share of answers
        that are the annotator's, as classes are written.
        """
        groups: dict[str, list[float]] = defaultdict(list)
        everything: list[float] = []
        pairs = self.labelled(examples, predicted)
        for example, answer in pairs:
            value = self.credit(example.truth, answer)
            everything.append(value)
            if example.truth.answer_type:
                groups[f"answer type: {example.truth.answer_type}"].append(value)
            if example.truth.question_type:
                groups[f"question type: {example.truth.question_type}"].append(value)
        scores = {"accuracy": percent(everything)}
        if self.decisive(examples) == EXACT:
            scores[EXACT] = percent(
                [float(_class_name(e.truth.answers[0]) == _class_name(a)) for e, a in pairs]
            )
        return scores | {k: percent(groups[k]) for k in sorted(groups)}

    def decisive(self, examples: Sequence[Example]) -> str:
        """Exact match where no question has a second answer: the official accuracy is 0 there."""
        labelled = [example.truth for example in examples if example.truth is not None]
        alone = labelled and all(len(truth.answers) == 1 for truth in labelled)
        return EXACT if alone else "accuracy"

    def remarks(self, examples: Sequence[Example]) -> list[str]:
        """How far the official accuracy can go where few people answered."""
        truths = [example.truth for example in examples if example.truth is not None]
        if all(len(truth.answers) >= ENOUGH for truth in truths):
            return []
        best = [max(vqa_accuracy(a, t.answers) for a in set(t.answers)) for t in truths]
        few = [b for b, t in zip(best, truths, strict=True) if len(t.answers) < ENOUGH]
        line = (
            f"{len(few):,} of {len(best):,} questions have fewer than {ENOUGH} answers: the "
            f"official accuracy cannot exceed {percent(few):.1f}% on them, "
            f"{percent(best):.1f}% on the whole split"
        )
        if self.decisive(examples) == EXACT:
            line += "; exact match is given beside it, and decides the best epoch"
        return [line]

    def submission(self, ids: Sequence[str], answers: Sequence[str]) -> str:
        """``[{"question_id": int, "answer": str}, ...]``, as EvalAI takes it."""
        entries = zip(ids, answers, strict=True)
        return json_text([{"question_id": int(id), "answer": answer} for id, answer in entries])


def vqa_accuracy(answer: str, humans: Sequence[str]) -> float:
    """Official accuracy of one answer, from 0 to 1.

    The mean, over the ways to leave one annotator out, of min(1, agreeing others / 3). Both sides
    go through ``official_text`` only where the annotators disagree, as in the official evaluator.
    """
    humans, answer = [_one_line(human) for human in humans], _one_line(answer)
    if len(set(humans)) > 1:
        humans, answer = [official_text(human) for human in humans], official_text(answer)
    agree = [human == answer for human in humans]
    total = sum(agree)
    return sum(min(1.0, (total - one) / 3) for one in agree) / len(agree)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Digits are 0 to 9: the official evaluator is Python 2's, where a pattern knows no others.
_PERIODS = re.compile(r"\.(?!\d)", re.ASCII)
_COMMA_IN_NUMBER = re.compile(r"\d,\d", re.ASCII)
# The official evaluator passes a flag where re.sub takes a count, so that it removes at most:
_PERIODS_REMOVED = 32
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {"none": "0", "zero": "0"} | {w: str(n) for n, w in enumerate(NUMBER_WORDS, 1)}
# Words to which an apostrophe is restored when exactly one is missing. The official table has a
# few entries that do nothing (words in upper case, "let's") and they are not repeated here.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
    hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
    who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in _CONTRACTED.split()
    for at, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


@lru_cache(maxsize=1 << 17)
def official_text(answer: str) -> str:
    """An answer as the official evaluator compares it.

    Punctuation goes (to a space, unless it stands beside a space or the answer has a number with a
    comma), full stops too unless a digit follows; then lower case, number words to digits,
    articles out, apostrophes of contractions restored.
    """
    text = answer
    number = _COMMA_IN_NUMBER.search(answer) is not None
    for mark in _PUNCTUATION:
        if mark in text:
            beside_space = f"{mark} " in answer or f" {mark}" in answer
            text = text.replace(mark, "" if beside_space or number else " ")
    text = _PERIODS.sub("", text, count=_PERIODS_REMOVED)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _class_name(answer: str) -> str:
    """``official_text`` without commas: how the 3,129 classes are written."""
    return official_text(answer).replace(",", "")


def _soft_target(answers: Iterable[str]) -> Iterator[tuple[str, float]]:
    for answer, annotators in Counter(map(_class_name, answers)).items():
        yield answer, soft_score(annotators)


def _files(data: Path, split: str) -> tuple[Path, Path]:
    name = {"train": "train2014", "test": "test2015", "test-dev": "test-dev2015"}
    folder, part = Path(data) / "vqa", name.get(split, "val2014")
    return (
        folder / f"v2_OpenEnded_mscoco_{part}_questions.json",
        folder / f"v2_mscoco_{part}_annotations.json",
    )


def _annotations(path: Path) -> dict[int, Truth]:
    labels = {}
    unique = json_values.Unique(path, "question_id")
    for number, entry in enumerate(json_files.elements(path, "annotations")):
        id = json_values.integer(entry, "question_id", path, number)
        unique.add(id, number)
        answers = _answers(entry, path, number)
        if answers:
            # Interned: 4.4 million answers are 200 thousand different ones.
            types = (
                json_values.optional(json_values.string, "", entry, key, path, number)
                for key in ("answer_type", "question_type")
            )
            labels[id] = Truth(tuple(map(sys.intern, answers)), *map(sys.intern, types))
    return labels


def _answers(entry: Any, path: Path, number: int) -> list[str]:
    answers = json_values.array(entry, "answers", path, number)
    return [json_values.string(answer, "answer", path, number) for answer in answers]


def _majority_answer(entry: Any, path: Path, number: int) -> str:
    key = "multiple_choice_answer"
    answer = json_values.optional(json_values.string, None, entry, key, path, number)
    if answer is None:  # a file without it: what it is made of, in the annotators' order
        counts = Counter(_answers(entry, path, number))
        answer = max(counts, key=counts.__getitem__) if counts else ""
    return answer
