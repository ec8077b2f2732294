"""Every field that can change a feature is compared, wherever recipes meet."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from gridvlp.errors import UserError
from gridvlp.extract.backbone import Architecture, new_architecture
from gridvlp.extract.encoder import _random_weights, save_encoder
from gridvlp.extract.extraction import extract, options_of_recipe, version_changes
from gridvlp.extract.options import ExtractOptions
from gridvlp.extract.recipe import Recipe, RegionChoice, Resize
from gridvlp.store import FeatureStore
from gridvlp.store.recipe import recipe_differences, recipe_digest, recipe_of

RECIPE = Recipe("x50", "ab" * 32, Architecture("x50"), Resize(600, 1000), "bfloat16")
REGIONS = replace(RECIPE, regions=RegionChoice(100, 300, 0.5))


def attributes(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    common = {"kind": "grids", "channels": 2048, "dtype": "float16"}
    return {**common, **changes, "encoder": recipe.as_encoder()}


def other(value: Any) -> Any:
    """A value of the same kind that is not the same."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "'"
        case tuple():
            return (other(value[0]), *value[1:])
    raise AssertionError(value)


def changed(recipe: Any) -> list[tuple[str, Any]]:
    """The recipe with each of its fields changed, one at a time, by dotted name."""
    changes = []
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if hasattr(value, "__dataclass_fields__"):
            for name, inner in changed(value):
                changes.append((f"{field.name}.{name}", replace(recipe, **{field.name: inner})))
        elif value is not None:
            changes.append((field.name, replace(recipe, **{field.name: other(value)})))
    return changes


@pytest.mark.parametrize("recipe", [RECIPE, REGIONS])
def test_each_field_that_changes_is_named_and_changes_the_digest(recipe: Recipe) -> None:
    before = recipe_of(attributes(recipe))
    names = []
    for name, after in changed(recipe):
        now = recipe_of(attributes(after))
        assert list(recipe_differences(before, now)) == [f"encoder.{name}"]
        assert recipe_digest(now) != recipe_digest(before)
        names.append(name)
    assert {"architecture.channel_order", "architecture.stride_in_1x1", "tf32", "decode"} <= {
        *names
    }
    assert len(names) == len(set(names)) == (16 if recipe is RECIPE else 20)
    for name, value in (("kind", "regions"), ("channels", 256), ("dtype", "int8")):
        assert list(recipe_differences(before, recipe_of(attributes(recipe, **{name: value})))) == [
            name
        ]


def test_a_recipe_comes_back_from_a_stores_json() -> None:
    import json

    for recipe in (RECIPE, REGIONS):
        encoder = json.loads(json.dumps(recipe.as_encoder()))
        assert Recipe.from_encoder(encoder, "s.zarr") == recipe
        assert recipe_differences(encoder, recipe.as_encoder()) == {}
    for foreign in ({}, {"name": "clip"}, {**RECIPE.as_encoder(), "crop": 0.9}):
        with pytest.raises(UserError, match=r"s\.zarr cannot be made again"):
            Recipe.from_encoder(foreign, "s.zarr")


def test_true_is_not_one_and_a_missing_field_is_not_none() -> None:
    assert recipe_differences({"a": True}, {"a": 1}) == {"a": (True, 1)}
    assert recipe_differences({"a": None}, {}) == {"a": (None, None)}
    assert recipe_differences({"a": {}}, {"a": {"b": 1}}) == {"a": ({}, None), "a.b": (None, 1)}
    assert recipe_differences({"a": (1, 2)}, {"a": [1, 2]}) == {}
    assert recipe_digest({"a": 1, "b": 2}) == recipe_digest({"b": 2, "a": 1})


