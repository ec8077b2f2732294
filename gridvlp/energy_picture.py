"""Draws how strongly each grid of a map is activated, over its photo."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from gridvlp.errors import UserError
from gridvlp.store import FeatureStore


def draw_energy(store: FeatureStore, key: str, path: Path) -> bool:
    """Write a PNG: the photo, if it is still where it was extracted from, and each grid's L2 norm.

    Returns:
        Whether the photo was found.

    Raises:
        UserError: no such map, it is damaged, or the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    energy_HW = np.linalg.norm(store.map(key), axis=0)
    height, width = energy_HW.shape
    photo = _photo(store.record(key).get("source"))
    figure, panels = pyplot.subplots(
        1, 1 if photo is None else 2, figsize=(6 if photo is None else 11, 4.4), squeeze=False
    )
    drawn = panels[0, -1].imshow(energy_HW, cmap="magma", extent=(0, width, height, 0))
    figure.colorbar(drawn, ax=panels[0, -1], label="L2 norm of the grid")
    panels[0, -1].set_title(f"{key}: {store.channels} x {height} x {width}")
    if photo is not None:
        panels[0, 0].imshow(photo, extent=(0, width, height, 0))
        panels[0, 0].imshow(
            energy_HW,
            cmap="magma",
            alpha=0.45,
            extent=(0, width, height, 0),
            interpolation="bicubic",
        )
        panels[0, 0].axis("off")
    figure.tight_layout()
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(unfinished, dpi=110, format="png")
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        pyplot.close(figure)
    return photo is not None


def _photo(source: object) -> np.ndarray | None:
    from PIL import Image, ImageOps

    try:
        with Image.open(str(source)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
