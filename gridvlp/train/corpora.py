"""The pre-training corpus: sentences grouped by photo, questions with their answers.

Made once from the data sets' official files and kept as memory-mapped Arrow files, so that the
corpus of the paper (9.18M pairs on 180K images) costs a process its page cache and a few arrays
with one entry per image. What depends on the run (which photos have a map, which part is asked
for, which answers are classes) is decided when a corpus is opened, not stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gridvlp.errors import UserError
from gridvlp.progress import track
from gridvlp.train import json_files
from gridvlp.train.answers import (
    AnswerVocabulary,
    most_frequent,
    normalize_answer,
    soft_score,
)
from gridvlp.train.image_ids import ImageIds
from gridvlp.train.leakage import FREE, RULES, Guard, guard_files

LAYOUT = 1  # of the cache files; older ones are made anew
CACHE_FOLDER = ".gridvlp-cache"
PARTS = ("train", "held-out")
_FLUSH = 1 << 16
_LABEL = pa.struct({"answer": pa.int32(), "score": pa.float32()})

_Advance = Callable[[int], None]  # told the characters read
# One pair of a source: keys under which the photo's map may be, the sentence, (answer, score)s.
Pair = tuple[tuple[str, ...], Any, Iterable[tuple[str, float]]]


# --------------------------------------------------------------------------------- the sources


def _coco_captions(files: Sequence[Path], ids: ImageIds, advance: _Advance) -> Iterator[Pair]:
    seen: set[int] = set()  # the 2014 and the 2017 release hold the same captions
    for path in files:
        for number, entry in enumerate(json_files.elements(path, "annotations", advance)):
            if (id := json_files.integer(entry, "id", path, number)) not in seen:
                seen.add(id)
                image = json_files.integer(entry, "image_id", path, number)
                yield (ids.coco(image),), json_files.field(entry, "caption", path, number), ()


def _vg_regions(files: Sequence[Path], ids: ImageIds, advance: _Advance) -> Iterator[Pair]:
    for path in files:
        for number, entry in enumerate(json_files.elements(path, None, advance)):
            for region in json_files.field(entry, "regions", path, number):
                image = _vg_image(region, entry, path, number)
                phrase = json_files.field(region, "phrase", path, number)
                yield ids.visual_genome(image), phrase, ()


def _vg_qa(files: Sequence[Path], ids: ImageIds, advance: _Advance) -> Iterator[Pair]:
    for path in files:
        for number, entry in enumerate(json_files.elements(path, None, advance)):
            for qa in json_files.field(entry, "qas", path, number):
                image = _vg_image(qa, entry, path, number)
                question = json_files.field(qa, "question", path, number)
                answer = str(json_files.field(qa, "answer", path, number))
                yield ids.visual_genome(image), question, ((normalize_answer(answer), 1.0),)


def _vqa(files: Sequence[Path], ids: ImageIds, advance: _Advance) -> Iterator[Pair]:
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


def _gqa(files: Sequence[Path], ids: ImageIds, advance: _Advance) -> Iterator[Pair]:
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


_READERS: dict[str, Callable[[Sequence[Path], ImageIds, _Advance], Iterator[Pair]]] = {
    "coco-captions": _coco_captions,
    "vg-regions": _vg_regions,
    "vqa": _vqa,
    "gqa": _gqa,
    "vg-qa": _vg_qa,
}
SOURCES = tuple(_READERS)  # the paper, section 4.1


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


# ---------------------------------------------------------------------------------- the corpus


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
    """

    part: str
    answers: AnswerVocabulary | None
    offsets: np.ndarray
    report: list[SourceReport]
    exclusions: list[Exclusion]
    notes: list[str]
    fingerprint: str

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
        folder = _cached(data, chosen, Path(cache) if cache else cache_folder(data))
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
        keys = [
            next((key for key in candidates if photos is None or key in photos), None)
            for candidates in images.column("candidates").to_pylist()
        ]
        present_I = np.array([key is not None for key in keys], dtype=bool)
        used_I = wanted_I & present_I
        total_I = counts_IS.sum(axis=1)
        starts_I = np.concatenate([[0], np.cumsum(total_I)])[:-1]
        self._keys = [key for key, used in zip(keys, used_I, strict=True) if key and used]
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
        if allow_leakage and part == "train" and self.exclusions:
            self.notes.append("leakage is allowed: the photos listed as excluded are trained on")
        self.report = []
        for s, source in enumerate(self._sources):
            held = about["held"][source]
            has_I, count_I = counts_IS[:, s] > 0, counts_IS[:, s]
            lost_I = wanted_I & ~present_I
            self.report.append(
                SourceReport(
                    source,
                    pairs=int(count_I[used_I].sum()),
                    images=int((has_I & used_I).sum()),
                    questions=int(questions_S[s]),
                    without_photo=int(count_I[lost_I].sum()),
                    images_without_photo=int((has_I & lost_I).sum()),
                    excluded=int(count_I[~wanted_I].sum()),
                    images_excluded=int((has_I & ~wanted_I).sum()),
                    empty=held["empty"],
                    files=tuple(held["files"]),
                    absent=tuple(str(path) for path in source_files(data, source)[1]),
                )
            )
        leaky = part == "train" and allow_leakage
        state = f"{about['fingerprint']} {part} {leaky}"
        self.fingerprint = hashlib.sha256(state.encode()).hexdigest()

    # -------------------------------------------------------------------------------- reading

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

    # ---------------------------------------------------------------------------- on opening

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


