"""The corpus as Arrow files: made once from the annotation files, found again by fingerprint.

A folder ``corpus-<fingerprint>`` holds sentences.arrow (one row a sentence, those of a photo in a
row, photos in the order of images.arrow), images.arrow (keys, leakage rule, sentences per source),
answers.arrow (all normalised answers) and corpus.json.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from gridvlp.atomic import user_cache, whole_folder
from gridvlp.data import json_files, json_values
from gridvlp.data.image_ids import ImageIds
from gridvlp.errors import UserError
from gridvlp.train.corpus.leakage import Guard, guard_files
from gridvlp.train.corpus.sources import READERS, Pair, source_files

LAYOUT = 2  # of the files; older ones are made anew
CACHE_FOLDER = ".gridvlp-cache"
_FLUSH = 1 << 16
_LABEL = pa.struct({"answer": pa.int32(), "score": pa.float32()})


def cache_folder(data: Path) -> Path:
    """Where the Arrow files of a data folder go: into it, or, if it is read-only, the user's cache.

    A folder without any write permission is left alone even by root, whom permissions do not stop.
    """
    if data.stat().st_mode & 0o222 and os.access(data, os.W_OK):
        return data / CACHE_FOLDER
    return user_cache()


def cached(data: Path, sources: list[str], cache: Path) -> Path:
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
    try:
        with whole_folder(folder, "corpus.json") as temporary:
            _write(temporary, data, files, everything)
    except OSError as error:
        raise UserError(
            f"The corpus cannot be written to {cache} ({error.strerror}): choose another cache "
            "folder or make room."
        ) from error
    return folder


def _write(folder: Path, data: Path, files: dict[str, list[Path]], everything: list[Path]) -> None:
    ids = ImageIds(data / "vg")
    builder = _Builder(list(files))
    read = [path for paths in files.values() for path in paths]
    with json_files.progress("Reading annotations", read, builder.note) as advance:
        for source, paths in files.items():
            builder.add(source, READERS[source](paths, ids, advance))
    if not builder.images:
        names = ", ".join(map(str, read))
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
        "empty": builder.empty,
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
            text = json_values.text(sentence)
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
