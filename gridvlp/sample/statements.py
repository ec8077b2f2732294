"""NLVR2's statements about two scenes, balanced: each is true of half of the pairs it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gridvlp.sample.scene import COLOURS, MATERIALS, MOST_THINGS, SHAPES, SIZES, Scene, a

Truth = Callable[[Scene, Scene], bool]
Statement = tuple[str, tuple[str, ...], Truth]  # kind, ways to say it, whether it is true

# Shares of the kinds of statement; the hard ones (counting, comparing) are few.
SHARES = {
    "one side": 0.52, "both": 0.2, "either": 0.14, "nothing": 0.03, "all": 0.03,
    "one image": 0.03, "exactly": 0.03, "more": 0.02,
}  # fmt: skip


def statements() -> Iterator[Statement]:
    """All statements about a pair of scenes."""
    described = [(word, shape) for word in (*COLOURS, *MATERIALS) for shape in SHAPES]
    nouns = [*((shape,) for shape in SHAPES), *described]
    said: tuple[str, ...]
    for side in ("left", "right"):
        for words in nouns:
            thing = a(" ".join(words))
            said = (
                f"There is {thing} in the {side} image.",
                f"In the {side} image there is {thing}.",
            )
            yield "one side", said, _count(side, words, 1, MOST_THINGS)
        for colour in COLOURS:
            said = (
                f"There is nothing {colour} in the {side} image.",
                f"No thing in the {side} image is {colour}.",
            )
            yield "nothing", said, _count(side, (colour,), 0, 0)
        for word in (*MATERIALS, *SIZES):
            said = (
                f"Everything in the {side} image is {word}.",
                f"All things in the {side} image are {word}.",
            )
            yield "all", said, _all(side, word)
        for shape in SHAPES:
            said = (f"There are exactly two {shape}s in the {side} image.",)
            yield "exactly", said, _count(side, (shape,), 2, 2)
    for words in nouns:
        thing = a(" ".join(words))
        said = (
            f"There is {thing} in at least one image.",
            f"In at least one image there is {thing}.",
        )
        yield "either", said, _images_with(words, 1, 2)
    for shape in SHAPES:
        said = (f"There is a {shape} in both images.", f"In both images there is a {shape}.")
        yield "both", said, _images_with((shape,), 2, 2)
        yield (
            "one image",
            (f"There is a {shape} in exactly one image.",),
            _images_with((shape,), 1, 1),
        )
    for colour in COLOURS:
        said = (f"There is something {colour} in both images.",)
        yield "both", said, _images_with((colour,), 2, 2)
        said = (f"There is something {colour} in exactly one image.",)
        yield "one image", said, _images_with((colour,), 1, 1)
    for more, fewer in (("left", "right"), ("right", "left")):
        said = (
            f"There are more things in the {more} image than in the {fewer} image.",
            f"The {more} image has more things than the {fewer} image.",
        )
        yield "more", said, _more(more)


def choose_statements(
    pairs: Sequence[tuple[Scene, Scene]], count: int, rng: np.random.Generator
) -> list[tuple[str, list[bool]]]:
    """Up to ``count`` statements that hold for exactly half of the pairs: (text, its truths)."""
    by_kind: dict[str, list[tuple[tuple[str, ...], list[bool]]]] = {kind: [] for kind in SHARES}
    for kind, said, true in statements():
        truths = [true(left, right) for left, right in pairs]
        if 2 * sum(truths) == len(pairs):
            by_kind[kind].append((said, truths))
    chosen: list[tuple[str, list[bool]]] = []
    kinds, shares = list(SHARES), np.array(list(SHARES.values()))
    while len(chosen) < count and any(by_kind.values()):
        open_shares = shares * [bool(by_kind[kind]) for kind in kinds]
        kind = kinds[rng.choice(len(kinds), p=open_shares / open_shares.sum())]
        said, truths = by_kind[kind].pop(int(rng.integers(len(by_kind[kind]))))
        chosen.append((said[rng.integers(len(said))], truths))
    return chosen


def _side(side: str, left: Scene, right: Scene) -> Scene:
    return left if side == "left" else right


def _count(side: str, words: tuple[str, ...], low: int, high: int) -> Truth:
    def true(left: Scene, right: Scene) -> bool:
        return low <= _side(side, left, right).count(*words) <= high

    return true


def _all(side: str, word: str) -> Truth:
    def true(left: Scene, right: Scene) -> bool:
        return all(thing.has(word) for thing in _side(side, left, right).things)

    return true


def _images_with(words: tuple[str, ...], low: int, high: int) -> Truth:
    def true(left: Scene, right: Scene) -> bool:
        return low <= (left.count(*words) > 0) + (right.count(*words) > 0) <= high

    return true


def _more(side: str) -> Truth:
    def true(left: Scene, right: Scene) -> bool:
        more, fewer = (left, right) if side == "left" else (right, left)
        return len(more.things) > len(fewer.things)

    return true
