"""Photos with boxes, classes and attributes, as a handful of arrays.

108,000 photos with 3.8 million boxes are some 150 MB so, mapped from a cache that all processes of
a machine share; as Python objects they are gigabytes in each.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.atomic import user_cache, whole_folder
from gridvlp.errors import UserError
from gridvlp.extract.detector import MAX_ATTRIBUTES, NO_ATTRIBUTE
from gridvlp.extract.vocabulary import Vocabulary
from gridvlp.run.skip_list import SkipList

LARGEST_SIDE = (1 << 24) - 1  # of a photo; float32 holds every whole number up to it
NAMED = 3  # entries or photos that a report names
NO_FILE = "no file has that name"  # of match_files; the other reasons are worth a line
LAYOUT = 2  # of the cached arrays; older ones are made anew
COUNTED = (
    "outside_vocabulary",
    "degenerate",
    "clipped",
    "attributes_cut",
    "crowds",
    "attributes_outside",
)


@dataclass(frozen=True)
class Annotated:
    """One photo: boxes_N4 (x1, y1, x2, y2 in pixels), classes_N, attributes_NM.

    ``crowds_N4`` are boxes of many things at once (COCO's iscrowd), of classes ``crowd_classes_N``:
    not trained on, and neither right nor wrong to detect.
    """

    image: int
    path: Path
    width: int
    height: int
    boxes_N4: np.ndarray
    classes_N: np.ndarray
    attributes_NM: np.ndarray
    crowds_N4: np.ndarray
    crowd_classes_N: np.ndarray


@dataclass
class Counts:
    """What the annotations held and what became of it."""

    source: str = ""
    photos: int = 0
    without_file: int = 0
    without_boxes: int = 0
    boxes: int = 0
    attributes: int = 0
    without_photo: int = 0
    outside_vocabulary: int = 0
    degenerate: int = 0
    clipped: int = 0
    attributes_cut: int = 0
    crowds: int = 0
    attributes_outside: int = 0
    broken: int = 0
    unmatched: int = 0
    reasons: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The counts in a line, what was left out or changed in another, and reasons."""
        told = {
            "entries that are broken": self.broken,
            "photos without a file or size": self.without_file,
            "photos whose file is not clear": self.unmatched,
            "photos without a box": self.without_boxes,
            "boxes of no listed photo": self.without_photo,
            "boxes outside the vocabulary": self.outside_vocabulary,
            "boxes that are degenerate": self.degenerate,
            "boxes of crowds": self.crowds,
            "attributes outside the vocabulary": self.attributes_outside,
        }
        changed = {
            "boxes clipped to the photo": self.clipped,
            f"boxes cut to {MAX_ATTRIBUTES} attributes": self.attributes_cut,
        }
        attributes = f" and {self.attributes:,} attributes" if self.attributes else ""
        lines = [f"{self.source}: {self.photos:,} photos with {self.boxes:,} boxes{attributes}."]
        for what, counts in (("left out", told), ("changed", changed)):
            listed = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
            lines += [f"  {what}: {listed}"] if listed else []
        return lines + [f"  {reason}" for reason in self.reasons]


@dataclass
class Told:
    """What annotation files say, before any choice; filled by a reader.

    Attributes:
        photos: image id -> (width, height, file name); 0 where a size is not told.
        image_N: image id of each box.
        xywh_N4: left, top, width and height in pixels, four numbers after each other.
        names, name_N: of objects, and which of them each box has.
        words, word_M, words_N: of attributes, those of all boxes in a row, and how many each has.
        crowd_N: whether a box is a crowd.
        broken: the entries that are left out.
    """

    photos: dict[int, tuple[int, int, str]] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)
    image_N: array[int] = field(default_factory=lambda: array("q"))
    xywh_N4: array[float] = field(default_factory=lambda: array("f"))
    name_N: array[int] = field(default_factory=lambda: array("i"))
    word_M: array[int] = field(default_factory=lambda: array("i"))
    words_N: array[int] = field(default_factory=lambda: array("i"))
    crowd_N: array[int] = field(default_factory=lambda: array("b"))
    broken: SkipList = field(
        default_factory=lambda: SkipList(
            question="are these the annotations of the photos?",
            advice="Download the file again, or mend those entries.",
        )
    )

    def vocabulary(self, objects: int, attributes: int) -> Vocabulary:
        """The most frequent names."""
        return Vocabulary(
            _most_frequent(self.names, np.asarray(self.name_N), objects),
            _most_frequent(self.words, np.asarray(self.word_M), attributes),
        )


