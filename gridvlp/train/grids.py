"""Maps of the store to the padded arrays that the model takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gridvlp.store import FeatureStore


def read_grids(
    store: FeatureStore, keys: Sequence[str], sample: int | None, seed: Sequence[int]
) -> dict[str, Tensor]:
    """Read the maps or regions of several images, each once.

    Args:
        store: where they are.
        keys: I keys.
        sample: this many random grids of each map (paper, "Random Grid Sampling"); None for all.
        seed: with the key's own bytes, what the sample is drawn from, so that it does not depend
            on which other images share the batch.

    Returns:
        Arguments of ``GridVLPModel.forward``: grids_IGC (zero-padded, float16 of a store of float16
        and else float32, which holds every number of the store), grid_mask_IG (bool) and, of
        regions, boxes_IG4 (float32).
    """
    dtype = store.dtype
    maps, boxes = [], []
    for key in keys:
        rng = np.random.default_rng([*seed, *key.encode(errors="surrogatepass")])
        if store.kind == "regions":
            regions = store.regions(key, dtype=dtype)
            chosen = slice(None) if sample is None else _some(len(regions.boxes_N4), sample, rng)
            maps.append(regions.features_NC[chosen])
            boxes.append(regions.boxes_N4[chosen])
        elif sample is None:
            maps.append(store.grids(key, dtype=dtype))
        else:
            maps.append(store.sample(key, n=sample, rng=rng, dtype=dtype))
    counts_I = np.array([len(grids_GC) for grids_GC in maps])
    mask_IG = np.arange(counts_I.max())[None] < counts_I[:, None]
    padded = {
        "grids_IGC": np.zeros((*mask_IG.shape, store.channels), dtype=dtype),
        "grid_mask_IG": mask_IG,
    }
    if boxes:
        padded["boxes_IG4"] = np.zeros((*mask_IG.shape, 4), dtype=np.float32)
    for name, rows in (("grids_IGC", maps), ("boxes_IG4", boxes)):
        for image, values in enumerate(rows):
            padded[name][image, : len(values)] = values
    return {name: torch.from_numpy(array) for name, array in padded.items()}


def _some(count: int, sample: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(count, size=min(sample, count), replace=False)
