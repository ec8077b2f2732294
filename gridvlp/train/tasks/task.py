"""What a task is: its records, its head, its loss, its metric, its submission file.

A new task is one file with one subclass of ``Task`` (docs/tasks.md).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gridvlp.atomic import write_text
from gridvlp.data import json_values
from gridvlp.data.image_ids import first_present
from gridvlp.errors import UserError
from gridvlp.train.answers import AnswerVocabulary
from gridvlp.train.options import FINE_TUNING, TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 5  # names of missing photos in a report


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a task.

    Attributes:
        id: the official id, as text.
        sentence: question or statement.
        images: ``images_per_example`` store keys.
        target: (answer id, score) pairs; empty when unlabelled or outside the vocabulary.
        kind: the question's type, for the majority baseline.
        truth: what the task's metric needs; None when the line has no label.
    """

    id: str
    sentence: str
    images: tuple[str, ...]
    target: tuple[tuple[int, float], ...]
    kind: str
    truth: Any


@dataclass
class SplitReport:
    """What became of the lines of a split's files; nothing is dropped without being counted here.

    Attributes:
        lines: in the files, for this split.
        used: examples made of them.
        without_photo: lines left out because a photo is not in the store.
        empty: lines left out because the sentence is empty.
        unlabelled: examples without a label (all of them in the servers' test splits).
        outside_vocabulary: labelled examples none of whose answers is a class.
        missing_photos: the names of a few photos that are not in the store.
        notes: anything else worth a line.
    """

    task: str
    split: str
    lines: int = 0
    used: int = 0
    without_photo: int = 0
    empty: int = 0
    unlabelled: int = 0
    outside_vocabulary: int = 0
    missing_photos: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines_of_text(self) -> list[str]:
        """The report, to be printed; the first line has all the counts that are not 0."""
        counts = [f"{self.lines:,} lines", f"{self.used:,} used"]
        for name, value in (
            ("without a photo in the store", self.without_photo),
            ("with an empty sentence", self.empty),
            ("without a label", self.unlabelled),
            ("whose answer is no class", self.outside_vocabulary),
        ):
            if value:
                counts.append(f"{value:,} {name}")
        text = [f"{self.task} {self.split}: {', '.join(counts)}"]
        if self.missing_photos:
            more = ", ..." if self.without_photo > len(self.missing_photos) else ""
            text.append(f"  photos not in the store: {', '.join(self.missing_photos)}{more}")
        return text + [f"  {note}" for note in self.notes]


@dataclass
class Split:
    """The examples of a split, in the order of the file, and the report on it.

    ``skipped``: ids of the lines that were left out; a server may want an answer for them too.
    """

    examples: list[Example]
    report: SplitReport
    skipped: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> bool:
        """Whether there is anything to score."""
        return any(example.truth is not None for example in self.examples)


