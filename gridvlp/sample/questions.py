"""Balanced questions: for each kind and argument every answer is equally common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gridvlp.sample.scene import COLOURS, MATERIALS, SHAPES, SIZES, Scene, a

MOST_COUNTED = 3
YES_NO = ("yes", "no")
SUBSTANCES = ("metal", "rubber", "wood")  # in the order of MATERIALS
# Ways to ask each kind; VQA's question type is a prefix of the text, so no prefix mixes kinds whose
# answers differ (else the type would say less than the text does).
PHRASINGS: dict[str, tuple[str, ...]] = {
    "exist": ("Is there {a0} {1}?", "Do you see {a0} {1}?"),
    "exist shape": ("Is there a {0}?", "Do you see a {0}?"),
    "exist color": ("Is there anything {0}?", "Do you see anything {0}?"),
    "verify color": ("Is the {1} {0}?", "Does the {1} look {0}?"),
    "verify material": ("Is the {1} made of {0}?", "Is this {1} made of {0}?"),
    "verify size": ("Is the {1} {0}?", "Does the {1} look {0}?"),
    "and": ("Are there both a {0} and a {1}?", "Is there a {0} and a {1}?"),
    "or": ("Is there a {0} or a {1}?", "Do you see either a {0} or a {1}?"),
    "same color": (
        "Are the {0} and the {1} the same color?",
        "Do the {0} and the {1} have the same color?",
    ),
    "choose color": ("Is the {0} {1} or {2}?", "Is the {0} {2} or {1}?"),
    "choose material": ("Is the {0} made of {1} or {2}?", "Is the {0} made of {2} or {1}?"),
    "color": ("What color is the {0}?", "What is the color of the {0}?"),
    "shape": ("What is the {0} thing?", "What shape is the {0} thing?"),
    "material": ("What kind of material is the {0}?", "What type of material is the {0}?"),
    "size": ("How big is the {0}?", "How large is the {0}?"),
    "count": ("How many {0}s are there?", "How many {0}s do you see?"),
}
ANSWERS: dict[str, tuple[str, ...]] = {
    "choose color": COLOURS, "color": COLOURS, "shape": SHAPES, "size": SIZES,
    "choose material": SUBSTANCES, "material": SUBSTANCES, "count": ("0", "1", "2", "3"),
}  # fmt: skip

# Shares of the questions; yes/no are about half. What is hard to learn is asked seldom.
VQA_SHARES = {
    "exist": 0.14, "exist shape": 0.1, "exist color": 0.08, "verify color": 0.1,
    "verify material": 0.04, "verify size": 0.04, "color": 0.22, "shape": 0.12, "material": 0.06,
    "size": 0.04, "count": 0.06,
}  # fmt: skip
GQA_SHARES = {
    "exist": 0.12, "exist shape": 0.06, "exist color": 0.05, "verify color": 0.1,
    "verify material": 0.04, "verify size": 0.04, "and": 0.05, "or": 0.04, "same color": 0.02,
    "choose color": 0.04, "choose material": 0.03, "color": 0.2, "shape": 0.11, "material": 0.06,
    "size": 0.04,
}  # fmt: skip
VG_SHARES = {"exist": 0.2, "color": 0.4, "shape": 0.2, "material": 0.1, "size": 0.1}


@dataclass(frozen=True)
class Question:
    """A question of one scene, with its answer; ``scene`` is its place in the list of scenes."""

    scene: int
    kind: str
    arguments: tuple[str, ...]
    text: str
    answer: str


def answers_of(kind: str) -> tuple[str, ...]:
    """All answers that a kind of question can have."""
    return ANSWERS.get(kind, YES_NO)


def phrase(template: str, arguments: Sequence[str]) -> str:
    """Fill a template: {0}, {1}, ... are the arguments, {a0} the first with its article."""
    return template.format(*arguments, a0=a(arguments[0]))


def candidates(scene: Scene) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """All questions that a scene can be asked: (kind, arguments, answer)."""
    there = {shape: scene.count(shape) for shape in SHAPES}
    unique = {shape: thing for shape in SHAPES if (thing := scene.only(shape)) is not None}
    for shape in SHAPES:
        yield "exist shape", (shape,), _yes(there[shape] > 0)
        if there[shape] <= MOST_COUNTED:
            yield "count", (shape,), str(there[shape])
        for word in (*COLOURS, *MATERIALS):
            # Nothing of either would be too easy a no
            if there[shape] or scene.count(word):
                yield "exist", (word, shape), _yes(scene.count(word, shape) > 0)
        for other in SHAPES:
            if shape < other:
                yield "and", (shape, other), _yes(there[shape] > 0 and there[other] > 0)
                yield "or", (shape, other), _yes(there[shape] > 0 or there[other] > 0)
                if shape in unique and other in unique:
                    same = unique[shape].colour == unique[other].colour
                    yield "same color", (shape, other), _yes(same)
    for shape, thing in unique.items():
        substance = SUBSTANCES[MATERIALS.index(thing.material)]
        yield "color", (shape,), thing.colour
        yield "material", (shape,), substance
        yield "size", (shape,), thing.size
        for colour in COLOURS:
            yield "verify color", (colour, shape), _yes(colour == thing.colour)
            if colour != thing.colour:
                pair = sorted((colour, thing.colour))
                yield "choose color", (shape, *pair), thing.colour
        for size in SIZES:
            yield "verify size", (size, shape), _yes(size == thing.size)
        for other in SUBSTANCES:
            yield "verify material", (other, shape), _yes(other == substance)
            if other != substance:
                yield "choose material", (shape, *sorted((other, substance))), substance
    for colour in COLOURS:
        yield "exist color", (colour,), _yes(scene.count(colour) > 0)
        named = scene.only(colour)
        if named is not None:
            yield "shape", (colour,), named.shape


def balanced_questions(
    scenes: Sequence[Scene], shares: dict[str, float], per_scene: float, rng: np.random.Generator
) -> list[Question]:
    """About ``per_scene`` questions a scene, every answer equally often for each kind and argument.

    The same holds for each exact wording, so that no table of texts beats a guess. Arguments that
    too few scenes speak of are left out; the result is ordered by scene.
    """
    found: dict[str, dict[tuple[str, ...], dict[str, list[int]]]] = {
        kind: defaultdict(lambda: defaultdict(list)) for kind in shares
    }
    for number, scene in enumerate(scenes):
        for kind, arguments, answer in candidates(scene):
            if kind in shares:
                found[kind][arguments][answer].append(number)
    chosen: list[Question] = []
    for kind, share in shares.items():
        groups = {words: by for words, by in sorted(found[kind].items()) if len(by) > 1}
        even = {words: min(map(len, by.values())) for words, by in groups.items()}
        available = sum(even[words] * len(by) for words, by in groups.items())
        scale = min(1.0, share * per_scene * len(scenes) / max(available, 1))
        for words, by in groups.items():
            wanted = even[words] * scale
            count = int(wanted) + (rng.random() < wanted % 1)
            wordings = rng.choice(PHRASINGS[kind], size=count)  # the same for every answer
            for answer in sorted(by):
                picked = rng.choice(by[answer], size=count, replace=False)
                for number, wording in zip(picked, wordings, strict=True):
                    text = phrase(str(wording), words)
                    chosen.append(Question(int(number), kind, words, text, answer))
    order = rng.permutation(len(chosen))
    return sorted((chosen[place] for place in order), key=lambda question: question.scene)


def _yes(true: bool) -> str:
    return "yes" if true else "no"
