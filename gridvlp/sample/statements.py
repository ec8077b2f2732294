"""Captions, region phrases, and NLVR2's statements about two scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gridvlp.sample.scene import COLOURS, MATERIALS, SHAPES, Scene, Thing

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
    return [text.replace("A orange", "An orange").replace(" a orange", " an orange") for text in made]


def region_phrases(thing: Thing) -> list[str]:
    """What Visual Genome's annotators might write of one thing."""
    made = [
        f"a {thing.size} {thing.colour} {thing.material} {thing.shape}",
        f"the {thing.shape} is {thing.colour}",
        f"a {thing.material} {thing.shape}",
    ]
    return [text.replace("a orange", "an orange") for text in made]


def statements() -> Iterator[tuple[str, str, Truth]]:
    """All statements about a pair of scenes: (kind, sentence, whether it is true)."""
    sides: tuple[tuple[str, Callable[[Scene, Scene], Scene]], ...] = (
        ("left", lambda left, right: left),
        ("right", lambda left, right: right),
    )
    described = [(word, shape) for word in (*COLOURS, *MATERIALS) for shape in SHAPES]
    for side, of in sides:
        for shape in SHAPES:
            yield (
                "one side",
                f"The {side} image contains a {shape}.",
                lambda a, b, of=of, shape=shape: of(a, b).count(shape) > 0,
            )
            yield (
                "exactly",
                f"There are exactly two {shape}s in the {side} image.",
                lambda a, b, of=of, shape=shape: of(a, b).count(shape) == 2,
            )
        for word, shape in described:
            yield (
                "one side",
                f"The {side} image contains {_a(word)} {shape}.",
                lambda a, b, of=of, word=word, shape=shape: of(a, b).count(word, shape) > 0,
            )
        for colour in COLOURS:
            yield (
                "nothing",
                f"There is nothing {colour} in the {side} image.",
                lambda a, b, of=of, colour=colour: of(a, b).count(colour) == 0,
            )
        other = "right" if side == "left" else "left"
        yield (
            "more",
            f"There are more things in the {side} image than in the {other} image.",
            lambda a, b, side=side: (
                len(a.things) > len(b.things) if side == "left" else len(b.things) > len(a.things)
            ),
        )
    for shape in SHAPES:
        yield (
            "both",
            f"Both images contain a {shape}.",
            lambda a, b, shape=shape: min(a.count(shape), b.count(shape)) > 0,
        )
    for colour in COLOURS:
        yield (
            "both",
            f"There is something {colour} in both images.",
            lambda a, b, colour=colour: min(a.count(colour), b.count(colour)) > 0,
        )
    for word, shape in described:
        yield (
            "either",
            f"At least one of the images contains {_a(word)} {shape}.",
            lambda a, b, word=word, shape=shape: a.count(word, shape) + b.count(word, shape) > 0,
        )


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
        rng.shuffle(found)  # type: ignore[arg-type]
    chosen: list[tuple[str, list[bool]]] = []
    kinds, shares = list(STATEMENT_SHARES), np.array(list(STATEMENT_SHARES.values()))
    while len(chosen) < count and any(by_kind.values()):
        open_shares = shares * [bool(by_kind[kind]) for kind in kinds]
        kind = kinds[rng.choice(len(kinds), p=open_shares / open_shares.sum())]
        chosen.append(by_kind[kind].pop())
    return chosen


def _a(word: str) -> str:
    return f"an {word}" if word == "orange" else f"a {word}"
