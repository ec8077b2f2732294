"""What is inside a store, in figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from gridvlp.store.reader import FeatureStore

SAMPLED_MAPS = 256
SIZES_SHOWN = 12
BAR = 30  # signs of the longest bar
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


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
    sizes: list[tuple[int, int, int]]  # (H, W, maps), the most frequent first; (1, N, maps)
    sampled: int  # maps behind the figures below
    sparsity: float  # share of zeros
    mean: float
    maximum: float
    zeros_C: np.ndarray  # by channel: share of zeros
    mean_C: np.ndarray  # by channel
    maximum_C: np.ndarray  # by channel
    kind: str
    encoder: dict[str, Any]
    format_versions: list[int]
    recipe_digest: str
    versions: list[dict[str, str]]  # of the libraries that wrote to the stores
    notes: list[str]  # what stores of an old format cannot promise

    @property
    def dead_channels(self) -> int:
        """Channels that are zero in all sampled maps."""
        return int((self.zeros_C == 1).sum()) if self.sampled else 0

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
            *(("made with", _listed(versions)) for versions in self.versions),
            ("recipe", self.recipe_digest),
            ("store format", " and ".join(map(str, sorted(set(self.format_versions))))),
            *(("note", note) for note in self.notes),
            ("maps", f"{self.maps:,}"),
            (self.kind, f"{self.grids:,} of {self.channels:,} channels, {self.dtype}"),
            ("shards", f"{self.shards:,}"),
            ("on disk", on_disk),
            (f"of {self.sampled:,} maps", ""),
            ("  zeros", f"{100 * self.sparsity:.1f}%"),
            ("  mean, maximum", f"{self.mean:.4g}, {self.maximum:.4g}"),
            ("  dead channels", f"{self.dead_channels:,}"),
        ]
        if self.sampled:
            rows.append(("by channel, percentile", "".join(f"{p:>9}" for p in PERCENTILES)))
            for name, values_C in (
                ("  zeros, percent", 100 * self.zeros_C),
                ("  mean", self.mean_C),
                ("  maximum", self.maximum_C),
            ):
                marks = np.percentile(values_C, PERCENTILES)
                rows.append((name, "".join(f"{mark:>9.3g}" for mark in marks)))
        rows.append(("H x W", "maps"))
        most = max((maps for _, _, maps in self.sizes), default=0)
        for height, width, maps in self.sizes[:SIZES_SHOWN]:
            bar = "#" * -(-BAR * maps // most)
            rows.append((f"  {height} x {width}", f"{maps:>9,} {bar}"))
        if len(self.sizes) > SIZES_SHOWN:
            others = sum(maps for _, _, maps in self.sizes[SIZES_SHOWN:])
            rows.append((f"  {len(self.sizes) - SIZES_SHOWN} other sizes", f"{others:>9,}"))
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
    count = 0
    zeros_C, total_C = np.zeros(store.channels), np.zeros(store.channels)
    maximum_C = np.full(store.channels, -np.inf)
    for place in sorted(drawn):
        grids_GC = store.grids(keys[place])
        count += len(grids_GC)
        zeros_C += (grids_GC == 0).sum(0)
        total_C += grids_GC.sum(0, dtype=np.float64)
        maximum_C = np.maximum(maximum_C, grids_GC.max(0))
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
        sparsity=float(zeros_C.mean()) / max(count, 1),
        mean=float(total_C.mean()) / max(count, 1),
        maximum=float(maximum_C.max()) if count else 0.0,
        zeros_C=zeros_C / max(count, 1),
        mean_C=total_C / max(count, 1),
        maximum_C=maximum_C,
        kind=store.kind,
        encoder=store.encoder,
        format_versions=store.format_versions,
        recipe_digest=store.recipe_digest,
        versions=store.versions,
        notes=store.notes,
    )


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
