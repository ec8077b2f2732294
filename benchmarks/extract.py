"""Extraction side by side: the usual Detectron2 loop against ``gridvlp extract``.

    python benchmarks/extract.py
    python benchmarks/extract.py --images photos/ --backbone x152 --size 600x1000 --photos 8

On the same photos, with the same random weights, alternating, each in a process of its own:

    usual     Detectron2's backbone, norms not folded, one photo at a time, float32, torch.save
    gridvlp   gridvlp extract, as it is
    memory    its encoder alone, on decoded photos in memory, no store

Prints the median milliseconds per photo, the ratio usual / gridvlp, gridvlp's share of the rate in
memory, its share of the machine's measured matrix-multiply peak (bfloat16 where it has it), and
peak memory. Without --images it renders photos of the sample world.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from memory import peak_mb

KINDS = ("usual", "gridvlp", "memory")


@click.command(context_settings={"show_default": True})
@click.option("--images", type=click.Path(path_type=Path), help="Folder of photos.")
@click.option("--backbone", "backbones", multiple=True, default=["x50", "x101", "x152"])
@click.option("--size", "sizes", multiple=True, default=["448x448", "448x746", "600x1000"])
@click.option("--photos", default=16, help="Photos a round.")
@click.option("--rounds", default=3, help="Rounds; the median counts.")
@click.option("--batch-size", default=4, help="Of gridvlp and of the encoder in memory.")
@click.option("--one", hidden=True, help="Measure one kind and print its figures as JSON.")
def main(
    images: Path | None, backbones: tuple[str, ...], sizes: tuple[str, ...], photos: int,
    rounds: int, batch_size: int, one: str | None,
) -> None:  # fmt: skip
    """Time all kinds for each backbone and size."""
    if one is not None:
        assert images is not None
        click.echo(json.dumps(measure(one, images, backbones[0], sizes[0], photos, batch_size)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if images is None:
            from gridvlp.sample import write_sample

            write_sample(Path(folder), 40)
            images = Path(folder) / "data/coco"
        peak = matmul_peak()
        click.echo(
            f"{torch.get_num_threads()} threads; matrix-multiply peak {peak / 1e9:.0f} GFLOP/s; "
            f"{photos} photos a round, {rounds} rounds"
        )
        for backbone in backbones:
            for size in sizes:
                rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
                for _ in range(rounds):
                    for kind, row in rows.items():
                        row.append(child(kind, images, backbone, size, photos, batch_size))
                click.echo(summary(backbone, size, rows, peak))


def child(
    kind: str, images: Path, backbone: str, size: str, photos: int, batch_size: int
) -> dict[str, float]:
    """Measure in a fresh process, whose peak memory is its own."""
    line = [sys.executable, "-W", "ignore", __file__, "--one", kind, "--images", str(images)]
    line += ["--backbone", backbone, "--size", size, "--photos", str(photos)]
    line += ["--batch-size", str(batch_size)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{kind} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(backbone: str, size: str, rows: dict[str, list[dict[str, float]]], peak: float) -> str:
    """One line of the table."""
    ms = {kind: statistics.median(run["ms"] for run in row) for kind, row in rows.items()}
    share = statistics.median(run["flops"] / run["ms"] * 1e3 for run in rows["gridvlp"]) / peak
    memory = {kind: max(run["mb"] for run in row) for kind, row in rows.items()}
    return (
        f"{backbone:5} {size:9} usual {ms['usual']:7.1f} ms, gridvlp {ms['gridvlp']:7.1f} ms "
        f"({1e3 / ms['gridvlp']:.1f} photos/s), ratio {ms['usual'] / ms['gridvlp']:.2f}; "
        f"{100 * ms['memory'] / ms['gridvlp']:.0f}% of the rate in memory; "
        f"{100 * share:.0f}% of peak; memory {memory['usual']:.0f} and {memory['gridvlp']:.0f} MB"
    )


def measure(
    kind: str, images: Path, backbone: str, size: str, photos: int, batch_size: int
) -> dict[str, float]:
    """Milliseconds and floating-point operations per photo, and this process's peak memory."""
    from gridvlp.extract.encoder import FrozenEncoder, read_weights
    from gridvlp.extract.extraction import extract
    from gridvlp.extract.photos import find_photos, read_photo
    from gridvlp.extract.settings import ExtractOptions, parse_size

    chosen = tuple(find_photos([images])[: photos + 1])
    weights = read_weights("random", backbone)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        if kind == "usual":
            seconds = usual(weights, chosen, parse_size(size), Path(folder))
        elif kind == "gridvlp":
            # the first call loads and warms what a long extraction pays once
            options: dict[str, Any] = {
                "weights": "random",
                "backbone": backbone,
                "size": size,
                "batch_size": batch_size,
            }
            extract(ExtractOptions(chosen[:1], Path(folder) / "warm.zarr", **options), _quiet)
            timed = ExtractOptions(chosen[1:], Path(folder) / "store.zarr", **options)
            seconds = extract(timed, _quiet).seconds / len(chosen[1:])
        else:
            encoder = FrozenEncoder(weights)
            by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
            for path in chosen[1:]:
                pixels = read_photo(path, parse_size(size)).pixels_HW3
                by_size.setdefault(pixels.shape, []).append(pixels)
            batches = [
                torch.from_numpy(np.stack(group[first : first + batch_size]))
                for group in by_size.values()
                for first in range(0, len(group), batch_size)
            ]
            encoder(batches[0])
            start = time.perf_counter()
            for batch in batches:
                encoder(batch)
            seconds = (time.perf_counter() - start) / len(chosen[1:])
        flops = count_flops(weights, chosen[1:], parse_size(size))
    used = peak_mb()
    return {"ms": 1e3 * seconds, "flops": flops, "mb": used}


