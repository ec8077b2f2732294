"""Visual Genome's official release as boxes with classes and attributes."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.errors import UserError
from gridvlp.extract.detector import MAX_ATTRIBUTES, NO_ATTRIBUTE

FOLDERS = ("VG_100K", "VG_100K_2")
CHUNK = 1 << 20  # characters read at a time
_SEPARATOR = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Vocabulary:
    """Names of objects and attributes; a line may hold several spellings, the first is the name."""

    objects: list[list[str]]
    attributes: list[list[str]]

    def save(self, folder: Path) -> None:
        """Write the lists in the well-known format: one line per name, spellings by commas."""
        for name, lines in (("objects", self.objects), ("attributes", self.attributes)):
            text = "".join(",".join(spellings) + "\n" for spellings in lines)
            (folder / f"visual_genome_{name}.txt").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Read such lists.

        Raises:
            UserError: a list is not there, or is no text.
        """
        lists = []
        for name in ("objects", "attributes"):
            found = [*folder.glob(f"*{name}*.txt")]
            if len(found) != 1:
                raise UserError(f"{folder} holds no visual_genome_{name}.txt.")
            try:
                lines = found[0].read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise UserError(f"{found[0]} is no UTF-8 text: {error}.") from error
            # An empty spelling would be the name of every object that has none.
            spelled = ([_clean(word) for word in line.split(",") if word.strip()] for line in lines)
            lists.append([words for words in spelled if words])
        return cls(*lists)


@dataclass(frozen=True)
class Annotated:
    """One photo: boxes_N4 (x1, y1, x2, y2 in pixels), classes_N, attributes_NM."""

    image: int
    path: Path
    width: int
    height: int
    boxes_N4: np.ndarray
    classes_N: np.ndarray
    attributes_NM: np.ndarray


@dataclass
class Counts:
    """What the release held and what became of it."""

    photos: int = 0
    without_file: int = 0
    without_boxes: int = 0
    boxes: int = 0
    outside_vocabulary: int = 0
    degenerate: int = 0
    clipped: int = 0
    attributes_cut: int = 0

    def lines(self) -> list[str]:
        """The counts as a sentence or two."""
        return [
            f"Visual Genome: {self.photos:,} photos with {self.boxes:,} boxes; photos left out: "
            f"{self.without_file:,} without a file, {self.without_boxes:,} without a box; "
            f"boxes left out: {self.outside_vocabulary:,} outside the vocabulary, "
            f"{self.degenerate:,} degenerate; {self.clipped:,} clipped to the photo, "
            f"{self.attributes_cut:,} with more than {MAX_ATTRIBUTES} attributes."
        ]


@dataclass
class VisualGenome:
    """The release, ready for training."""

    photos: list[Annotated]
    vocabulary: Vocabulary
    counts: Counts = field(default_factory=Counts)


def read_visual_genome(
    folder: Path, vocab: Path | None = None, objects: int = 1600, attributes: int = 400
) -> VisualGenome:
    """Read objects.json, attributes.json and image_data.json with the photos of both folders.

    Args:
        folder: holds the three files and VG_100K, VG_100K_2.
        vocab: folder of the two word lists; None takes the most frequent names.
        objects, attributes: how many names to take then.

    Raises:
        UserError: a file is missing or broken, or no photo has a box.
    """
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}: unpack Visual Genome there (docs/data.md), "
            "or make a sample world with `gridvlp sample-data .`"
        )
    try:
        return _read(folder, vocab, objects, attributes)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The annotations in {folder} are not Visual Genome's: an entry has no {error}."
        ) from error


