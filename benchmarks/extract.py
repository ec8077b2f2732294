"""Extraction side by side: the usual Detectron2 loop against ``gridvlp extract``.

    python benchmarks/extract.py
    python benchmarks/extract.py --images photos/ --row x152 --size 600x1000 --photos 8

On the same photos, with the same random weights, alternating, each in a process of its own:

    usual     Detectron2's GeneralizedRCNN as it builds it: preprocess_image and backbone (for
              regions its inference too), one photo at a time, float32, torch.save for each photo
    gridvlp   gridvlp extract, as it is
    memory    its encoder alone, on decoded photos in memory, no store; as many streams as extract

Prints the median milliseconds per photo, the ratio usual / gridvlp, gridvlp's share of the rate in
memory, its share of the machine's measured matrix-multiply peak (bfloat16 where it has it; grids
only), and peak memory. Without --images it renders photos of the sample world.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from memory import peak_mb

KINDS = ("usual", "gridvlp", "memory")
ROWS = ("x50", "x101", "x152", "x152-regions")
REGIONS = 100


@click.command(context_settings={"show_default": True})
@click.option("--images", type=click.Path(path_type=Path), help="Folder of photos.")
@click.option("--row", "backbones", multiple=True, default=ROWS, help="Backbone, or with -regions.")
@click.option("--size", "sizes", multiple=True, default=["448x448", "448x746", "600x1000"])
@click.option("--photos", default=16, help="Photos a round.")
@click.option("--rounds", default=3, help="Rounds; the median counts.")
@click.option("--batch-size", default=8, help="Of gridvlp and of the encoder in memory.")
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
    line += ["--row", backbone, "--size", size, "--photos", str(photos)]
    line += ["--batch-size", str(batch_size)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{kind} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(backbone: str, size: str, rows: dict[str, list[dict[str, float]]], peak: float) -> str:
    """One line of the table."""
    ms = {kind: statistics.median(run["ms"] for run in row) for kind, row in rows.items()}
    memory = {kind: max(run["mb"] for run in row) for kind, row in rows.items()}
    flops = rows["gridvlp"][0]["flops"]
    share = f"{100 * flops / ms['gridvlp'] * 1e3 / peak:.0f}% of peak; " if flops else ""
    return (
        f"{backbone:12} {size:9} usual {ms['usual']:7.1f} ms, gridvlp {ms['gridvlp']:7.1f} ms "
        f"({1e3 / ms['gridvlp']:.1f} photos/s), ratio {ms['usual'] / ms['gridvlp']:.2f}; "
        f"{100 * ms['memory'] / ms['gridvlp']:.0f}% of the rate in memory; "
        f"{share}memory {memory['usual']:.0f} and {memory['gridvlp']:.0f} MB"
    )


def measure(
    kind: str, images: Path, row: str, size: str, photos: int, batch_size: int
) -> dict[str, float]:
    """Milliseconds and floating-point operations per photo, and this process's peak memory."""
    from gridvlp.extract.encoder import read_weights
    from gridvlp.extract.extraction import extract
    from gridvlp.extract.options import ExtractOptions, parse_size
    from gridvlp.extract.photos import find_photos

    backbone, regions = row.removesuffix("-regions"), row.endswith("-regions")
    found = find_photos([images])
    # spread over the folder, so that all its sizes are there; the first one warms up
    chosen = tuple(found[:: max(1, len(found) // (photos + 1))][: photos + 1])
    weights = read_weights("random", backbone, detector=regions)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        if kind == "usual":
            seconds = usual(weights, chosen, parse_size(size), Path(folder), regions)
        elif kind == "gridvlp":
            # the first call loads and warms what a long extraction pays once
            options: dict[str, Any] = {
                "weights": "random",
                "backbone": backbone,
                "size": size,
                "batch_size": batch_size,
                "regions": REGIONS if regions else None,
            }
            extract(ExtractOptions(chosen[:1], Path(folder) / "warm.zarr", **options), _quiet)
            timed = ExtractOptions(chosen[1:], Path(folder) / "store.zarr", **options)
            seconds = extract(timed, _quiet).seconds / len(chosen[1:])
        else:
            seconds = in_memory(weights, chosen, parse_size(size), batch_size, regions)
        flops = 0.0 if regions else count_flops(weights, chosen[1:], parse_size(size))
    return {"ms": 1e3 * seconds, "flops": flops, "mb": peak_mb()}


def in_memory(
    weights: Any, photos: tuple[Path, ...], size: tuple[int, int], batch_size: int, regions: bool
) -> float:
    """Seconds per photo of extraction's own batches and streams, on pixels that are there."""
    from gridvlp.extract import encoding
    from gridvlp.extract.encoder import FrozenEncoder
    from gridvlp.extract.photos import read_photo
    from gridvlp.extract.regions import RegionEncoder

    encoder = RegionEncoder(weights, REGIONS) if regions else FrozenEncoder(weights)
    first, *read = [read_photo(path, size).pixels_HW3 for path in photos]
    sizes = [pixels_HW3.shape[:2] for pixels_HW3 in read]
    pixels = [
        torch.from_numpy(np.stack([read[place] for place in places]))
        for places in encoding._batches(sizes, encoder, batch_size)
    ]
    threads = torch.get_num_threads()
    streams = min(threads, len(pixels)) if encoder.device.type == "cpu" else 1
    encoder(torch.from_numpy(first.copy())[None])
    with ThreadPoolExecutor(
        streams, initializer=torch.set_num_threads, initargs=(threads // streams,)
    ) as pool:
        start = time.perf_counter()
        list(pool.map(encoder, pixels))
        return (time.perf_counter() - start) / len(photos[1:])


def usual(
    weights: Any, photos: tuple[Path, ...], size: tuple[int, int], folder: Path, regions: bool
) -> float:
    """Seconds per photo of the loop that grid-feats-vqa and its descendants run."""
    from detectron2.data import detection_utils
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.modeling import build_model

    from gridvlp.extract.backbone import c4_config, load_strictly

    architecture = weights.architecture
    if regions:
        cfg = c4_config(architecture, 1600)
        cfg.TEST.DETECTIONS_PER_IMAGE = REGIONS
    else:
        cfg = architecture.config(dilation=1, norm="FrozenBN", freeze_at=2)
        cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res5"]
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    model: Any = build_model(cfg).eval()
    load_strictly(model if regions else model.backbone, weights.state, weights.name)
    resize = ResizeShortestEdge(size[0], size[1])
    start = 0.0
    for number, path in enumerate(photos):
        if number == 1:  # the first one warms up
            start = time.perf_counter()
        pixels_HW3 = detection_utils.read_image(str(path), format="BGR")
        pixels_HW3 = resize.get_transform(pixels_HW3).apply_image(pixels_HW3)
        pixels_3HW = torch.as_tensor(pixels_HW3.astype("float32").transpose(2, 0, 1))
        images = model.preprocess_image([{"image": pixels_3HW}])
        maps = model.backbone(images.tensor)
        if regions:
            heads = model.roi_heads
            proposals, _ = model.proposal_generator(images, maps)
            boxes = [proposals[0].proposal_boxes]
            features = heads._shared_roi_transform([maps["res4"]], boxes).mean(dim=[2, 3])
            found, kept = heads.box_predictor.inference(heads.box_predictor(features), proposals)
            torch.save((features[kept[0]], found[0]), folder / f"{path.stem}.pth")
        else:
            torch.save(maps["res5"], folder / f"{path.stem}.pth")
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