def usual(weights: Any, photos: tuple[Path, ...], size: tuple[int, int], folder: Path) -> float:
    """Seconds per photo of the loop that grid-feats-vqa and its descendants run."""
    from detectron2.data import detection_utils
    from detectron2.data.transforms import ResizeShortestEdge

    from gridvlp.extract.backbone import load_strictly

    architecture = weights.architecture
    backbone = architecture.build()
    load_strictly(backbone, weights.state, weights.name)
    backbone.eval()
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (architecture.pixel_mean, architecture.pixel_std)
    )
    resize = ResizeShortestEdge(size[0], size[1])
    start = 0.0
    for number, path in enumerate(photos):
        if number == 1:  # the first one warms up
            start = time.perf_counter()
        pixels_HW3 = detection_utils.read_image(str(path), format="BGR")
        pixels_HW3 = resize.get_transform(pixels_HW3).apply_image(pixels_HW3)
        pixels_3HW = torch.as_tensor(pixels_HW3.transpose(2, 0, 1).astype("float32"))
        features = backbone(((pixels_3HW - mean) / std)[None])["res5"]
        torch.save(features, folder / f"{path.stem}.pth")
    return (time.perf_counter() - start) / (len(photos) - 1)


def count_flops(weights: Any, photos: tuple[Path, ...], size: tuple[int, int]) -> float:
    """Mean floating-point operations of the backbone per photo."""
    from torch.utils.flop_counter import FlopCounterMode

    from gridvlp.extract.photos import read_photo

    shapes = [read_photo(path, size).pixels_HW3.shape[:2] for path in photos]
    with torch.device("meta"):
        backbone = weights.architecture.build()
    total = 0
    for height, width in set(shapes):
        with FlopCounterMode(display=False) as counter:
            backbone(torch.empty(1, 3, height, width, device="meta"))
        total += counter.get_total_flops() * shapes.count((height, width))
    return total / len(shapes)


def matmul_peak(size: int = 4096) -> float:
    """Best of five large matrix products, in operations per second."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cuda.is_available()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.rand(size, size, device=device, dtype=torch.bfloat16 if fast else torch.float32)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _quiet(line: str) -> None:
    pass


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
