"""Captions of scenes, and phrases for their regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gridvlp.sample.render import Box
from gridvlp.sample.scene import Scene, Thing, a

GROUNDS = {
    "grass": "grass", "sand": "sand", "tiles": "grey tiles", "brick": "a brick floor",
    "carpet": "a carpet", "water": "water",
}  # fmt: skip
NUMBERS = ("no", "one", "two", "three", "four", "five")


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five captions, as COCO has."""
    things = [scene.things[place] for place in rng.permutation(len(scene.things))]
    one, other, described = things[0], things[1], things[-1]
    left, right = sorted((one, other), key=lambda thing: thing.x)
    ground, rest = GROUNDS[scene.background], len(things) - 1
    templates = [
        f"{a(one.colour)} {one.shape} and {a(other.colour)} {other.shape} on {ground}.",
        f"{_whole(described)} on {ground}." if rng.random() < 0.5 else f"{_whole(described)}.",
        f"there is a {other.material} {other.shape} and {NUMBERS[rest]} other"
        f" thing{'s' if rest > 1 else ''}.",
        f"{NUMBERS[len(things)]} things on {ground}, one of them"
        f" {a(described.colour)} {described.shape}.",
        f"{a(left.colour)} {left.shape} to the left of {a(right.colour)} {right.shape}."
        if rng.random() < 0.5
        else f"{_whole(one)} with {a(other.size)} {other.shape}.",
    ]
    return [text[0].upper() + text[1:] for text in templates]


def regions(
    scene: Scene, boxes: Sequence[Box], rng: np.random.Generator
) -> Iterator[tuple[Box, str]]:
    """What Visual Genome's annotators might write of a photo: boxes and phrases."""
    for thing, box in zip(scene.things, boxes, strict=True):
        yield box, _whole(thing)
        others = (
            f"the {thing.shape} is {thing.colour}",
            f"a {thing.material} {thing.shape}",
            f"{a(thing.colour)} {thing.material} thing",
            f"the {thing.shape} looks {thing.size}",
        )
        for place in sorted(rng.choice(len(others), size=2, replace=False)):
            yield box, others[place]
    yield (0, 0, scene.width, scene.height), f"the ground is {GROUNDS[scene.background]}"
    first, second = sorted(int(place) for place in rng.choice(len(boxes), size=2, replace=False))
    one, other = scene.things[first], scene.things[second]
    text = f"{a(one.colour)} {one.shape} and {a(other.colour)} {other.shape}"
    yield _around(boxes[first], boxes[second]), text


def _whole(thing: Thing) -> str:
    return f"{a(thing.size)} {thing.colour} {thing.material} {thing.shape}"


def _around(one: Box, other: Box) -> Box:
    x, y = min(one[0], other[0]), min(one[1], other[1])
    right = max(one[0] + one[2], other[0] + other[2])
    bottom = max(one[1] + one[3], other[1] + other[3])
    return x, y, right - x, bottom - y
