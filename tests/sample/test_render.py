import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridvlp.sample.render import box_of, render
from gridvlp.sample.scene import (
    BACKGROUNDS,
    COLOURS,
    MATERIALS,
    MOST_THINGS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    draw_scene,
)

LIGHT = (0.3, -0.95)
# Degrees on the colour wheel where people see these names
HUES = {"red": 0, "orange": 28, "yellow": 55, "green": 125, "blue": 225, "purple": 283}


def drawn(seed):
    return draw_scene(np.random.default_rng(seed))


def photo_of(shape, colour="red", material="rubber", size="large", background="sand"):
    """The pixels of a thing alone in the middle of a small photo, and where it is seen."""
    radius = 0.205 * 128 if size == "large" else 0.12 * 128
    thing = Thing(shape, colour, material, size, 64.0, 64.0, radius)
    scene = Scene(128, 128, background, (thing,), LIGHT)
    photo, seen_HW = render(scene, np.random.default_rng(0))
    return np.asarray(photo, dtype=np.float32), seen_HW == 0


@given(st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_scenes_have_two_to_five_things_within_the_photo(seed):
    scene = drawn(seed)
    assert 2 <= len(scene.things) <= MOST_THINGS
    assert 200 <= min(scene.width, scene.height) <= 300
    assert max(scene.width, scene.height) / min(scene.width, scene.height) <= 16 / 9 + 0.01
    for thing in scene.things:
        assert 0.9 * thing.radius <= thing.x <= scene.width - 0.9 * thing.radius
        assert 0.9 * thing.radius <= thing.y <= scene.height - 0.9 * thing.radius


def test_scenes_use_every_word_about_equally():
    things = [thing for seed in range(600) for thing in drawn(seed).things]
    for words, least in ((SHAPES, 0.6), (COLOURS, 0.6), (MATERIALS, 0.8), (SIZES, 0.7)):
        for word in words:
            share = sum(thing.has(word) for thing in things) / len(things)
            assert share > least / len(words), word
    assert {drawn(seed).background for seed in range(60)} == set(BACKGROUNDS)
    sizes = {(s.width, s.height) for s in map(drawn, range(200))}
    assert len({round(w / h, 1) for w, h in sizes}) >= 6
    assert len(sizes) >= 20


def test_most_of_every_thing_is_visible_and_some_things_are_hidden_in_part():
    shares = []
    for seed in range(60):
        scene = drawn(seed)
        _, seen_HW = render(scene, np.random.default_rng(seed))
        for number, thing in enumerate(scene.things):
            alone = Scene(scene.width, scene.height, scene.background, (thing,), scene.light)
            _, alone_HW = render(alone, np.random.default_rng(seed))
            shares.append((seen_HW == number).sum() / (alone_HW == 0).sum())
    assert min(shares) >= 0.65
    assert 0.05 < np.mean(np.array(shares) < 0.99) < 0.6


def test_boxes_are_tight():
    scene = drawn(7)
    _, seen_HW = render(scene, np.random.default_rng(7))
    assert seen_HW.shape == (scene.height, scene.width)
    for number in range(len(scene.things)):
        x, y, w, h = box_of(seen_HW, number)
        mask = seen_HW == number
        assert mask[y : y + h, x : x + w].sum() == mask.sum() > 0
        assert mask[y].any()
        assert mask[y + h - 1].any()
        assert mask[:, x].any()
        assert mask[:, x + w - 1].any()


def test_small_things_fill_a_cell_of_the_grid_and_large_ones_are_clearly_larger():
    for shape in SHAPES:
        small, large = (box_of(np.where(photo_of(shape, size=size)[1], 0, -1), 0) for size in SIZES)
        # Extraction in the demo: shorter side 128, as here, and one grid for 32 x 32 pixels
        assert max(small[2:]) >= 26
        assert max(large[2:]) >= 1.5 * max(small[2:])


def name_of(rgb):
    """The colour's name, by its hue: shading changes how bright a colour is, not which."""
    hue, saturation, value = colorsys.rgb_to_hsv(*np.asarray(rgb) / 255)
    if saturation < 0.3 or value < 0.2:
        return "white" if value > 0.45 else "black"
    return min(HUES, key=lambda name: abs((HUES[name] - 360 * hue + 180) % 360 - 180))


@pytest.mark.parametrize("material", MATERIALS)
def test_a_thing_has_the_colour_that_is_said_of_it(material):
    for shape in SHAPES:
        for colour in COLOURS:
            pixels, mask = photo_of(shape, colour, material)
            seen = np.median(pixels[mask], axis=0)
            assert name_of(seen) == colour, (shape, seen)


def test_materials_differ_in_texture():
    """Metal shines: its brightest pixels stand out. Wood is striped. Rubber is smooth."""
    for shape in SHAPES:
        shine, contrast = {}, {}
        for material in MATERIALS:
            pixels, mask = photo_of(shape, "blue", material)
            grey = pixels.mean(2)
            shine[material] = np.percentile(grey[mask], 98) / np.median(grey[mask])
            inside = mask[:, 1:] & mask[:, :-1]
            # Steps between neighbours in units of the brightness; noise is the same for all
            contrast[material] = np.abs(np.diff(grey, axis=1))[inside].mean()
        assert shine["metal"] > 1.25 * max(shine["rubber"], shine["wooden"]), shape
        assert contrast["wooden"] > 1.1 * contrast["rubber"], shape


def test_no_two_shapes_look_alike():
    masks = {shape: photo_of(shape)[1] for shape in SHAPES}
    for one in SHAPES:
        for other in SHAPES:
            if one < other:
                union = (masks[one] | masks[other]).sum()
                assert (masks[one] & masks[other]).sum() / union < 0.9, (one, other)


def test_light_is_uneven_and_the_sensor_noisy():
    scene = Scene(200, 200, "tiles", (), (0.0, -1.0))
    photos = [
        np.asarray(render(scene, np.random.default_rng(seed))[0], dtype=np.float32)
        for seed in range(6)
    ]
    assert np.mean([photo[:50].mean() - photo[-50:].mean() for photo in photos]) > 5
    assert len({round(float(photo.mean())) for photo in photos}) > 1
    assert all(np.abs(np.diff(photo[:, :, 0], axis=1)).mean() > 2 for photo in photos)