def _most_frequent(names: dict[str, int], used_N: np.ndarray, most: int) -> list[list[str]]:
    times = np.bincount(used_N, minlength=len(names))
    known = [(-times[index], name) for name, index in names.items() if name and times[index]]
    return [[name] for _, name in sorted(known)[:most]]


class Annotations:
    """Annotated photos in the order of their ids; made by ``cached_annotations``.

    Args:
        arrays: as ``_arrays`` makes them.
        vocabulary: what classes and attributes stand for.
        counts: what became of the whole.
        paths: the photo file of each row.
        rows: the photos in use, as rows of the arrays.
        sha256: of the arrays and of what they mean.
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        vocabulary: Vocabulary,
        counts: Counts,
        paths: Sequence[str],
        rows: np.ndarray,
        sha256: str,
    ) -> None:
        self.arrays, self.vocabulary, self.counts = arrays, vocabulary, counts
        self.paths, self.rows, self.sha256 = paths, rows, sha256

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Annotated]:
        return (self[i] for i in range(len(self)))

    def subset(self, chosen: slice | np.ndarray) -> Annotations:
        """Some of the photos."""
        rows = self.rows[chosen]
        return Annotations(self.arrays, self.vocabulary, self.counts, self.paths, rows, self.sha256)

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of all that is known of the photos in use, but for their pixels."""
        return hashlib.sha256(self.sha256.encode() + self.rows.tobytes()).hexdigest()

    @property
    def sizes_P2(self) -> np.ndarray:
        """Width and height of each photo."""
        sizes_P2: np.ndarray = self.arrays["sizes_P2"][self.rows]
        return sizes_P2

    def __getitem__(self, index: int) -> Annotated:
        row = int(self.rows[index])
        values = self.arrays
        begin, end = values["starts_P"][row : row + 2].tolist()
        width, height = values["sizes_P2"][row].tolist()
        boxes_N4, crowd_N = values["boxes_N4"][begin:end], values["crowd_N"][begin:end]
        classes_N = values["classes_N"][begin:end].astype(np.int64)
        starts_N = values["attribute_starts_N"][begin : end + 1]
        attributes_NM = np.full((end - begin, MAX_ATTRIBUTES), NO_ATTRIBUTE, dtype=np.int64)
        filled_NM = np.arange(MAX_ATTRIBUTES) < np.diff(starts_N)[:, None]
        attributes_NM[filled_NM] = values["attribute_M"][starts_N[0] : starts_N[-1]]
        return Annotated(
            int(values["ids_P"][row]),
            Path(self.paths[row]),
            width,
            height,
            np.array(boxes_N4[~crowd_N]),
            classes_N[~crowd_N],
            attributes_NM[~crowd_N],
            np.array(boxes_N4[crowd_N]),
            classes_N[crowd_N],
        )


