"""Features for benchmarks that are given none."""

from __future__ import annotations

import sys
from pathlib import Path

import click


def make_features(place: Path) -> Path:
    """Maps of generated photos from an encoder that is not trained."""
    from gridvlp.extract.extraction import extract
    from gridvlp.extract.options import ExtractOptions
    from gridvlp.sample import write_sample

    write_sample(place / "world", 40)
    options = ExtractOptions(
        (place / "world/data/coco",), place / "made.zarr", weights="random", width=0.25,
        size="600x1000",
    )  # fmt: skip
    extract(options, lambda line: click.echo(line, file=sys.stderr))
    return options.out
