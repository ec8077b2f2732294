"""Maps of the store to the padded arrays that the model takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gridvlp.store import FeatureStore


def read_grids(
    store: FeatureStore, keys: Sequence[str], sample: int | None, seed: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Read the maps of several images, each once.

    Args:
        store: where the maps are.
        keys: I keys.
        sample: this many random grids of each map (paper, "Random Grid Sampling"); None for all.
        seed: with the key's own bytes, what the sample is drawn from, so that it does not depend
            on which other images share the batch.

    Returns:
        grids_IGC (float16, zero-padded) and grid_mask_IG (bool).
    """
    maps = []
    for key in keys:
        if sample is None:
            maps.append(store.grids(key, dtype=np.float16))
        else:
            rng = np.random.default_rng([*seed, *key.encode(errors="surrogatepass")])
            maps.append(store.sample(key, n=sample, rng=rng, dtype=np.float16))
    counts_I = np.array([len(grids_GC) for grids_GC in maps])
    mask_IG = np.arange(counts_I.max())[None] < counts_I[:, None]
    grids_IGC = np.zeros((*mask_IG.shape, store.channels), dtype=np.float16)
    for grids_GC, padded_GC in zip(maps, grids_IGC, strict=True):
        padded_GC[: len(grids_GC)] = grids_GC
    return torch.from_numpy(grids_IGC), torch.from_numpy(mask_IG)