def cached_annotations(
    source: str,
    files: Sequence[Path],
    choice: Sequence[Any],
    read: Callable[[], tuple[Told, Vocabulary]],
    find: Callable[[list[str]], tuple[Sequence[Path | str | None], dict[str, str]]],
    keep_empty: bool = False,
) -> Annotations:
    """Annotations by their cached arrays, or read from files and put into the cache.

    Args:
        source: a name for reports.
        files: that are read; a change in their size or time makes the cache anew.
        choice: what else decides the arrays, as JSON.
        read: reads the files.
        find: the photo files of the given names, None where there is none, and why not.
        keep_empty: photos without a box stay; what is detected in them is wrong.

    Raises:
        UserError: no photo has a file and a box, or too many entries are broken.
    """
    stats = [(str(path.resolve()), path.stat()) for path in files if path.exists()]
    state = [LAYOUT, [(name, s.st_size, s.st_mtime_ns) for name, s in stats], choice]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
    folder = user_cache() / f"annotations-{key}"
    if not (folder / "about.json").is_file():
        _write(folder, *read())
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in about["arrays"]}
    counts = Counts(source, without_photo=about["without_photo"], broken=about["broken"])
    counts.reasons = list(about["reasons"])
    paths, no_file = find(about["files"])
    unclear = [name for name in about["files"] if no_file.get(name, NO_FILE) != NO_FILE]
    counts.unmatched = len(unclear)
    counts.reasons += [f"{name}: {no_file[name]}" for name in dict.fromkeys(unclear[:NAMED])]
    there_P = np.array([path is not None for path in paths], dtype=bool)
    there_P &= (arrays["sizes_P2"] > 0).all(1)
    counts.without_file = int((~there_P).sum())
    boxes_P = np.diff(arrays["starts_P"])
    crowds_P = arrays["counts_PK"][:, COUNTED.index("crowds")]
    used_P = there_P & (keep_empty | (boxes_P > crowds_P))
    counts.without_boxes = int((there_P & ~used_P).sum())
    counts.photos = int(used_P.sum())
    counts.boxes = int((boxes_P - crowds_P)[used_P].sum())
    attributes_P = np.diff(arrays["attribute_starts_N"][arrays["starts_P"]])
    counts.attributes = int(attributes_P[used_P].sum())
    for name, total in zip(COUNTED, arrays["counts_PK"][there_P].sum(0).tolist(), strict=True):
        setattr(counts, name, total)
    if not counts.boxes:
        raise UserError(f"No photo has both a file and a box: {' '.join(counts.lines())}")
    vocabulary = Vocabulary(about["objects"], about["attributes"])
    known = [str(path or "") for path in paths]
    rows = np.flatnonzero(used_P)
    return Annotations(arrays, vocabulary, counts, known, rows, about["sha256"])


def _write(folder: Path, told: Told, vocabulary: Vocabulary) -> None:
    arrays, files, without_photo = _arrays(told, vocabulary)
    broken = told.broken
    meaning = {
        "files": files,
        "without_photo": without_photo,
        "objects": vocabulary.objects,
        "attributes": vocabulary.attributes,
    }
    digest = hashlib.sha256(json.dumps(meaning).encode())
    for name, values in arrays.items():
        digest.update(f"{name} {values.dtype} {values.shape} ".encode() + values.tobytes())
    about = {
        **meaning,
        "arrays": list(arrays),
        "broken": len(broken),
        "reasons": [f"{times:,} broken: {kind}" for kind, times in broken.kinds()]
        + [f"{name} {reason}" for name, reason in islice(broken.reasons.items(), NAMED)],
        "sha256": digest.hexdigest(),
    }
    try:
        with whole_folder(folder, "about.json") as temporary:
            for name, values in arrays.items():
                np.save(temporary / f"{name}.npy", values)
            (temporary / "about.json").write_text(json.dumps(about), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The annotations cannot be written to {folder.parent} ({error.strerror}): make room, "
            "or name another folder in the environment variable GRIDVLP_CACHE."
        ) from error


