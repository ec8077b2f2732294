"""What a scene holds: a background and two or three things, each with its looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPES = ("ball", "cube", "cone", "star")
COLOURS = ("red", "green", "blue", "orange", "black", "white")
MATERIALS = ("metal", "rubber", "wooden")
SIZES = ("small", "large")
BACKGROUNDS = ("grass", "sand", "tiles", "brick", "carpet", "water")

RADIUS = {"small": 0.2, "large": 0.32}  # of the photo's shorter side
ASPECTS = ((1, 1), (4, 3), (3, 2), (16, 9), (3, 4), (2, 3), (9, 16))
SHORTER_SIDES = (208, 240, 256, 272)
FEWEST_THINGS, MOST_THINGS = 2, 3
CLOSEST = 0.78  # centres are at least this share of the summed radii apart: little is hidden


@dataclass(frozen=True)
class Thing:
    """One object; ``x``, ``y`` and ``radius`` in pixels."""

    shape: str
    colour: str
    material: str
    size: str
    x: float
    y: float
    radius: float

    def has(self, word: str) -> bool:
        """Whether a word (shape, colour, material or size) is true of it."""
        return word in (self.shape, self.colour, self.material, self.size)


@dataclass(frozen=True)
class Scene:
    """A photo before it is taken; ``things`` from the farthest to the nearest."""

    width: int
    height: int
    background: str
    things: tuple[Thing, ...]
    light: tuple[float, float]  # direction of the light in the picture plane

    def count(self, *words: str) -> int:
        """How many things have all these words true of them."""
        return sum(all(thing.has(word) for word in words) for thing in self.things)

    def only(self, *words: str) -> Thing | None:
        """The one thing of which all these words are true, if it is the only one."""
        found = [thing for thing in self.things if all(thing.has(word) for word in words)]
        return found[0] if len(found) == 1 else None


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene; a third of them repeat a shape or a colour, for something to count."""
    wide, high = ASPECTS[rng.integers(len(ASPECTS))]
    shorter = int(SHORTER_SIDES[rng.integers(len(SHORTER_SIDES))])
    longer = round(shorter * max(wide, high) / min(wide, high))
    width, height = (longer, shorter) if wide >= high else (shorter, longer)

    count = int(rng.integers(FEWEST_THINGS, MOST_THINGS + 1))
    repeated = rng.random()
    shape = SHAPES[rng.integers(len(SHAPES))]
    colour = COLOURS[rng.integers(len(COLOURS))]
    placed: list[Thing] = []
    for number in range(count):
        size = SIZES[int(rng.random() < 0.45)]
        radius = RADIUS[size] * min(width, height)
        spot = _free_spot(rng, placed, radius, width, height)
        if spot is None:
            continue
        repeat = number < 3
        placed.append(
            Thing(
                shape if repeat and repeated < 0.25 else SHAPES[rng.integers(len(SHAPES))],
                colour if repeat and repeated > 0.9 else COLOURS[rng.integers(len(COLOURS))],
                MATERIALS[rng.integers(len(MATERIALS))],
                size,
                *spot,
                radius,
            )
        )
    if len(placed) < FEWEST_THINGS:
        return draw_scene(rng)
    angle = rng.uniform(-0.9, 0.9) - np.pi / 2
    return Scene(
        width,
        height,
        BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
        tuple(sorted(placed, key=lambda thing: thing.y)),
        (float(np.cos(angle)), float(np.sin(angle))),
    )


def _free_spot(
    rng: np.random.Generator, placed: list[Thing], radius: float, width: int, height: int
) -> tuple[float, float] | None:
    margin = 0.95 * radius
    for _ in range(60):
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        if all(
            np.hypot(x - other.x, y - other.y) >= CLOSEST * (radius + other.radius)
            for other in placed
        ):
            return float(x), float(y)
    return None


def a(words: str) -> str:
    """The words with their indefinite article."""
    return f"an {words}" if words.startswith("orange") else f"a {words}"
