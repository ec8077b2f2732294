"""Does it matter to training that the store samples by chunks? On a task that needs pairs of grids.

    python benchmarks/sampling.py

Writes maps of 19 x 32 grids to a store: noise, and three things of twelve kinds, each over 3 x 3
grids. A small model (two words attend over the grids, then a joint layer) learns to say whether
both of two named kinds are in the image, from 100 random grids of each image: once as the store
samples them, once drawn exactly uniformly from the whole map, everything else and the seed being
the same. Reports the accuracy on other images, sampled exactly uniformly for both, by seed.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from gridvlp.store import FeatureStore, StoreWriter

C, HEIGHT, WIDTH, KINDS, THINGS, GRIDS, WIDE = 24, 19, 32, 12, 3, 100, 32
Read = Callable[[str, np.random.Generator], np.ndarray]


def make_store(path: Path, images: int) -> dict[str, set[int]]:
    """Write the maps; returns the kinds that are in each."""
    rng = np.random.default_rng(0)
    looks_KC = rng.standard_normal((KINDS, C))
    there = {}
    with StoreWriter.create(path, channels=C) as writer:
        for number in range(images):
            map_CHW = rng.standard_normal((C, HEIGHT, WIDTH))
            kinds = rng.choice(KINDS, THINGS, replace=False)
            for kind in kinds:
                row, column = rng.integers(HEIGHT - 2), rng.integers(WIDTH - 2)
                patch = map_CHW[:, row : row + 3, column : column + 3]
                patch += 1.5 * looks_KC[kind][:, None, None]
            writer.add(str(number), map_CHW.astype(np.float32))
            there[str(number)] = set(kinds.tolist())
    return there


class Matcher(nn.Module):
    """Two words attend over grids; what each found decides."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(KINDS, WIDE)
        self.keys, self.values = nn.Linear(C, WIDE), nn.Linear(C, WIDE)
        self.head = nn.Sequential(nn.Linear(2 * WIDE, WIDE), nn.GELU(), nn.Linear(WIDE, 1))

    def forward(self, grids_BGC: Tensor, words_B2: Tensor) -> Tensor:
        """Logits (B,) of both being there."""
        asked_B2D = self.words(words_B2)
        score_B2G = asked_B2D @ self.keys(grids_BGC).transpose(1, 2) / WIDE**0.5
        found_B2D = score_B2G.softmax(-1) @ self.values(grids_BGC)
        return self.head((asked_B2D * found_B2D).flatten(1))[:, 0]


def questions(
    keys: list[str], there: dict[str, set[int]], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A pair of kinds for each image, both there in half of the cases, else one of them."""
    words, labels = [], []
    for key in keys:
        inside = rng.permutation(sorted(there[key]))
        outside = rng.permutation(sorted(set(range(KINDS)) - there[key]))
        yes = rng.random() < 0.5
        pair = [inside[0], inside[1] if yes else outside[0]]
        words.append(rng.permutation(pair))
        labels.append(float(yes))
    return torch.tensor(np.array(words)), torch.tensor(labels)


def train(read: Read, judge: Read, there: dict[str, set[int]], steps: int, seed: int) -> float:
    """Accuracy in percent on the last fifth of the images."""
    torch.manual_seed(seed)
    rng, sampling = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    names = list(there)
    learned, held_out = names[: len(names) * 4 // 5], names[len(names) * 4 // 5 :]
    model = Matcher()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        keys = list(rng.choice(learned, 64))
        words, labels = questions(keys, there, rng)
        grids = torch.from_numpy(np.stack([read(key, sampling) for key in keys]))
        loss = nn.functional.binary_cross_entropy_with_logits(model(grids, words), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    right = []
    rng = np.random.default_rng(99)
    with torch.no_grad():
        for _ in range(4):
            words, labels = questions(held_out, there, rng)
            grids = torch.from_numpy(np.stack([judge(key, rng) for key in held_out]))
            right.append(((model(grids, words) > 0) == (labels > 0.5)).float().mean().item())
    return 100 * statistics.mean(right)


@click.command(context_settings={"show_default": True})
@click.option("--images", default=4000, help="Maps; the last fifth is held out.")
@click.option("--steps", default=1500, help="Steps of 64 images.")
@click.option("--seeds", default=5, help="Runs of each kind.")
def main(images: int, steps: int, seeds: int) -> None:
    """Print accuracies by seed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        there = make_store(Path(temporary) / "store.zarr", images)
        store = FeatureStore(Path(temporary) / "store.zarr")

        def by_chunks(key: str, rng: np.random.Generator) -> np.ndarray:
            return store.sample(key, GRIDS, rng)

        def exactly(key: str, rng: np.random.Generator) -> np.ndarray:
            return store.grids(key)[rng.choice(HEIGHT * WIDTH, GRIDS, replace=False)]

        found: dict[str, list[float]] = {"by chunks": [], "exactly uniform": []}
        click.echo("seed  by chunks  exactly uniform   difference (accuracy, percent)")
        for seed in range(seeds):
            for name, read in (("by chunks", by_chunks), ("exactly uniform", exactly)):
                found[name].append(train(read, exactly, there, steps, seed))
            ours, theirs = (found[name][-1] for name in found)
            click.echo(f"{seed:4} {ours:10.2f} {theirs:16.2f} {ours - theirs:+12.2f}")
        differences = [a - b for a, b in zip(*found.values(), strict=True)]
        for name, values in found.items():
            spread = statistics.stdev(values)
            click.echo(f"{name:16} mean {statistics.mean(values):.2f}, deviation {spread:.2f}")
        error = statistics.stdev(differences) / seeds**0.5
        click.echo(f"difference       mean {statistics.mean(differences):+.2f} +- {error:.2f}")


if __name__ == "__main__":
    main()
