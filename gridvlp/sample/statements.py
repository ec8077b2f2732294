"""Captions, region phrases, and NLVR2's statements about two scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gridvlp.sample.scene import COLOURS, MATERIALS, MOST_THINGS, SHAPES, Scene, Thing

Truth = Callable[[Scene, Scene], bool]

# Shares of NLVR2's kinds of statement; the hard ones (counting, comparing) are few.
STATEMENT_SHARES = {
    "one side": 0.5, "both": 0.16, "either": 0.12, "nothing": 0.1, "exactly": 0.06, "more": 0.06,
}  # fmt: skip


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five captions, as COCO has."""
    things = list(scene.things)
    rng.shuffle(things)
    one, other = things[0], things[-1]
    first = scene.things[0] if scene.things[0].x < scene.things[-1].x else scene.things[-1]
    last = scene.things[-1] if first is scene.things[0] else scene.things[0]
    made = [
        f"A {one.colour} {one.shape} and a {other.colour} {other.shape} on {scene.background}.",
        f"A {one.size} {one.colour} {one.material} {one.shape}.",
        f"There is a {other.material} {other.shape} and {len(things) - 1} other things.",
        f"{len(things)} things on {scene.background}, one is a {other.colour} {other.shape}.",
        f"A {first.colour} {first.shape} to the left of a {last.colour} {last.shape}.",
    ]
    return [
        text.replace("A orange", "An orange").replace(" a orange", " an orange") for text in made
    ]


def region_phrases(thing: Thing) -> list[str]:
    """What Visual Genome's annotators might write of one thing."""
    made = [
        f"a {thing.size} {thing.colour} {thing.material} {thing.shape}",
        f"the {thing.shape} is {thing.colour}",
        f"a {thing.material} {thing.shape}",
    ]
    return [text.replace("a orange", "an orange") for text in made]


def _count(
    of: Callable[[Scene, Scene], Scene], words: tuple[str, ...], low: int, high: int
) -> Truth:
    """Whether one of the scenes has from ``low`` to ``high`` things of these words."""

    def true(left: Scene, right: Scene) -> bool:
        return low <= of(left, right).count(*words) <= high

    return true


def _scenes_with(words: tuple[str, ...], least: int) -> Truth:
    """Whether at least ``least`` of the two scenes have a thing of these words."""

    def true(left: Scene, right: Scene) -> bool:
        return (left.count(*words) > 0) + (right.count(*words) > 0) >= least

    return true


def _left(left: Scene, right: Scene) -> Scene:
    return left


def _right(left: Scene, right: Scene) -> Scene:
    return right


def _more_left(left: Scene, right: Scene) -> bool:
    return len(left.things) > len(right.things)


def _more_right(left: Scene, right: Scene) -> bool:
    return len(left.things) < len(right.things)


def statements() -> Iterator[tuple[str, str, Truth]]:
    """All statements about a pair of scenes: (kind, sentence, whether it is true)."""
    described = [(word, shape) for word in (*COLOURS, *MATERIALS) for shape in SHAPES]
    for side, of in (("left", _left), ("right", _right)):
        for shape in SHAPES:
            sentence = f"The {side} image contains a {shape}."
            yield "one side", sentence, _count(of, (shape,), 1, MOST_THINGS)
            sentence = f"There are exactly two {shape}s in the {side} image."
            yield "exactly", sentence, _count(of, (shape,), 2, 2)
        for word, shape in described:
            sentence = f"The {side} image contains {_a(word)} {shape}."
            yield "one side", sentence, _count(of, (word, shape), 1, MOST_THINGS)
        for colour in COLOURS:
            sentence = f"There is nothing {colour} in the {side} image."
            yield "nothing", sentence, _count(of, (colour,), 0, 0)
    yield "more", "There are more things in the left image than in the right image.", _more_left
    yield "more", "There are more things in the right image than in the left image.", _more_right
    for shape in SHAPES:
        yield "both", f"Both images contain a {shape}.", _scenes_with((shape,), 2)
    for colour in COLOURS:
        sentence = f"There is something {colour} in both images."
        yield "both", sentence, _scenes_with((colour,), 2)
    for word, shape in described:
        sentence = f"At least one of the images contains {_a(word)} {shape}."
        yield "either", sentence, _scenes_with((word, shape), 1)


def choose_statements(
    pairs: Sequence[tuple[Scene, Scene]], count: int, rng: np.random.Generator
) -> list[tuple[str, list[bool]]]:
    """Statements that hold for exactly half of the pairs, with their truth for each pair."""
    by_kind: dict[str, list[tuple[str, list[bool]]]] = {kind: [] for kind in STATEMENT_SHARES}
    for kind, sentence, true in statements():
        truths = [true(left, right) for left, right in pairs]
        if 2 * sum(truths) == len(pairs):
            by_kind[kind].append((sentence, truths))
    for found in by_kind.values():
        rng.shuffle(found)
    chosen: list[tuple[str, list[bool]]] = []
    kinds, shares = list(STATEMENT_SHARES), np.array(list(STATEMENT_SHARES.values()))
    while len(chosen) < count and any(by_kind.values()):
        open_shares = shares * [bool(by_kind[kind]) for kind in kinds]
        kind = kinds[rng.choice(len(kinds), p=open_shares / open_shares.sum())]
        chosen.append(by_kind[kind].pop())
    return chosen


def _a(word: str) -> str:
    return f"an {word}" if word == "orange" else f"a {word}"
