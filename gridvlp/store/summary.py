"""What is inside a store, in figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from gridvlp.store.reader import FeatureStore

SAMPLED_MAPS = 256
SIZES_SHOWN = 12


@dataclass(frozen=True)
class StoreSummary:
    """Counts of a store (or of several read as one) and statistics of some of its maps."""

    maps: int
    grids: int
    channels: int
    dtype: str
    shards: int
    stored_bytes: int | None  # files of the stores, whole; None over a URL
    raw_bytes: int  # the same numbers in float16, without compression
    sizes: list[tuple[int, int, int]]  # (H, W, maps), the most frequent first
    sampled: int  # maps behind the figures below
    sparsity: float  # share of zeros
    mean: float
    maximum: float
    dead_channels: int  # channels that are zero in all sampled maps
    encoder: dict[str, Any]

    def lines(self) -> list[str]:
        """The summary as a table of text."""
        on_disk = "not known over a URL"
        if self.stored_bytes is not None:
            on_disk = (
                f"{self.stored_bytes / 1e6:,.1f} MB, "
                f"{self.stored_bytes / max(self.maps, 1) / 1e3:,.1f} kB a map, "
                f"{100 * self.stored_bytes / max(self.raw_bytes, 1):.1f}% of raw float16"
            )
        rows: list[tuple[str, object]] = [
            *((f"encoder {name}", value) for name, value in self.encoder.items()),
            ("maps", f"{self.maps:,}"),
            ("grids", f"{self.grids:,} of {self.channels:,} channels, {self.dtype}"),
            ("shards", f"{self.shards:,}"),
            ("on disk", on_disk),
            (f"of {self.sampled:,} maps", ""),
            ("  zeros", f"{100 * self.sparsity:.1f}%"),
            ("  mean, maximum", f"{self.mean:.4g}, {self.maximum:.4g}"),
            ("  dead channels", f"{self.dead_channels:,}"),
            ("H x W", "maps"),
            *(
                (f"  {height} x {width}", f"{maps:,}")
                for height, width, maps in self.sizes[:SIZES_SHOWN]
            ),
        ]
        if len(self.sizes) > SIZES_SHOWN:
            others = sum(maps for _, _, maps in self.sizes[SIZES_SHOWN:])
            rows.append((f"  {len(self.sizes) - SIZES_SHOWN} other sizes", f"{others:,}"))
        return [f"{name:24} {value}".rstrip() for name, value in rows]


def summarize(store: FeatureStore, seed: int = 0) -> StoreSummary:
    """Count all maps, and read up to SAMPLED_MAPS of them, drawn by ``seed``.

    Raises:
        DamagedMap: one of the maps that were read is damaged.
    """
    keys = store.keys()
    sizes = Counter(store.shape(key)[1:] for key in keys)
    grids = sum(height * width * maps for (height, width), maps in sizes.items())
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(keys), min(SAMPLED_MAPS, len(keys)), replace=False)
    zeros, total, values, maximum = 0, 0.0, 0, 0.0
    alive_C = np.zeros(store.channels, dtype=bool)
    for place in sorted(drawn):
        grids_GC = store.grids(keys[place])
        zeros += int((grids_GC == 0).sum())
        total += float(grids_GC.sum(dtype=np.float64))
        values += grids_GC.size
        maximum = max(maximum, float(grids_GC.max()))
        alive_C |= (grids_GC != 0).any(0)
    return StoreSummary(
        maps=len(keys),
        grids=grids,
        channels=store.channels,
        dtype=store.stored_as,
        shards=store.shards,
        stored_bytes=store.stored_bytes(),
        raw_bytes=grids * store.channels * 2,
        sizes=[(*size, maps) for size, maps in sizes.most_common()],
        sampled=len(drawn),
        sparsity=zeros / max(values, 1),
        mean=total / max(values, 1),
        maximum=maximum,
        dead_channels=int((~alive_C).sum()) if len(drawn) else 0,
        encoder=store.encoder,
    )
