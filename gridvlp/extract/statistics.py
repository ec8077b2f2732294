"""Sanity statistics of features: what tells a good encoder from a misfed one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

FEW_ZEROS, MANY_ZEROS = 0.2, 0.98  # of post-ReLU C5 maps outside this range something is wrong
DEAD_SHARE = 0.5


@dataclass
class FeatureStatistics:
    """Of some maps; those of others are added."""

    values: int = 0
    zeros: int = 0
    total: float = 0.0
    largest_C: torch.Tensor | None = None
    pooled: bool = False  # means over boxes, in which zeros are rare

    @classmethod
    def of(cls, map_CHW: torch.Tensor, pooled: bool = False) -> FeatureStatistics:
        """Of one map, float32, on any device."""
        return cls(
            map_CHW.numel(),
            int((map_CHW == 0).sum()),
            float(map_CHW.sum()),
            map_CHW.amax(dim=(1, 2)).cpu(),
            pooled,
        )

    def add(self, other: FeatureStatistics) -> None:
        """Take in the statistics of other maps."""
        self.values += other.values
        self.zeros += other.zeros
        self.total += other.total
        self.pooled |= other.pooled
        if self.largest_C is None or other.largest_C is None:
            self.largest_C = other.largest_C if self.largest_C is None else self.largest_C
        else:
            self.largest_C = torch.maximum(self.largest_C, other.largest_C)

    @property
    def figures(self) -> dict[str, float]:
        """Sparsity and dead channels in percent, mean and maximum."""
        if self.largest_C is None:
            return {}
        return {
            "zeros %": 100 * self.zeros / self.values,
            "mean": self.total / self.values,
            "max": float(self.largest_C.max()),
            "dead channels %": 100 * float((self.largest_C == 0).float().mean()),
        }

    def warnings(self) -> list[str]:
        """What looks wrong, and what it may come from."""
        if self.largest_C is None:
            return []
        found = []
        share = self.zeros / self.values
        if share > MANY_ZEROS or (share < FEW_ZEROS and not self.pooled):
            found.append(
                f"{100 * share:.1f}% of the features are zero, which is unusual after a ReLU: are "
                "these the right weights?"
            )
        if (self.largest_C == 0).float().mean() > DEAD_SHARE:
            found.append("More than half of the channels never fire: are these trained weights?")
        return found