class Task(ABC):
    """Base of all tasks.

    Args:
        answers: the class names, in order; None to build them with ``build_answers``.
        options: the task's own, from ``choices``; the first of each is the default.

    Attributes:
        answers: the class names; the file's, or those built.
        options: the value of each.
        notes: how the classes came about, for a report.
    """

    name: ClassVar[str]
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    images_per_example: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]]
    aliases: ClassVar[dict[str, str]] = {}
    train_splits: ClassVar[tuple[str, ...]]
    valid_split: ClassVar[str]
    test_split: ClassVar[str]
    submission_suffix: ClassVar[str] = ".json"
    training: ClassVar[TrainingSettings] = FINE_TUNING["vqa"]

    def __init__(self, answers: Iterable[str] | None = None, **options: str) -> None:
        self.notes: list[str] = []
        self.options = {name: values[0] for name, values in self.choices.items()}
        for name, value in options.items():
            if name not in self.choices:
                raise UserError(f"{self.name} has no option --{name}.")
            if value not in self.choices[name]:
                known = ", ".join(self.choices[name])
                raise UserError(f"{self.name} has no {name} {value!r}; it has {known}.")
            self.options[name] = value
        self._vocabulary = AnswerVocabulary(answers) if answers is not None else None

    # ------------------------------------------------------------------ to be written by a task

    @abstractmethod
    def files(self, data: Path, split: str) -> list[Path]:
        """The annotation files that a split cannot do without."""

    @abstractmethod
    def photo_folders(self, data: Path, split: str) -> list[Path]:
        """Where the photos of a split lie, most likely folder first."""

    @abstractmethod
    def count_answers(self, data: Path) -> list[str]:
        """The classes by the task's official rule, from its training files."""

    @abstractmethod
    def _read(self, data: Path, split: str, reader: Reader) -> None:
        """Hand every line of the split to ``reader.add``."""

    @abstractmethod
    def loss(self, logits_BA: Tensor, targets_BA: Tensor) -> Tensor:
        """The scalar loss; ``targets_BA`` as ``targets`` makes them."""

    def terms(self, targets_BA: Tensor) -> int:
        """How many examples ``loss`` is the mean of."""
        return len(targets_BA)

    @abstractmethod
    def credit(self, truth: Any, answer: str) -> float:
        """What the official accuracy gives one answer, from 0 to 1; ``truth`` as in Example."""

    @abstractmethod
    def score(self, examples: Sequence[Example], predicted: Sequence[str]) -> dict[str, float]:
        """The official figures in percent, "accuracy" first; unlabelled examples do not count.

        Raises:
            UserError: no example has a label, or the two sequences differ in length.
        """

    def decisive(self, examples: Sequence[Example]) -> str:
        """The figure of ``score`` by which the best epoch is kept."""
        return "accuracy"

    def remarks(self, examples: Sequence[Example]) -> list[str]:
        """What the metric cannot do on a split's examples, with numbers."""
        return []

    @abstractmethod
    def submission(self, ids: Sequence[str], answers: Sequence[str]) -> str:
        """The text of the file that the task's server takes."""

    # ------------------------------------------------------------------------- common to all

    @property
    def head(self) -> str:
        """Which of ``TASK_MODELS`` the task takes."""
        return self.options.get("head", "answer")

    @property
    def answers(self) -> tuple[str, ...]:
        """The class names, in the order of the head's rows."""
        return self.vocabulary.names

    @property
    def vocabulary(self) -> AnswerVocabulary:
        """The classes with their look-up.

        Raises:
            UserError: they were neither given nor built yet.
        """
        if self._vocabulary is None:
            raise UserError(f"The {self.name} task has no answer classes yet: build_answers first.")
        return self._vocabulary

    def build_answers(self, data: Path) -> tuple[str, ...]:
        """Make the classes from the training files, unless they were given.

        Raises:
            UserError: a file is missing or broken.
        """
        if self._vocabulary is None:
            self._vocabulary = AnswerVocabulary(self.count_answers(Path(data)))
        return self.answers

    def split_name(self, split: str) -> str:
        """The split that a name or an alias means.

        Raises:
            UserError: there is no such split.
        """
        split = self.aliases.get(split, split)
        if split not in self.splits:
            raise UserError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}.")
        return split

    def missing(self, data: Path, split: str) -> list[Path]:
        """The files that ``read`` would ask for in vain."""
        files = self.files(Path(data), self.split_name(split))
        return [path for path in files if not path.is_file()]

    def read(self, data: Path, split: str, photos: Container[str] | None = None) -> Split:
        """Read a split's official files.

        Args:
            data: the folder that docs/data.md describes.
            split: one of ``splits`` or an alias.
            photos: the keys that have a map (a FeatureStore); None takes all photos as there.

        Raises:
            UserError: no such split, or a file is missing, cut or not in the official format.
        """
        data, split = Path(data), self.split_name(split)
        missing = self.missing(data, split)
        if missing:
            raise UserError(
                f"{self.name} {split} needs {', '.join(map(str, missing))}, which "
                f"{'is' if len(missing) == 1 else 'are'} not there; docs/data.md says where it "
                "comes from."
            )
        reader = Reader(self, split, photos, self.files(data, split)[0])
        self._read(data, split, reader)
        reader.report.notes += self.remarks(reader.examples)
        return reader.finish()

    def targets(self, examples: Sequence[Example]) -> np.ndarray:
        """targets_BA, float32: each example's scores over the classes."""
        targets_BA = np.zeros((len(examples), len(self.vocabulary)), dtype=np.float32)
        for row, example in zip(targets_BA, examples, strict=True):
            for answer, score in example.target:
                row[answer] = score
        return targets_BA

    def majority(self, train: Sequence[Example], test: Sequence[Example]) -> float:
        """Accuracy in percent of the commonest training answer to each question's kind.

        A kind that training does not have gets the commonest answer of all.

        Raises:
            UserError: nothing in ``train`` or in ``test`` has a label.
        """
        return self.score(test, self.majority_answers(train, test))["accuracy"]

    def majority_answers(self, train: Sequence[Example], test: Sequence[Example]) -> list[str]:
        """What ``majority`` answers; equally common answers are taken in the classes' order."""
        weights: dict[str, Counter[int]] = defaultdict(Counter)
        overall: Counter[int] = Counter()
        for example in train:
            for answer, score in example.target:
                weights[example.kind][answer] += score  # type: ignore[assignment]
                overall[answer] += score  # type: ignore[assignment]
        if not overall:
            raise UserError(f"No training line of {self.name} has an answer among the classes.")

        def commonest(counter: Counter[int]) -> str:
            return self.answers[min(counter, key=lambda answer: (-counter[answer], answer))]

        answer_of = {kind: commonest(counter) for kind, counter in weights.items()}
        default = commonest(overall)
        return [answer_of.get(example.kind, default) for example in test]

    def write_submission(self, path: Path, ids: Sequence[str], answers: Sequence[str]) -> None:
        """Write the file that the task's server takes, atomically.

        Args:
            path: where to.
            ids: example ids.
            answers: class names, one for each id.

        Raises:
            UserError: the two differ in length, an id occurs twice, or the file cannot be written.
        """
        if len(ids) != len(answers):
            raise UserError(f"{len(ids)} ids but {len(answers)} answers for {path}.")
        if twice := [id for id, times in Counter(ids).items() if times > 1]:
            more = f" and {len(twice) - SHOWN:,} more" if len(twice) > SHOWN else ""
            raise UserError(
                f"{', '.join(twice[:SHOWN])}{more} would be twice in {path}: in the annotations "
                "of a split an id may occur once."
            )
        path = Path(path)
        try:
            write_text(path, self.submission(ids, answers))
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from error

    def labelled(
        self, examples: Sequence[Example], predicted: Sequence[str]
    ) -> list[tuple[Example, str]]:
        """The pairs that can be scored; errors as for ``score``."""
        if len(examples) != len(predicted):
            raise UserError(f"{len(examples)} examples but {len(predicted)} predictions.")
        pairs = [
            (example, answer)
            for example, answer in zip(examples, predicted, strict=True)
            if example.truth is not None
        ]
        if not pairs:
            raise UserError(f"No line of this {self.name} split has a label: nothing to score.")
        return pairs


