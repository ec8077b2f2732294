"""Balanced questions: for each kind and argument every answer is equally common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gridvlp.sample.scene import COLOURS, MATERIALS, SHAPES, SIZES, Scene

MOST_COUNTED = 3


@dataclass(frozen=True)
class Kind:
    """A kind of question: two ways to ask it, and its types in VQA's and in GQA's terms."""

    name: str
    phrasings: tuple[str, str]
    vqa_type: str
    answer_type: str
    gqa_types: tuple[str, str, str]  # detailed, semantic, structural
    answers: tuple[str, ...]


YES_NO = ("yes", "no")
KINDS = {
    kind.name: kind
    for kind in (
        Kind("exist", ("Is there a {0} {1}?", "Do you see a {0} {1}?"), "is there a", "yes/no",
             ("existAttrC", "obj", "verify"), YES_NO),
        Kind("verify", ("Is the {1} {0}?", "Does the {1} look {0}?"), "is the", "yes/no",
             ("verifyAttr", "attr", "verify"), YES_NO),
        Kind("and", ("Are there both a {0} and a {1}?", "Is there a {0} and a {1}?"), "are there",
             "yes/no", ("existAnd", "obj", "logical"), YES_NO),
        Kind("or", ("Is there a {0} or a {1}?", "Do you see either a {0} or a {1}?"), "are there",
             "yes/no", ("existOr", "obj", "logical"), YES_NO),
        Kind("color", ("What color is the {0}?", "What is the color of the {0}?"),
             "what color is the", "other", ("categoryAttrColor", "attr", "query"), COLOURS),
        Kind("shape", ("What is the {0} thing?", "What shape is the {0} thing?"), "what is the",
             "other", ("categoryThat", "cat", "query"), SHAPES),
        Kind("material", ("What material is the {0} made of?", "What is the {0} made of?"),
             "what", "other", ("materialWhat", "attr", "query"), ("metal", "rubber", "wood")),
        Kind("size", ("What size is the {0}?", "How big is the {0}?"), "what size is the", "other",
             ("sizeWhat", "attr", "query"), SIZES),
        Kind("count", ("How many {0}s are there?", "What number of {0}s is there?"), "how many",
             "number", ("countHow", "obj", "query"), ("0", "1", "2", "3")),
    )
}  # fmt: skip

# Shares of the questions; yes/no are half of them.
VQA_SHARES = {
    "exist": 0.32, "verify": 0.2, "color": 0.2, "shape": 0.1, "material": 0.06, "size": 0.04,
    "count": 0.08,
}  # fmt: skip
GQA_SHARES = {
    "exist": 0.24, "verify": 0.18, "and": 0.06, "or": 0.06, "color": 0.22, "shape": 0.12,
    "material": 0.07, "size": 0.05,
}  # fmt: skip
VG_SHARES = {"exist": 0.2, "color": 0.4, "shape": 0.2, "material": 0.1, "size": 0.1}


@dataclass(frozen=True)
class Question:
    """A question of one scene, with its answer."""

    scene: int
    kind: str
    arguments: tuple[str, ...]
    text: str
    answer: str


def candidates(number: int, scene: Scene) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """All questions of a scene: (kind, arguments, answer)."""
    present = {shape: scene.count(shape) for shape in SHAPES}
    for shape in SHAPES:
        for word in (*COLOURS, *MATERIALS, *SIZES):
            if scene.count(word, shape):
                yield "exist", (word, shape), "yes"
            elif present[shape] or scene.count(word):  # nothing of either would be too easy a no
                yield "exist", (word, shape), "no"
        thing = scene.only(shape)
        if thing is not None:
            yield "color", (shape,), thing.colour
            yield "material", (shape,), "wood" if thing.material == "wooden" else thing.material
            yield "size", (shape,), thing.size
            for word in (*COLOURS, *MATERIALS, *SIZES):
                yield "verify", (word, shape), "yes" if thing.has(word) else "no"
        if present[shape] <= MOST_COUNTED:
            yield "count", (shape,), str(present[shape])
        for other in SHAPES:
            if shape < other:
                both = bool(present[shape]) + bool(present[other])
                yield "and", (shape, other), "yes" if both == 2 else "no"
                yield "or", (shape, other), "yes" if both else "no"
    for colour in COLOURS:
        thing = scene.only(colour)
        if thing is not None:
            yield "shape", (colour,), thing.shape


def balanced_questions(
    scenes: Sequence[Scene], shares: dict[str, float], per_scene: float, rng: np.random.Generator
) -> list[Question]:
    """About ``per_scene`` questions a scene, every answer equally often for each kind and argument.

    Arguments that too few scenes speak of are left out; the result is ordered by scene.
    """
    found: dict[str, dict[tuple[str, ...], dict[str, list[int]]]] = {
        kind: defaultdict(lambda: defaultdict(list)) for kind in shares
    }
    for number, scene in enumerate(scenes):
        for kind, arguments, answer in candidates(number, scene):
            if kind in shares:
                found[kind][arguments][answer].append(number)
    chosen: list[Question] = []
    for kind, share in shares.items():
        groups = {a: by for a, by in sorted(found[kind].items()) if len(by) > 1}
        even = {arguments: min(map(len, by.values())) for arguments, by in groups.items()}
        available = sum(even[arguments] * len(by) for arguments, by in groups.items())
        scale = min(1.0, share * per_scene * len(scenes) / max(available, 1))
        for arguments, by in groups.items():
            wanted = even[arguments] * scale
            count = int(wanted) + (rng.random() < wanted % 1)
            for answer in sorted(by):
                for number in rng.choice(by[answer], size=count, replace=False):
                    phrasing = KINDS[kind].phrasings[rng.integers(2)]
                    text = _articles(phrasing.format(*arguments))
                    chosen.append(Question(int(number), kind, arguments, text, answer))
    order = rng.permutation(len(chosen))
    return sorted((chosen[place] for place in order), key=lambda question: question.scene)


def _articles(text: str) -> str:
    return text.replace(" a orange", " an orange")
