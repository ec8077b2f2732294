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
    "yellow": (240, 215, 45),
    "purple": (140, 55, 175),
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


def render(scene: Scene, rng: np.random.Generator) -> tuple[Image.Image, list[Box]]:
    """The photo (RGB) and the box of what is visible of each thing, in the order of ``things``."""
    height, width = scene.height * SUPERSAMPLING, scene.width * SUPERSAMPLING
    canvas_HW3: np.ndarray = _ground(scene.background, height, width, rng)
    owner_HW = np.full((height, width), -1, dtype=np.int8)
    for number, thing in enumerate(scene.things):
        _paint(canvas_HW3, owner_HW, number, thing, scene.light, rng)
    photo = Image.fromarray(np.clip(canvas_HW3, 0, 255).astype(np.uint8))
    photo = photo.resize((scene.width, scene.height), Image.Resampling.BOX)
    pixels_HW3: np.ndarray = np.asarray(photo, dtype=np.float32)
    pixels_HW3 = pixels_HW3 * _light(scene, rng)[..., None]
    pixels_HW3 += rng.normal(scale=NOISE, size=pixels_HW3.shape).astype(np.float32)
    photo = Image.fromarray(np.clip(pixels_HW3, 0, 255).astype(np.uint8))
    return photo, [_box(owner_HW == number) for number in range(len(scene.things))]