def _arrays(told: Told, vocabulary: Vocabulary) -> tuple[dict[str, np.ndarray], list[str], int]:
    """Arrays of P photos in the order of their ids, and of the N boxes that are kept.

    Returns:
        The arrays, the name of each photo's file, and how many boxes are of no listed photo.
    """
    ids_P = np.array(sorted(told.photos), dtype=np.int64)
    listed = [told.photos[image] for image in ids_P.tolist()]
    sizes_P2 = np.array([entry[:2] for entry in listed], dtype=np.int32).reshape(-1, 2)
    image_N = np.asarray(told.image_N)
    place_N = np.searchsorted(ids_P, image_N)
    place_N[place_N == len(ids_P)] = 0
    known_N = ids_P[place_N] == image_N if len(ids_P) else np.zeros(len(image_N), dtype=bool)
    class_N = _indices(told.names, vocabulary.objects)[np.asarray(told.name_N)]
    xywh_N4 = np.asarray(told.xywh_N4).reshape(-1, 4)
    corners_N4 = np.concatenate([xywh_N4[:, :2], xywh_N4[:, :2] + xywh_N4[:, 2:]], axis=1)
    within_N4 = np.tile(sizes_P2[place_N] if len(ids_P) else np.zeros_like(xywh_N4[:, :2]), 2)
    boxes_N4 = np.clip(corners_N4, 0, within_N4).astype(np.float32)
    # so that a box which is no number fails, too
    solid_N = ((boxes_N4[:, 2:] - boxes_N4[:, :2]) >= 1).all(1)
    kept_N = known_N & (class_N >= 0) & solid_N
    crowd_N = np.asarray(told.crowd_N).astype(bool)
    attribute_starts_N, attribute_M, cut_N, outside_N = _attributes(
        told, vocabulary, kept_N & ~crowd_N
    )
    counted_KN = (
        class_N < 0,
        (class_N >= 0) & ~solid_N,
        kept_N & (boxes_N4 != corners_N4).any(1),
        cut_N,
        kept_N & crowd_N,
        outside_N,
    )
    counts_PK = np.stack(
        [
            np.bincount(place_N[known_N], weights=times_N[known_N], minlength=len(ids_P))
            for times_N in counted_KN
        ],
        axis=1,
    ).astype(np.int64)
    order_N = np.flatnonzero(kept_N)
    order_N = order_N[np.argsort(place_N[order_N], kind="stable")]
    lengths_N = np.diff(attribute_starts_N)[order_N]
    starts_N = np.concatenate([[0], np.cumsum(lengths_N)])
    moved_M = np.arange(starts_N[-1]) + np.repeat(
        attribute_starts_N[order_N] - starts_N[:-1], lengths_N
    )
    per_photo_P = np.bincount(place_N[order_N], minlength=len(ids_P))
    arrays = {
        "ids_P": ids_P,
        "sizes_P2": sizes_P2,
        "starts_P": np.concatenate([[0], np.cumsum(per_photo_P)]),
        "boxes_N4": boxes_N4[order_N],
        "classes_N": class_N[order_N].astype(np.int32),
        "crowd_N": crowd_N[order_N],
        "attribute_starts_N": starts_N,
        "attribute_M": attribute_M[moved_M].astype(np.int32),
        "counts_PK": counts_PK,
    }
    return arrays, [entry[2] for entry in listed], int((~known_N).sum())


def _attributes(
    told: Told, vocabulary: Vocabulary, kept_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where each box's attributes begin, the attributes, which boxes had too many, and how many
    of each are outside the vocabulary.
    """
    total = len(kept_N)
    owner_M = np.repeat(np.arange(total), np.asarray(told.words_N))
    attribute_M = _indices(told.words, vocabulary.attributes)[np.asarray(told.word_M)]
    used_M = kept_N[owner_M]
    outside_N = np.bincount(owner_M[used_M & (attribute_M < 0)], minlength=total)
    used_M &= attribute_M >= 0
    owner_M, attribute_M = owner_M[used_M], attribute_M[used_M]
    pairs_M = owner_M * max(1, len(vocabulary.attributes)) + attribute_M
    first_M = np.sort(np.unique(pairs_M, return_index=True)[1])  # said twice counts once
    owner_M, attribute_M = owner_M[first_M], attribute_M[first_M]
    lengths_N = np.bincount(owner_M, minlength=total)
    rank_M = np.arange(len(owner_M)) - np.repeat(np.cumsum(lengths_N) - lengths_N, lengths_N)
    starts_N = np.concatenate([[0], np.cumsum(np.minimum(lengths_N, MAX_ATTRIBUTES))])
    cut_N = lengths_N > MAX_ATTRIBUTES
    return starts_N, attribute_M[rank_M < MAX_ATTRIBUTES], cut_N, outside_N


def _indices(names: dict[str, int], lines: list[list[str]]) -> np.ndarray:
    """For each name its place in the vocabulary, -1 outside."""
    place = {word: i for i, words in enumerate(lines) for word in words}
    found = np.full(max(1, len(names)), -1, dtype=np.int64)
    for name, index in names.items():
        found[index] = place.get(name, -1)
    return found
