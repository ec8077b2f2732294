"""Renders a scene as a photo: shaded things, textured ground, uneven light, sensor noise."""

from __future__ import annotations

import numpy as np
from PIL import Image

from gridvlp.sample.scene import Scene, Thing

SUPERSAMPLING = 2
NOISE = 3.5  # standard deviation of the sensor noise, of 255
COLOUR_VALUES = {
    "red": (205, 38, 38),
    "green": (45, 165, 60),
    "blue": (45, 85, 215),
    "orange": (240, 125, 25),
    "black": (38, 38, 42),
    "white": (238, 238, 236),
}
GROUND_VALUES = {
    "grass": ((92, 112, 70), (70, 90, 56)),
    "sand": ((190, 172, 138), (172, 152, 120)),
    "tiles": ((150, 156, 160), (128, 134, 140)),
    "brick": ((142, 98, 84), (168, 156, 146)),
    "carpet": ((120, 104, 112), (104, 90, 100)),
    "water": ((98, 130, 144), (80, 110, 128)),
}

Box = tuple[int, int, int, int]
"""x, y, width, height in whole pixels."""


def render(scene: Scene, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """Take the photo.

    Returns:
        The photo (RGB), and what is seen where (H, W), int8: the place in ``scene.things``, or -1
        for the background.
    """
    canvas_HW3 = _ground(scene.background, scene.height, scene.width, rng)
    seen_HW = np.full((scene.height, scene.width), -1, dtype=np.int8)
    for number, thing in enumerate(scene.things):
        _cast_shadow(canvas_HW3, thing, scene.light)
        _paint(canvas_HW3, seen_HW, number, thing, scene.light, rng)
    canvas_HW3 *= _light(scene, rng)[..., None]
    canvas_HW3 += NOISE * rng.standard_normal(canvas_HW3.shape, dtype=np.float32)
    photo = Image.fromarray(np.clip(canvas_HW3, 0, 255).astype(np.uint8))
    return photo, seen_HW


def box_of(seen_HW: np.ndarray, number: int) -> Box:
    """The box around what is visible of a thing."""
    mask_HW = seen_HW == number
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def _light(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Uneven light (H, W), brighter where it comes from."""
    x_W = np.linspace(-1, 1, scene.width, dtype=np.float32)
    y_H = np.linspace(-1, 1, scene.height, dtype=np.float32)
    strength = rng.uniform(0.02, 0.12)
    slope_HW = scene.light[0] * x_W[None] + scene.light[1] * y_H[:, None]
    return rng.uniform(0.88, 1.06) + strength * slope_HW


def _smooth_noise(height: int, width: int, cell: int, rng: np.random.Generator) -> np.ndarray:
    """Noise (H, W) from -1 to 1 that varies over ``cell`` pixels."""
    coarse = rng.integers(0, 256, (height // cell + 2, width // cell + 2), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32) / 127.5 - 1


def _ground(kind: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Textured background (H, W, 3), float32."""
    one, other = (np.array(value, dtype=np.float32) for value in GROUND_VALUES[kind])
    y_H1 = np.arange(height, dtype=np.float32)[:, None]
    x_1W = np.arange(width, dtype=np.float32)[None]
    scale = rng.uniform(0.85, 1.2)
    mix_HW: np.ndarray
    if kind == "tiles":
        size = 26 * scale
        mix_HW = (((x_1W + 7) // size + (y_H1 + 3) // size) % 2).astype(np.float32)
    elif kind == "brick":
        tall, long = 13 * scale, 34 * scale
        row_H1 = y_H1 // tall
        mortar = ((y_H1 % tall) < 2 * scale) | (
            ((x_1W + (row_H1 % 2) * long / 2) % long) < 2 * scale
        )
        mix_HW = mortar.astype(np.float32)
    elif kind == "water":
        wave_HW = _smooth_noise(height, width, int(30 * scale), rng)
        mix_HW = 0.5 + 0.5 * np.sin(y_H1 / (4.5 * scale) + 4 * wave_HW + 0 * x_1W)
    elif kind == "carpet":
        mix_HW = 0.5 + 0.5 * np.sin(x_1W / (3 * scale)) * np.sin(y_H1 / (3 * scale))
    else:
        mix_HW = 0.5 + 0.5 * _smooth_noise(height, width, int(3 * scale), rng)
    mix_HW = np.broadcast_to(mix_HW, (height, width))
    patches_HW = 9 * _smooth_noise(height, width, int(40 * scale), rng)
    ground_HW3 = one + (other - one) * mix_HW[..., None]
    return ground_HW3 + patches_HW[..., None]


def _cast_shadow(canvas_HW3: np.ndarray, thing: Thing, light: tuple[float, float]) -> None:
    """Darken the ground below a thing, away from the light."""
    rows, columns = _window(canvas_HW3, thing, 1.35)
    v_H1 = ((np.arange(rows.start, rows.stop) + 0.5 - thing.y) / thing.radius)[:, None]
    u_1W = ((np.arange(columns.start, columns.stop) + 0.5 - thing.x) / thing.radius)[None]
    distance_HW = ((u_1W - 0.12 * light[0]) / 1.1) ** 2 + ((v_H1 - 0.72) / 0.45) ** 2
    shade_HW = 1 - 0.38 * np.clip(1.15 - distance_HW, 0, 1)
    canvas_HW3[rows, columns] *= shade_HW.astype(np.float32)[..., None]


def _window(canvas_HW3: np.ndarray, thing: Thing, reach: float) -> tuple[slice, slice]:
    """Rows and columns of the photo within ``reach`` radii of a thing."""
    height, width, _ = canvas_HW3.shape
    far = reach * thing.radius
    rows = slice(max(0, int(thing.y - far)), min(height, int(thing.y + far) + 1))
    return rows, slice(max(0, int(thing.x - far)), min(width, int(thing.x + far) + 1))


def _paint(
    canvas_HW3: np.ndarray,
    seen_HW: np.ndarray,
    number: int,
    thing: Thing,
    light: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    """Paint a thing, supersampled, over what is there; ``seen_HW`` gets its number."""
    rows, columns = _window(canvas_HW3, thing, 1.1)
    step = 1 / SUPERSAMPLING
    y, x = np.arange(rows.start, rows.stop, step), np.arange(columns.start, columns.stop, step)
    v_H1 = ((y + step / 2 - thing.y) / thing.radius).astype(np.float32)[:, None]
    u_1W = ((x + step / 2 - thing.x) / thing.radius).astype(np.float32)[None]
    mask_HW, normal_3HW, mirrored_HW = _surface(thing.shape, *np.broadcast_arrays(u_1W, v_H1))
    normal_3HW = normal_3HW / np.sqrt(np.maximum((normal_3HW**2).sum(0), 1e-6))
    normal_x, normal_y, normal_z = normal_3HW
    toward_light_HW = normal_x * light[0] + normal_y * light[1]
    facing_HW = np.clip(0.62 * toward_light_HW + 0.78 * normal_z, 0, 1)
    value: np.ndarray = np.array(COLOUR_VALUES[thing.colour], dtype=np.float32)
    value = value * np.float32(rng.uniform(0.93, 1.05))
    value = value + 4 * rng.standard_normal(3, dtype=np.float32)
    ambient = {"metal": 0.4, "rubber": 0.55, "wooden": 0.5}[thing.material]
    colour_HW3 = value * (ambient + (1 - ambient) * facing_HW)[..., None]
    if thing.material == "wooden":
        bend_HW = 0.5 * np.sin(1.7 * v_H1 + rng.uniform(0, 6)) + rng.uniform(-0.4, 0.4)
        grain_HW = np.sin(2 * np.pi * (2.2 * u_1W + 0.6 * bend_HW))
        colour_HW3 = colour_HW3 * (0.84 + 0.22 * grain_HW)[..., None]
        brown_HW1 = (0.13 + 0.08 * grain_HW)[..., None]
        colour_HW3 += brown_HW1 * (np.array((165, 115, 65), np.float32) - colour_HW3)
    if thing.material == "metal":
        sky_HW = np.exp(-(((mirrored_HW - 0.25) / 0.16) ** 2))
        ground_HW = np.exp(-(((mirrored_HW + 0.12) / 0.2) ** 2))
        glint_HW = np.clip(0.5 * toward_light_HW + 0.86 * normal_z, 0, 1) ** 28
        colour_HW3 = colour_HW3 * (1 + 0.5 * sky_HW - 0.38 * ground_HW)[..., None]
        colour_HW3 = colour_HW3 + (60 * sky_HW + 190 * glint_HW)[..., None]
    covered_HW = _average(mask_HW.astype(np.float32)[..., None])
    painted_HW3 = _average(np.clip(colour_HW3, 0, 255) * mask_HW[..., None])
    canvas_HW3[rows, columns] = canvas_HW3[rows, columns] * (1 - covered_HW) + painted_HW3
    seen_HW[rows, columns][covered_HW[..., 0] >= 0.5] = number


def _average(patch_HWC: np.ndarray) -> np.ndarray:
    """Mean over the supersamples of each pixel."""
    every = range(SUPERSAMPLING)
    total = sum(patch_HWC[i::SUPERSAMPLING, j::SUPERSAMPLING] for i in every for j in every)
    return np.asarray(total) / np.float32(SUPERSAMPLING**2)


def _surface(
    shape: str, u_HW: np.ndarray, v_HW: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a shape is, which way it faces, and what of its surroundings a polished one mirrors.

    Args:
        shape: one of SHAPES.
        u_HW, v_HW: place of each pixel from the centre, right and down, in radii.

    Returns:
        Mask (H, W), bool; normals (3, H, W), of any length: x right, y down, z to the viewer;
        what is mirrored (H, W), from -1 (above) to 1.
    """
    u, v = u_HW, v_HW
    zero = np.zeros_like(u)
    if shape == "ball":
        square = (u * u + v * v) / 0.9
        z = np.sqrt(np.clip(1 - square, 0, 1))
        return square <= 1, np.stack([u / 0.95, v / 0.95, z]), v
    if shape == "cube":
        side = 0.866
        mask = (
            (np.abs(u) <= side)
            & (np.abs(0.5 * u + side * v) <= side)
            & (np.abs(0.5 * u - side * v) <= side)
        )
        top = v < -np.abs(u) * 0.577
        x = np.where(top, 0.0, np.where(u > 0, 0.75, -0.75))
        y = np.where(top, -0.85, 0.1)
        z = np.where(top, 0.52, 0.62)
        below_edge = v + 0.577 * np.abs(u)  # of the upper face
        mirrored = np.where(top, 0.75 * u + 0.05, 1.3 * (below_edge - 0.45))
        return mask, np.stack([x, y, z]), mirrored
    if shape == "cone":
        half, foot = 0.88, 0.62
        share = np.clip((v + 1) / (1 + foot), 1e-3, 1)
        across = np.clip(u / (half * share), -1, 1)
        body = (np.abs(u) <= half * share) & (v >= -1) & (v <= foot)
        base = ((u / half) ** 2 + ((v - foot) / 0.26) ** 2 <= 1) & (v >= foot)
        z = np.sqrt(np.clip(1 - across**2, 0, 1)) * 0.9
        return body | base, np.stack([across * 0.9, zero - 0.35, z]), across
    # star: five points, each folded along its middle
    angle, distance = np.arctan2(u, -v), np.sqrt(u * u + v * v)
    fifth = 2 * np.pi / 5
    folded = np.abs((angle + fifth / 2) % fifth - fifth / 2)
    inner, outer = 0.46, 1.05
    notch_x, notch_y = inner * np.cos(fifth / 2), inner * np.sin(fifth / 2)
    point_x, point_y = distance * np.cos(folded), distance * np.sin(folded)
    edge = (notch_x - outer) * point_y - notch_y * (point_x - outer)
    side = np.sign((angle + fifth / 2) % fifth - fifth / 2)
    facing = np.round(angle / fifth) * fifth + side * np.pi / 2.6
    x, y = 0.55 * np.sin(facing) + 0.3 * u, -0.55 * np.cos(facing) + 0.3 * v
    return edge >= 0, np.stack([x, y, zero + 0.75]), 1.3 * distance - 0.55 + 0.25 * side