# ----------------------------------------------------------------------------------- the cache


def cache_folder(data: Path) -> Path:
    """Where the Arrow files of a data folder go: into it, or, if it is read-only, the user's cache.

    A folder without any write permission is left alone even by root, whom permissions do not stop.
    """
    if data.stat().st_mode & 0o222 and os.access(data, os.W_OK):
        return data / CACHE_FOLDER
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "gridvlp"


def _cached(data: Path, sources: list[str], cache: Path) -> Path:
    """The folder with the Arrow files of these sources, written if it is not there."""
    files = {source: source_files(data, source)[0] for source in sources}
    everything = sorted(
        {path for paths in files.values() for path in paths} | set(guard_files(data))
    )
    facts = [(str(path.relative_to(data)), path.stat()) for path in everything]
    state = [LAYOUT, sources, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in facts]]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
    folder = cache / f"corpus-{key}"
    if (folder / "corpus.json").is_file():
        return folder
    temporary = cache / f".{folder.name}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        _write(temporary, data, files, everything)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / "corpus.json").is_file():  # else another process was faster
                raise
    except OSError as error:
        raise UserError(
            f"The corpus cannot be written to {cache} ({error.strerror}): choose another cache "
            "folder or make room."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write(folder: Path, data: Path, files: dict[str, list[Path]], everything: list[Path]) -> None:
    ids = ImageIds(data)
    builder = _Builder(list(files))
    total = sum(path.stat().st_size for paths in files.values() for path in paths)
    with track("Reading annotations", max(1, total >> 20), "MB") as tracker:
        done = 0

        def advance(characters: int) -> None:
            nonlocal done
            before, done = done, done + characters
            tracker.advance((done >> 20) - (before >> 20), builder.note())

        for source, paths in files.items():
            builder.add(source, _READERS[source](paths, ids, advance))
        tracker.advance(
            tracker.total - tracker.done, builder.note()
        )  # bytes that are not characters
    if not builder.images:
        names = ", ".join(str(path) for paths in files.values() for path in paths)
        raise UserError(f"There is not one sentence in {names}.")
    guard = Guard(data, ids)
    for name, batch in builder.batches([guard.rule(key) for key in builder.images]).items():
        with pa.ipc.new_file(str(folder / f"{name}.arrow"), batch.schema) as writer:
            writer.write_batch(batch)
    digests = {}
    for path in everything:
        with path.open("rb") as file:
            digests[str(path.relative_to(data))] = hashlib.file_digest(file, "sha256").hexdigest()
    state = json.dumps([LAYOUT, list(files), digests])
    about = {
        "layout": LAYOUT,
        "sources": list(files),
        "fingerprint": hashlib.sha256(state.encode()).hexdigest(),
        "files": digests,
        "held": {
            source: {"files": [path.name for path in paths], "empty": builder.empty[source]}
            for source, paths in files.items()
        },
        "notes": guard.notes,
    }
    (folder / "corpus.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


class _Builder:
    """Gathers pairs of all sources in compact arrays, then sorts them by image."""

    def __init__(self, sources: list[str]) -> None:
        self.sources = sources
        self.images: dict[str, int] = {}
        self.candidates: list[list[str]] = []
        self.empty = dict.fromkeys(sources, 0)
        self.answers: dict[str, int] = {}
        self._text: list[pa.Array] = []
        self._pending: list[str] = []
        self._image = array("i")
        self._source = array("B")
        self._labels = array("i")  # how many labels each sentence has
        self._label_answer = array("i")
        self._label_score = array("f")

    def note(self) -> str:
        return f"{len(self._image):,} pairs, {len(self.images):,} images"

    def add(self, source: str, pairs: Iterator[Pair]) -> None:
        number = self.sources.index(source)
        for keys, sentence, answers in pairs:
            text = _clean(sentence)
            if not text:
                self.empty[source] += 1
                continue
            image = self.images.setdefault(
                keys[-1], len(self.images)
            )  # COCO's key where it has one
            if image == len(self.candidates):
                self.candidates.append([keys[-1]])
            for key in keys[:-1]:
                if key not in self.candidates[image]:
                    self.candidates[image].append(key)
            self._pending.append(text)
            if len(self._pending) == _FLUSH:
                self._flush()
            self._image.append(image)
            self._source.append(number)
            before = len(self._label_answer)
            for answer, score in answers:
                if answer:
                    self._label_answer.append(self.answers.setdefault(answer, len(self.answers)))
                    self._label_score.append(score)
            self._labels.append(len(self._label_answer) - before)

    def _flush(self) -> None:
        self._text.append(pa.array(self._pending, pa.large_string()))
        self._pending.clear()

    def batches(self, rules: list[int]) -> dict[str, pa.RecordBatch]:
        self._flush()
        image = np.frombuffer(self._image, dtype=np.int32)
        source = np.frombuffer(self._source, dtype=np.uint8)
        offsets = np.concatenate([[0], np.cumsum(np.frombuffer(self._labels, dtype=np.int32))])
        labels = pa.StructArray.from_arrays(
            [
                pa.array(np.frombuffer(self._label_answer, dtype=np.int32)),
                pa.array(np.frombuffer(self._label_score, dtype=np.float32)),
            ],
            fields=list(_LABEL),
        )
        sentences = pa.table(
            {
                "sentence": pa.chunked_array(self._text, pa.large_string()),
                "source": source,
                "answers": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), labels),
            }
        )
        ordered = sentences.take(np.argsort(image, kind="stable"))
        counts = np.bincount(
            image.astype(np.int64) * len(self.sources) + source,
            minlength=len(self.images) * len(self.sources),
        ).reshape(-1, len(self.sources))
        return {
            "sentences": ordered.combine_chunks().to_batches()[0],
            "images": pa.record_batch(
                {
                    "candidates": pa.array(self.candidates, pa.list_(pa.string())),
                    "rule": pa.array(rules, pa.uint8()),
                }
                | {name: counts[:, number] for number, name in enumerate(self.sources)}
            ),
            "answers": pa.record_batch({"answer": pa.array(list(self.answers), pa.string())}),
        }


def _clean(sentence: Any) -> str:
    """Words with single spaces between them; "" for what is not text."""
    if not isinstance(sentence, str):
        return ""
    text = " ".join(sentence.split())
    # JSON can hold half a surrogate pair, which UTF-8 cannot.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _mapped(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _text(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Views of a large_string column: its bytes, and where each text begins."""
    _, offsets, text = column.buffers()
    begin = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(text, dtype=np.uint8), begin