def save(folder: Path, architecture: Architecture) -> None:
    """An encoder whose weights are always the same."""
    folder.mkdir(exist_ok=True)
    state = _random_weights(new_architecture("r50", 0.125), False).state
    save_encoder(folder, "tiny", architecture, state, "64x128", {})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"channel_order": "RGB"}, "architecture.channel_order: 'BGR' and 'RGB'"),
        ({"stride_in_1x1": False}, "architecture.stride_in_1x1: True and False"),
        ({"pixel_std": (2.0, 1.0, 1.0)}, "architecture.pixel_std"),
    ],
)
def test_the_same_weights_with_other_pixels_are_refused(
    photo_folder: Path, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    """encoder.json is no part of the weights' checksum."""
    architecture = new_architecture("r50", 0.125)
    options = ExtractOptions(
        (photo_folder,), tmp_path / "store.zarr", str(tmp_path / "encoder"), precision="float32"
    )
    save(tmp_path / "encoder", architecture)
    extract(options, lambda line: None)
    before = FeatureStore(options.out).fingerprint
    save(tmp_path / "encoder", replace(architecture, **change))
    with pytest.raises(UserError, match="made by another recipe") as error:
        extract(options, lambda line: None)
    assert field in str(error.value)
    assert FeatureStore(options.out).fingerprint == before
    extract(replace(options, out=tmp_path / "other.zarr"), lambda line: None)
    with pytest.raises(UserError, match="architecture"):
        FeatureStore([options.out, tmp_path / "other.zarr"])


def test_options_come_back_from_a_recipe(photo_folder: Path, tmp_path: Path) -> None:
    options = ExtractOptions(
        (photo_folder,), tmp_path / "s.zarr", "random", width=0.125, size="64x128", dtype="int8"
    )
    extract(options, lambda line: None)
    plain = ExtractOptions((photo_folder,), tmp_path / "t.zarr", "random", width=0.125)
    again = options_of_recipe(plain, FeatureStore(options.out).recipe, "Those maps")
    assert (again.size, again.dtype) == ("64x128", "int8")
    extract(again, lambda line: None)
    assert len(FeatureStore([options.out, again.out])) == 12


def test_other_versions_are_listed_and_said(photo_folder: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    options = ExtractOptions(
        (photo_folder / "a",), tmp_path / "s.zarr", "random", width=0.125, size="64x128"
    )
    extract(options, lines.append)
    extract(options, lines.append)
    assert not any("maps made with" in line for line in lines)
    from gridvlp.extract import extraction

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "versions", lambda: {"torch": "1.0", "pillow": "9.0"})
        extract(replace(options, images=(photo_folder,)), lines.append)
    warnings = [line for line in lines if "maps made with" in line]
    assert any("pillow" in line and "this is 9.0" in line for line in warnings)
    versions = FeatureStore(options.out).versions
    assert [v["pillow"] == "9.0" for v in sorted(versions, key=lambda v: v["pillow"])].count(
        True
    ) == 1
    assert len(versions) == 2


def test_a_version_that_was_not_listed_counts_as_another() -> None:
    assert version_changes([], {"torch": "2"}) == []
    assert version_changes([{"torch": "2"}], {"torch": "2"}) == []
    (line,) = version_changes([{"torch": "1"}, {"torch": "2"}, {}], {"torch": "2"})
    assert "torch 1, none; this is 2" in line


def test_predict_makes_maps_as_those_of_the_models_training(
    photo_folder: Path, tmp_path: Path
) -> None:
    from gridvlp.cli import _extract_photos
    from gridvlp.train.model.fusion import GridVLPConfig

    options = ExtractOptions(
        *((photo_folder,), tmp_path / "s.zarr", "random"),
        *("x50", 0.125),
        size="64x96",
        dtype="bfloat16",
        precision="float32",
    )
    extract(options, lambda line: None)
    recipe = FeatureStore(options.out).recipe
    GridVLPConfig(grid_recipe=recipe).save_pretrained(tmp_path / "run" / "model")
    save(tmp_path / "encoder", new_architecture("r50", 0.125))
    photo = next(photo_folder.rglob("*.png"))
    keys = _extract_photos(
        (photo,), tmp_path / "run", tmp_path / "t.zarr", str(tmp_path / "encoder"), None
    )
    assert keys == (photo.stem,)
    found = FeatureStore(tmp_path / "t.zarr").recipe
    differing = {name.split(".")[1] for name in recipe_differences(recipe, found)}
    assert differing == {"name", "weights_sha256", "architecture"}  # of the other weights alone