def _box(mask_HW: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    top, left = rows[0] // SUPERSAMPLING, columns[0] // SUPERSAMPLING
    bottom, right = rows[-1] // SUPERSAMPLING + 1, columns[-1] // SUPERSAMPLING + 1
    return int(left), int(top), int(right - left), int(bottom - top)


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
    scale = SUPERSAMPLING * rng.uniform(0.85, 1.2)
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


def _paint(
    canvas_HW3: np.ndarray,
    owner_HW: np.ndarray,
    number: int,
    thing: Thing,
    light: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    """Paint a thing and its shadow over what is there."""
    radius = thing.radius * SUPERSAMPLING
    centre_x, centre_y = thing.x * SUPERSAMPLING, thing.y * SUPERSAMPLING
    reach = 1.35 * radius
    height, width = owner_HW.shape
    top, bottom = max(0, int(centre_y - reach)), min(height, int(centre_y + reach) + 1)
    left, right = max(0, int(centre_x - reach)), min(width, int(centre_x + reach) + 1)
    v_H1 = ((np.arange(top, bottom) + 0.5 - centre_y) / radius).astype(np.float32)[:, None]
    u_1W = ((np.arange(left, right) + 0.5 - centre_x) / radius).astype(np.float32)[None]
    patch_HW3 = canvas_HW3[top:bottom, left:right]

    shadow_HW = ((u_1W - 0.12 * light[0]) / 1.1) ** 2 + ((v_H1 - 0.72) / 0.45) ** 2
    patch_HW3 *= (1 - 0.38 * np.clip(1.15 - shadow_HW, 0, 1))[..., None]

    mask_HW, normal_3HW = _surface(thing.shape, u_1W + 0 * v_H1, v_H1 + 0 * u_1W)
    normal_x, normal_y, normal_z = normal_3HW
    facing = np.clip(0.62 * (normal_x * light[0] + normal_y * light[1]) + 0.78 * normal_z, 0, 1)
    shine = np.clip(0.5 * (normal_x * light[0] + normal_y * light[1]) + 0.86 * normal_z, 0, 1)
    value: np.ndarray = np.array(COLOUR_VALUES[thing.colour], dtype=np.float32)
    value = value * rng.uniform(0.93, 1.05) + rng.normal(scale=4, size=3)
    ambient, gloss = {"metal": (0.36, 0.85), "rubber": (0.55, 0.0), "wooden": (0.5, 0.06)}[
        thing.material
    ]
    shade_HW = ambient + (1 - ambient) * facing
    if thing.material == "wooden":
        bend = 0.5 * np.sin(1.7 * v_H1 + rng.uniform(0, 6)) + rng.uniform(-0.4, 0.4)
        grain_HW = np.sin(2 * np.pi * (2.2 * u_1W + 0.6 * bend))
        shade_HW = shade_HW * (0.84 + 0.22 * grain_HW)
    colour_HW3 = value * shade_HW[..., None]
    if thing.material == "wooden":
        colour_HW3 = 0.86 * colour_HW3 + 0.14 * np.array((150, 105, 60), np.float32)
    if thing.material == "metal":
        band_HW = np.exp(-(((normal_y - 0.25) / 0.16) ** 2)) - 0.7 * np.exp(
            -(((normal_y + 0.1) / 0.2) ** 2)
        )
        colour_HW3 = colour_HW3 * (1 + 0.42 * band_HW[..., None])
        colour_HW3 += 70 * np.clip(band_HW, 0, 1)[..., None]
    colour_HW3 = colour_HW3 + gloss * 235 * (shine**28)[..., None]
    patch_HW3[mask_HW] = colour_HW3[mask_HW]
    owner_HW[top:bottom, left:right][mask_HW] = number


def _surface(shape: str, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a shape is (bool H, W) and its normals (3, H, W; x right, y down, z to the viewer)."""
    zero = np.zeros_like(u)
    if shape == "ball":
        square = (u * u + v * v) / 0.9
        z = np.sqrt(np.clip(1 - square, 0, 1))
        return square <= 1, np.stack([u / 0.95, v / 0.95, z])
    if shape == "cube":
        side = 0.866
        mask = (
            (np.abs(u) <= side)
            & (np.abs(0.5 * u + side * v) <= side)
            & (np.abs(0.5 * u - side * v) <= side)
        )
        top = v < -np.abs(u) * 0.577
        # Slightly bulging faces, so that metal has something to mirror.
        x = np.where(top, 0.0, np.where(u > 0, 0.75, -0.75)) + 0.3 * u
        y = np.where(top, -0.85, 0.1) + 0.45 * v
        z = np.where(top, 0.52, 0.62)
        return mask, np.stack([x, y, z])
    if shape == "cylinder":
        half, lid = 0.68, 0.24
        inside = np.sqrt(np.clip(1 - (u / half) ** 2, 0, 1))
        body = (np.abs(u) <= half) & (v >= -0.62) & (v <= 0.68 + lid * inside)
        cap = (u / half) ** 2 + ((v + 0.62) / lid) ** 2 <= 1
        x = np.where(cap, 0.0, u / half)
        y = np.where(cap, -0.85, 0.05)
        return body | cap, np.stack([x, y, np.where(cap, 0.5, inside)])
    if shape == "cone":
        half, foot = 0.88, 0.62
        share = np.clip((v + 1) / (1 + foot), 1e-3, 1)
        slope = np.clip(u / (half * share), -1, 1)
        inside = np.sqrt(np.clip(1 - (u / half) ** 2, 0, 1))
        body = (np.abs(u) <= half * share) & (v >= -1) & (v <= foot)
        base = (u / half) ** 2 + ((v - foot) / 0.26) ** 2 <= 1
        z = np.sqrt(np.clip(1 - slope**2, 0, 1)) * 0.9
        return body | (base & (v >= foot) & (inside >= 0)), np.stack([slope * 0.9, zero - 0.35, z])
    if shape == "ring":
        distance = np.sqrt(u * u + (v / 0.8) ** 2) + 1e-6
        tube = (distance - 0.7) / 0.28
        x, y = tube * u / distance, tube * v / distance
        return np.abs(tube) <= 1, np.stack([x, y, np.sqrt(np.clip(1 - tube**2, 0, 1))])
    # star: five points, each folded along its middle
    angle, distance = np.arctan2(u, -v), np.sqrt(u * u + v * v)
    fifth = 2 * np.pi / 5
    folded = np.abs((angle + fifth / 2) % fifth - fifth / 2)
    inner, outer = 0.46, 1.05
    tip_x, tip_y = outer, 0.0
    notch_x, notch_y = inner * np.cos(fifth / 2), inner * np.sin(fifth / 2)
    point_x, point_y = distance * np.cos(folded), distance * np.sin(folded)
    edge = (notch_x - tip_x) * (point_y - tip_y) - (notch_y - tip_y) * (point_x - tip_x)
    side = np.sign((angle + fifth / 2) % fifth - fifth / 2)
    centre = np.round(angle / fifth) * fifth
    facing = centre + side * np.pi / 2.6
    x, y = 0.55 * np.sin(facing) + 0.3 * u, -0.55 * np.cos(facing) + 0.3 * v
    return edge >= 0, np.stack([x, y, zero + 0.75])
