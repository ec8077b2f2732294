"""Is a store right? Some of its maps are made again from their photos and compared.

gridvlp audit store.zarr --images coco/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gridvlp.data.photo_names import match_files
from gridvlp.errors import UserError
from gridvlp.extract.encoder import FrozenEncoder, read_weights
from gridvlp.extract.encoding import Encoder, encode_items
from gridvlp.extract.extraction import recipe_of_encoder
from gridvlp.extract.photos import find_photos
from gridvlp.extract.recipe import Recipe
from gridvlp.extract.regions import RegionEncoder
from gridvlp.extract.selection import Item
from gridvlp.store import FeatureStore
from gridvlp.store.recipe import differences_text, recipe_differences

MAPS = 8
# A relative error above this is no rounding: of the precision's unit, summed over a hundred layers,
# and, of int8, of half a step in 127.
TOLERANCE = {"float32": 2e-3, "float16": 2e-2, "bfloat16": 5e-2}
INT8_TOLERANCE = 3e-2


@dataclass
class Audit:
    """The outcome: the relative error of each map that was made again.

    Attributes:
        errors: ||again - stored|| / ||stored|| by key; infinite where the shape differs.
        tolerance: errors above it are no rounding.
        failures: why other maps could not be made again, by key.
        missing: maps whose photos are not under the folders.
    """

    errors: dict[str, float] = field(default_factory=dict)
    tolerance: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)
    missing: int = 0

    @property
    def wrong(self) -> dict[str, float]:
        """The maps that are not those of their photos."""
        return {key: error for key, error in self.errors.items() if not error <= self.tolerance}

    def lines(self) -> list[str]:
        """The outcome, to be printed."""
        lines = [
            f"  {key:32} {error:.2e}" + ("  WRONG" if key in self.wrong else "")
            for key, error in self.errors.items()
        ]
        lines += [f"  {key}: {reason}" for key, reason in self.failures.items()]
        if self.missing:
            lines.append(f"{self.missing:,} maps of those drawn have no photo in the folders.")
        return lines


def audit(
    place: str | Path,
    images: Sequence[Path],
    *,
    weights: str,
    maps: int = MAPS,
    seed: int = 0,
    say: Callable[[str], object] = print,
) -> Audit:
    """Extract some maps of a store again, by its own recipe, and compare.

    Args:
        place: the store.
        images: folders or lists of its photos. A photo is found by the end of the path that the
            store keeps of it.
        weights: of the store's encoder, as for ``extract``.
        maps: how many to draw at random.
        seed: of the draw.
        say: called with lines for the person at the keyboard.

    Raises:
        UserError: the weights are others, this package was not the one that filled the store, or
            none of the photos is there.
    """
    store = FeatureStore(place)
    recipe = Recipe.from_encoder(store.encoder, f"The maps of {place}")
    read = read_weights(
        *(weights, recipe.architecture.backbone, recipe.architecture.width),
        detector=recipe.regions is not None,
    )
    encoder: Encoder
    if recipe.regions is None:
        encoder = FrozenEncoder(read, recipe.precision)
    else:
        encoder = RegionEncoder(
            read, recipe.regions.most, recipe.precision, recipe.regions.proposals
        )
    now = recipe_of_encoder(read, encoder, recipe.resize.text)
    differences = recipe_differences(
        {**store.recipe["encoder"], "name": now.name}, now.as_encoder()
    )
    if differences:
        raise UserError(
            f"{place} was not made by this recipe ({differences_text(differences)} here): give "
            "--weights the encoder that made it."
        )
    outcome = Audit(tolerance=_tolerance(recipe, store))
    items = _drawn(store, images, maps, seed, outcome)
    say(
        f"{len(items)} of {len(store):,} maps made again by {recipe.name}, {recipe.resize.text}, "
        f"{recipe.precision}, on {encoder.device}; relative errors (above {outcome.tolerance:.0e} "
        "is no rounding):"
    )
    size = (recipe.resize.shorter, recipe.resize.longest)
    for result in encode_items(items, encoder, size, batch_size=1, half=False):
        key = result.item.key
        if result.encoded is None:
            outcome.failures[key] = next(iter(result.failures.values()))
        else:
            outcome.errors[key] = _relative_error(
                store.map(key), result.encoded.features["grid_map"], recipe.regions is not None
            )
    return outcome


def _tolerance(recipe: Recipe, store: FeatureStore) -> float:
    tolerance = TOLERANCE[recipe.precision]
    return tolerance + INT8_TOLERANCE if "int8" in store.stored_as else tolerance


def _drawn(
    store: FeatureStore, images: Sequence[Path], maps: int, seed: int, outcome: Audit
) -> list[Item]:
    """Some maps whose photos are there."""
    photos = find_photos(images)
    keys = store.keys()
    order = np.random.default_rng(seed).permutation(len(keys)).tolist()
    sources = {keys[place]: store.record(keys[place]).get("source") for place in order[: 8 * maps]}
    names = {key: source for key, source in sources.items() if isinstance(source, str)}
    paths, _ = match_files(list(names.values()), photos)
    items = [Item(key, (path,)) for key, path in zip(names, paths, strict=True) if path is not None]
    outcome.missing = len(sources) - len(items)
    if not items:
        raise UserError(
            f"None of {len(sources)} photos drawn from {store.paths[0]} is there, the first one "
            f"{next(iter(sources.values()), None)}: name their folders with --images."
        )
    return items[:maps]


def _relative_error(stored_CHW: np.ndarray, again_CHW: np.ndarray, regions: bool) -> float:
    """||again - stored|| / ||stored||; of regions the median, each beside the nearest one."""
    again_CHW = again_CHW.astype(np.float32)
    if regions:
        stored_NC, again_NC = stored_CHW[:, 0].T, again_CHW[:, 0].T
        errors_NN = np.linalg.norm(stored_NC[:, None] - again_NC[None], axis=-1)
        norms_N = np.maximum(np.linalg.norm(stored_NC, axis=1), 1e-12)
        return float(np.median(errors_NN.min(1) / norms_N))
    if stored_CHW.shape != again_CHW.shape:
        return float("inf")
    norm = max(float(np.linalg.norm(stored_CHW)), 1e-12)
    return float(np.linalg.norm(again_CHW - stored_CHW)) / norm