class Reader:
    """Collects a split's examples and counts what is left out."""

    def __init__(self, task: Task, split: str, photos: Container[str] | None, path: Path) -> None:
        self.task, self.photos = task, photos
        self._unique = json_values.Unique(path, "the id")
        self.report = SplitReport(task.name, split)
        self.examples: list[Example] = []
        self.skipped: list[str] = []
        self._missing: dict[str, None] = {}

    def add(
        self,
        id: str,
        sentence: object,
        images: Sequence[Sequence[str]],
        target: Iterable[tuple[str, float]],
        kind: str,
        truth: Any,
        entry: int | None = None,
    ) -> None:
        """Take one line.

        Args:
            id: the official id.
            sentence: its text, or whatever stands in its place.
            images: for each photo the keys under which its map may be.
            target: (answer, score) pairs; those that are no class are left out.
            kind: the question's type.
            truth: what the metric needs; None without a label.
            entry: the line's number in the file, where not all of its lines are handed over.

        Raises:
            UserError: another line has the id.
        """
        self._unique.add(id, self.report.lines if entry is None else entry)
        self.report.lines += 1
        text = json_values.text(sentence)
        if not text:
            self.report.empty += 1
            self.skipped.append(id)
            return
        keys = [first_present(candidates, self.photos) for candidates in images]
        absent = [names[0] for names, key in zip(images, keys, strict=True) if key is None]
        if absent:
            self.report.without_photo += 1
            self.skipped.append(id)
            if len(self._missing) < SHOWN:
                self._missing.update(dict.fromkeys(absent))
            return
        ids = ((self.task.vocabulary.id(answer), score) for answer, score in target)
        known = tuple((answer, score) for answer, score in ids if answer is not None)
        if truth is None:
            self.report.unlabelled += 1
        elif not known:
            self.report.outside_vocabulary += 1
        self.examples.append(
            Example(id, text, tuple(key for key in keys if key is not None), known, kind, truth)
        )

    def finish(self) -> Split:
        """The split, with its report complete."""
        self.report.used = len(self.examples)
        if not self.report.lines:
            self.report.notes.append("there is no line of this split in its files")
        self.report.missing_photos = list(self._missing)[:SHOWN]
        return Split(self.examples, self.report, self.skipped)


def percent(values: Sequence[float]) -> float:
    """The mean in percent."""
    return 100.0 * sum(values) / len(values)


def json_text(entries: object) -> str:
    """JSON as the servers take it: one line, nothing escaped that need not be."""
    return json.dumps(entries, ensure_ascii=False) + "\n"