def _read(folder: Path, vocab: Path | None, objects: int, attributes: int) -> VisualGenome:
    sizes = {e["image_id"]: (e["width"], e["height"]) for e in _stream(folder / "image_data.json")}
    named = folder / "objects.json"
    told: dict[int, tuple[str, ...]] = {}
    for entry in _stream(folder / "attributes.json"):
        for thing in entry.get("attributes", ()):
            words = tuple(sys.intern(_clean(word)) for word in thing.get("attributes") or ())
            if words:
                told[thing["object_id"]] = words
    if vocab is not None:
        vocabulary = Vocabulary.load(vocab)
    else:
        names = (
            _clean(t["names"][0]) for e in _stream(named) for t in e["objects"] if t.get("names")
        )
        said = (word for given in told.values() for word in given)
        vocabulary = Vocabulary(
            [[name] for name in _most_frequent(names, objects)],
            [[word] for word in _most_frequent(said, attributes)],
        )
    files = {
        path.stem: path for name in FOLDERS if (folder / name).is_dir()
        for path in sorted((folder / name).iterdir()) if path.suffix.lower() == ".jpg"
    }  # fmt: skip
    counts = Counts()
    class_of = {word: i for i, words in enumerate(vocabulary.objects) for word in words}
    attribute_of = {word: i for i, words in enumerate(vocabulary.attributes) for word in words}
    photos = []
    for entry in _stream(named):
        image = entry["image_id"]
        if str(image) not in files or image not in sizes:
            counts.without_file += 1
            continue
        width, height = sizes[image]
        boxes, classes, rows = [], [], []
        for thing in entry["objects"]:
            name = _clean(thing["names"][0]) if thing.get("names") else ""
            if name not in class_of:
                counts.outside_vocabulary += 1
                continue
            corners = (thing["x"], thing["y"], thing["x"] + thing["w"], thing["y"] + thing["h"])
            inside = (
                max(0, corners[0]), max(0, corners[1]),
                min(width, corners[2]), min(height, corners[3]),
            )  # fmt: skip
            if inside[2] - inside[0] < 1 or inside[3] - inside[1] < 1:
                counts.degenerate += 1
                continue
            counts.clipped += inside != corners
            known = [attribute_of[w] for w in told.get(thing["object_id"], ()) if w in attribute_of]
            given = list(dict.fromkeys(known))
            counts.attributes_cut += len(given) > MAX_ATTRIBUTES
            given = given[:MAX_ATTRIBUTES]
            boxes.append(inside)
            classes.append(class_of[name])
            rows.append(given + [NO_ATTRIBUTE] * (MAX_ATTRIBUTES - len(given)))
        if not boxes:
            counts.without_boxes += 1
            continue
        counts.photos += 1
        counts.boxes += len(boxes)
        photos.append(
            Annotated(
                image,
                files[str(image)],
                width,
                height,
                np.array(boxes, dtype=np.float32),
                np.array(classes, dtype=np.int64),
                np.array(rows, dtype=np.int64),
            )
        )
    if not photos:
        raise UserError(f"No photo of {folder} has both a file and a box: {counts.lines()[0]}")
    photos.sort(key=lambda photo: photo.image)
    return VisualGenome(photos, vocabulary, counts)


def _stream(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a JSON list one by one: objects.json alone is 400 MB of text."""
    decoder = json.JSONDecoder()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(CHUNK)
            place = _SEPARATOR.match(text).end()  # type: ignore[union-attr]  # matches anything
            if not text.startswith("[", place):
                raise UserError(f"{path} is not Visual Genome's: a list is needed.")
            place += 1
            while True:
                place = _SEPARATOR.match(text, place).end()  # type: ignore[union-attr]
                if text.startswith("]", place):
                    return
                try:
                    entry, place = decoder.raw_decode(text, place)
                except ValueError:
                    more = file.read(CHUNK)
                    if not more:
                        raise
                    text, place = text[place:] + more, 0
                    continue
                if not isinstance(entry, dict):
                    raise UserError(f"{path} is not Visual Genome's: a list of objects is needed.")
                yield entry
    except FileNotFoundError:
        raise UserError(f"{path} is not there; docs/data.md says where it comes from.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not whole JSON ({error}): fetch it again.") from error


def _clean(word: str) -> str:
    return " ".join(str(word).lower().split())


def _most_frequent(words: Iterable[str], most: int) -> list[str]:
    counted = Counter(word for word in words if word)
    return [word for word, _ in sorted(counted.items(), key=lambda kv: (-kv[1], kv[0]))[:most]]
