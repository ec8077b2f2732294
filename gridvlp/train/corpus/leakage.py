"""Photos of the tasks' validation and test splits stay out of pre-training.

The data sets share photos, so the guard judges photos, not files: a Visual Genome photo that COCO
holds in its validation split is held out with all its regions, questions and GQA questions. A user
of LXMERT found 80% on GQA's validation split because it had been pre-trained on (lxmert#67).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gridvlp.data import json_files, json_values
from gridvlp.data.image_ids import COCO_DIGITS, ImageIds, number_of

VALIDATION_2017 = ("captions_val2017.json", "instances_val2017.json")
VQA_TESTS = ("test2015", "test-dev2015")
GQA_TESTS = ("testdev", "test", "challenge", "submission")


@dataclass(frozen=True)
class Rule:
    """Why photos are kept out.

    ``measured``: their sentences form the held-out part, on which pre-training is measured.
    """

    name: str
    measured: bool


FREE = 0
MINIVAL, VAL2014, VQA_TEST, GQA_TEST, UNKNOWN = range(1, 6)
RULES: tuple[Rule | None, ...] = (
    None,
    Rule("COCO minival (COCO's 2017 val split)", measured=True),
    Rule("COCO val2014, all of it (no list of the 2017 val split)", measured=True),
    Rule("VQA's test photos (COCO test2015)", measured=False),
    Rule("GQA's testdev, test and challenge photos", measured=False),
    Rule("COCO split unknown (vg/image_data.json or COCO's lists are missing)", measured=False),
)

NO_MINIVAL = "captions_val2017.json is not there to list minival: all of val2014 is held out"


def coco_files(data: Path) -> list[Path]:
    """The files that tell COCO's splits, where present."""
    captions = [f"captions_{name}.json" for name in ("train2017", "train2014", "val2014")]
    folder = Path(data) / "coco" / "annotations"
    return [path for name in (*VALIDATION_2017, *captions) if (path := folder / name).is_file()]


def guard_files(data: Path) -> list[Path]:
    """All files that the guard's verdicts depend on, where present."""
    vqa, gqa = Path(data) / "vqa", Path(data) / "gqa"
    names = [_vqa_questions(vqa, split) for split in ("train2014", "val2014", *VQA_TESTS)]
    candidates = [
        *names,
        *(path for split in (*GQA_TESTS, "val") for path in _gqa_questions(gqa, split)),
        ImageIds(data / "vg").image_data,
    ]
    return coco_files(data) + [path for path in candidates if path.is_file()]


def minival(data: Path) -> frozenset[int] | None:
    """COCO ids of "minival", COCO's 2017 validation split; None where no file lists it.

    Raises:
        UserError: the list is broken.
    """
    for name in VALIDATION_2017:
        path = Path(data) / "coco" / "annotations" / name
        if path.is_file():
            return frozenset(_ids(path, "images", "id"))
    return None


class Guard:
    """Which rule keeps a photo out of pre-training, if any.

    Args:
        data: the folder that holds coco/, vqa/, gqa/, vg/.
        ids: resolves photos across data sets.

    Raises:
        UserError: one of the files that tell the splits is broken.
    """

    def __init__(self, data: Path, ids: ImageIds) -> None:
        data = Path(data)
        vqa, gqa = data / "vqa", data / "gqa"
        self.ids = ids
        self.minival = minival(data)
        self.train: set[int] = set()
        self.val2014: set[int] = set()
        if self.minival is None:  # else everything outside minival may be trained on
            annotations = data / "coco" / "annotations"
            for name in ("captions_train2017.json", "captions_train2014.json"):
                self.train.update(_ids(annotations / name, "images", "id"))
            self.train.update(_ids(_vqa_questions(vqa, "train2014"), "questions", "image_id"))
            self.val2014.update(_ids(annotations / "captions_val2014.json", "images", "id"))
            self.val2014.update(_ids(_vqa_questions(vqa, "val2014"), "questions", "image_id"))
        self.notes = [] if self.minival is not None else [NO_MINIVAL]
        self.vqa_test = {
            image
            for split in VQA_TESTS
            for image in _ids(_vqa_questions(vqa, split), "questions", "image_id")
        }
        self.gqa_test = {
            ids.gqa(image)[-1] for split in GQA_TESTS for image in _gqa_images(gqa, split)
        }

        val_keys = {ids.gqa(image)[-1] for image in _gqa_images(gqa, "val")}
        trained = sum(self.rule(key) == FREE for key in val_keys)
        if trained:  # as LXMERT does
            self.notes.append(
                f"{trained:,} of the {len(val_keys):,} photos of GQA's val split are trained on: "
                "report GQA on testdev, not on val"
            )

    def rule(self, key: str) -> int:
        """Index into RULES for a photo; ``key`` is its COCO key where it is in COCO."""
        if len(key) == COCO_DIGITS and key.isdecimal():
            coco = int(key)
            if self.minival is not None and coco in self.minival:
                return MINIVAL
            if coco in self.vqa_test:
                return VQA_TEST
            if key in self.gqa_test:
                return GQA_TEST
            if self.minival is not None or coco in self.train:
                return FREE
            return VAL2014 if coco in self.val2014 else UNKNOWN
        if key in self.gqa_test:
            return GQA_TEST
        number = number_of(key)
        if number is not None and number not in self.ids.coco_of_visual_genome:
            return UNKNOWN
        return FREE


def _vqa_questions(folder: Path, split: str) -> Path:
    return folder / f"v2_OpenEnded_mscoco_{split}_questions.json"


def _gqa_questions(folder: Path, split: str) -> list[Path]:
    return [folder / f"{split}_{kind}_questions.json" for kind in ("balanced", "all")]


def _gqa_images(folder: Path, split: str) -> Iterator[str]:
    for path in _gqa_questions(folder, split):
        if path.is_file():
            for id, question in json_files.items(path):
                yield json_values.name(question, "imageId", path, id)


def _ids(path: Path, member: str, key: str) -> Iterator[int]:
    if path.is_file():
        for number, entry in enumerate(json_files.elements(path, member)):
            yield json_values.integer(entry, key, path, number)
