"""A trained detector beside an untrained one, on the photos it has seen and on those held out.

    python benchmarks/detector.py runs/extractor

Prints COCO-style AP and the accuracies on true boxes, in percent, of the run's last checkpoint and
of the same detector before its first step.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file

from gridvlp.errors import UserError
from gridvlp.extract.backbone import new_architecture
from gridvlp.extract.detector import build_detector
from gridvlp.extract.detector_evaluation import evaluate
from gridvlp.extract.detector_training import read_annotations
from gridvlp.extract.encoder import read_weights
from gridvlp.extract.options import TrainExtractorOptions

PATHS = ("visual_genome", "valid_annotations", "vocab", "weights")


def options_of(run: Path) -> TrainExtractorOptions:
    held: dict[str, Any] = json.loads((run / "run.json").read_text())["options"]
    for name in PATHS:
        held[name] = Path(held[name]) if held[name] else None
    for name in ("annotations", "photos"):
        held[name] = tuple(Path(path) for path in held[name])
    return TrainExtractorOptions(run=run, **held)


@click.command(context_settings={"show_default": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--most", default=1000, help="Photos of each kind at most.")
def main(run: Path, most: int) -> None:
    """Measure the detector of RUN, a run of train-extractor."""
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    options = options_of(run)
    step = json.loads((run / "checkpoint" / "state.json").read_text())["step"]
    train, valid = read_annotations(options)
    sets = {"trained on": train.subset(slice(most)), "held out": valid.subset(slice(most))}
    architecture = new_architecture(options.backbone, options.width)
    if options.weights is not None:
        architecture = read_weights(str(options.weights)).architecture
    torch.manual_seed(options.seed)
    names = train.vocabulary
    model: Any = build_detector(options, architecture, len(names.objects), len(names.attributes))
    rows = []
    for title in ("untrained", f"after {step:,} steps"):
        for kind, photos in sets.items():
            rows.append((title, f"{len(photos):,} {kind}", evaluate(model, photos, options)))
        model.load_state_dict(load_file(run / "checkpoint" / "model.safetensors"))
    figures = list(rows[0][2])
    print("| detector | photos | " + " | ".join(figures) + " |\n" + "|-" * (len(figures) + 2) + "|")
    for title, photos, found in rows:
        print(f"| {title} | {photos} | " + " | ".join(f"{found[n]:.2f}" for n in figures) + " |")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"Error: {error}") from error
