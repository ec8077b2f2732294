"""The pre-training corpus: sentences grouped by photo, questions with their answers.

Made once from the data sets' official files and kept as memory-mapped Arrow files, so that the
corpus of the paper (9.18M pairs on 180K images) costs a process its page cache and a few arrays
with one entry per image. What depends on the run (which photos have a map, which part is asked
for, which answers are classes) is decided when a corpus is opened, not stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from gridvlp.data.image_ids import first_present
from gridvlp.errors import UserError
from gridvlp.train.answers import AnswerVocabulary, most_frequent, normalize_answer
from gridvlp.train.corpus.cache import cache_folder, cached
from gridvlp.train.corpus.leakage import FREE, RULES
from gridvlp.train.corpus.sources import SOURCES, source_files

PARTS = ("train", "held-out")


@dataclass(frozen=True)
class SourceReport:
    """What a source gave; the counts are of pairs (image, sentence) unless they say images.

    Attributes:
        source: one of SOURCES.
        pairs, images: in the corpus.
        questions: pairs with at least one answer among the classes.
        without_photo, images_without_photo: left out because no map is in the store.
        excluded, images_excluded: left out by the leakage guard (or, in the held-out part, not
            among the photos to measure on).
        empty: left out because the sentence is empty.
        files, absent: names of the source's files that were read, and that are not there.
    """

    source: str
    pairs: int
    images: int
    questions: int
    without_photo: int
    images_without_photo: int
    excluded: int
    images_excluded: int
    empty: int
    files: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class Exclusion:
    """What a rule of the leakage guard keeps out of training, whether or not a map is there."""

    rule: str
    images: int
    pairs: int


class Corpus:
    """Sentences of the photos that have a map; made by ``Corpus.build``.

    Images are numbered 0 to ``images`` - 1, sentences 0 to ``len(corpus)`` - 1, the sentences of
    one image in a row. Everything is read-only NumPy views over mapped files, which threads and
    processes may share.

    Attributes:
        part: "train" or "held-out".
        answers: the answer classes, the same for both parts and whatever the store holds; None
            where no question has an answer.
        offsets: int64 (images + 1,): sentences_of(i) is range(offsets[i], offsets[i + 1]).
        report: one row for each source that was asked for.
        exclusions: one row for each rule of the leakage guard that applied.
        notes: what else the user should know.
        fingerprint: hex sha256 over the contents of the source files, the sources and the part.
        folder: the Arrow files, and what else is derived from them.
    """

    part: str
    answers: AnswerVocabulary | None
    offsets: np.ndarray
    report: list[SourceReport]
    exclusions: list[Exclusion]
    notes: list[str]
    fingerprint: str
    folder: Path

    @classmethod
    def build(
        cls,
        data: str | Path,
        photos: Container[str] | None = None,
        *,
        part: str = "train",
        sources: Sequence[str] = SOURCES,
        answers: AnswerVocabulary | None = None,
        allow_leakage: bool = False,
        cache: str | Path | None = None,
    ) -> Corpus:
        """Read the official files, or the cache that an earlier call left.

        Args:
            data: the folder that docs/data.md describes.
            photos: the keys that have a map (a FeatureStore); None takes all photos as there.
            part: "train", or "held-out" for the sentences of the COCO photos that are kept out
                of training, on which pre-training is measured.
            sources: which of SOURCES; those whose files are absent are reported, not an error.
            answers: the answer classes; None for the 9,500 most frequent normalised answers of
                the sentences that may be trained on (LXMERT).
            allow_leakage: train on photos of the tasks' validation and test splits too.
            cache: folder for the Arrow files, by default ``cache_folder(data)``. It may be deleted
                at any time; a changed source file makes a new entry.

        Raises:
            UserError: unknown source or part, none of the files there, a file cut or not in the
                official format, or the cache cannot be written.
        """
        if part not in PARTS:
            raise UserError(f"A corpus has no part {part!r}; it has {' and '.join(PARTS)}.")
        for source in sources:
            if source not in SOURCES:
                raise UserError(f"There is no source {source!r}; there are {', '.join(SOURCES)}.")
        data = Path(data)
        chosen = [source for source in SOURCES if source in sources]
        if not any(source_files(data, source)[0] for source in chosen):
            wanted = [path for source in chosen for path in source_files(data, source)[1]]
            raise UserError(
                f"{data} has none of the files to pre-train on ({', '.join(chosen)}), such as "
                f"{wanted[0]}; docs/data.md says where they come from."
            )
        folder = cached(data, chosen, Path(cache) if cache else cache_folder(data))
        return cls(folder, data, photos, part, answers, allow_leakage)

    def __init__(
        self,
        folder: Path,
        data: Path,
        photos: Container[str] | None,
        part: str,
        answers: AnswerVocabulary | None,
        allow_leakage: bool,
    ) -> None:
        """Open a folder that ``build`` has written; not to be called by others."""
        self.folder = folder
        about = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        self.part, self.notes = part, list(about["notes"])
        self._sources: list[str] = about["sources"]
        sentences, images, names = (
            _mapped(folder / f"{name}.arrow") for name in ("sentences", "images", "answers")
        )
        self._text, self._text_offsets = _text(sentences.column("sentence"))
        self._source = sentences.column("source").to_numpy(zero_copy_only=True)
        labels = sentences.column("answers")
        self._label_offsets = labels.offsets.to_numpy(zero_copy_only=True)
        self._label_answers, self._label_scores = (
            labels.values.field(i).to_numpy(zero_copy_only=True) for i in range(2)
        )

        counts_IS = np.stack([images.column(source).to_numpy() for source in self._sources], 1)
        rule_I = images.column("rule").to_numpy()
        if part == "train":
            wanted_I = np.full(len(rule_I), True) if allow_leakage else rule_I == FREE
        else:
            measured = [i for i, rule in enumerate(RULES) if rule is not None and rule.measured]
            wanted_I = np.isin(rule_I, measured)
        keys = [  # looking up a map is what opening costs most
            first_present(candidates, photos) if wanted else None
            for candidates, wanted in zip(
                images.column("candidates").to_pylist(), wanted_I.tolist(), strict=True
            )
        ]
        used_I = np.array([key is not None for key in keys], dtype=bool)
        total_I = counts_IS.sum(axis=1)
        starts_I = np.concatenate([[0], np.cumsum(total_I)])[:-1]
        self._keys = [key for key in keys if key is not None]
        self._rows = starts_I[used_I]  # the first row of each image in the files
        self.offsets = np.concatenate([[0], np.cumsum(total_I[used_I])])

        free_rows = np.repeat(rule_I == FREE, total_I)
        self._choose_classes(answers, names.column("answer").to_pylist(), free_rows)
        questions_S = self._questions(np.repeat(used_I, total_I))
        self.exclusions = [
            Exclusion(rule.name, int((rule_I == i).sum()), int(total_I[rule_I == i].sum()))
            for i, rule in enumerate(RULES)
            if rule is not None and (rule_I == i).any()
        ]
        leaky = part == "train" and allow_leakage
        if leaky and self.exclusions:
            self.notes.append("leakage is allowed: the photos listed as excluded are trained on")

        def pairs_and_images(counts_I: np.ndarray, chosen_I: np.ndarray) -> tuple[int, int]:
            return int(counts_I[chosen_I].sum()), int((counts_I[chosen_I] > 0).sum())

        self.report = []
        for source, counts_I, questions in zip(
            self._sources, counts_IS.T, questions_S, strict=True
        ):
            pairs, used_images = pairs_and_images(counts_I, used_I)
            lost, lost_images = pairs_and_images(counts_I, wanted_I & ~used_I)
            excluded, excluded_images = pairs_and_images(counts_I, ~wanted_I)
            self.report.append(
                SourceReport(
                    source,
                    pairs=pairs,
                    images=used_images,
                    questions=int(questions),
                    without_photo=lost,
                    images_without_photo=lost_images,
                    excluded=excluded,
                    images_excluded=excluded_images,
                    empty=about["empty"][source],
                    files=tuple(path.name for path in source_files(data, source)[0]),
                    absent=tuple(path.name for path in source_files(data, source)[1]),
                )
            )
        state = f"{about['fingerprint']} {part} {leaky}"
        self.fingerprint = hashlib.sha256(state.encode()).hexdigest()

    def __len__(self) -> int:
        """The number of sentences, which is that of (image, sentence) pairs."""
        return int(self.offsets[-1])

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self._keys)

    def image_key(self, image: int) -> str:
        """The key under which the store has the image's map."""
        return self._keys[image]

    def image_of(self, sentence: int) -> int:
        """The image of a sentence."""
        self._row(sentence)
        return int(np.searchsorted(self.offsets, sentence, side="right")) - 1

    def images_of(self, sentences: np.ndarray) -> np.ndarray:
        """The images (int64) of many sentences."""
        return np.searchsorted(self.offsets, sentences, side="right") - 1

    def sentences_of(self, image: int) -> range:
        """The numbers of an image's sentences; never empty."""
        return range(int(self.offsets[image]), int(self.offsets[image + 1]))

    def sentence(self, sentence: int) -> str:
        """The text: no white space but single spaces between words, and not empty."""
        row = self._row(sentence)
        start, end = self._text_offsets[row], self._text_offsets[row + 1]
        return self._text[start:end].tobytes().decode("utf-8")

    def sentences(self) -> Iterator[str]:
        """The texts of all sentences, in order; ten times as fast as one by one."""
        for row, count in zip(self._rows.tolist(), np.diff(self.offsets).tolist(), strict=True):
            cuts = self._text_offsets[row : row + count + 1].tolist()
            text = self._text[cuts[0] : cuts[-1]].tobytes()
            for start, end in pairwise(cuts):
                yield text[start - cuts[0] : end - cuts[0]].decode("utf-8")

    @property
    def selection(self) -> str:
        """Hex sha256 over all sentences: the files, the part, and the photos that have a map."""
        digest = hashlib.sha256(self.fingerprint.encode())
        for array in (self._rows, self.offsets):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def source_of(self, sentence: int) -> str:
        """Which of SOURCES a sentence is from."""
        return self._sources[self._source[self._row(sentence)]]

    def answers_of(self, sentence: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes (int32) and soft scores (float32, above 0) of a question; both empty if none."""
        row = self._row(sentence)
        span = slice(self._label_offsets[row], self._label_offsets[row + 1])
        classes = self._class_of[self._label_answers[span]]
        known = classes >= 0
        return classes[known], self._label_scores[span][known]

    def _row(self, sentence: int) -> int:
        if not 0 <= sentence < len(self):
            raise IndexError(f"sentence {sentence} of {len(self)}")
        image = int(np.searchsorted(self.offsets, sentence, side="right")) - 1
        return int(self._rows[image]) + sentence - int(self.offsets[image])

    def _choose_classes(
        self, answers: AnswerVocabulary | None, names: list[str], free_rows: np.ndarray
    ) -> None:
        """Set ``answers`` and the class (-1: none) of each answer in the files."""
        if answers is None:
            free_labels = np.repeat(free_rows, np.diff(self._label_offsets))
            weights = np.bincount(
                self._label_answers[free_labels],
                weights=self._label_scores[free_labels],
                minlength=len(names),
            ).round(1)  # sums of tenths: float noise must not decide a tie
            chosen = most_frequent(dict(zip(names, weights.tolist(), strict=True)))
            answers = AnswerVocabulary(chosen) if chosen else None
        self.answers = answers
        ids: dict[str, int] = {}
        for id, name in enumerate(answers or ()):  # a given list need not be normalised
            ids.setdefault(normalize_answer(name), id)
        self._class_of = np.array([ids.get(name, -1) for name in names], dtype=np.int32)

    def _questions(self, used_rows: np.ndarray) -> np.ndarray:
        """For each source the used sentences that have an answer among the classes."""
        known = np.concatenate([[0], np.cumsum(self._class_of[self._label_answers] >= 0)])
        ends = known[self._label_offsets]
        asked = (ends[1:] > ends[:-1]) & used_rows
        return np.bincount(self._source[asked], minlength=len(self._sources))


def _mapped(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _text(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Views of a large_string column: its bytes, and where each text begins."""
    _, offsets, text = column.buffers()
    begin = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(text, dtype=np.uint8), begin
