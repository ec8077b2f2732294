"""Pictures of a map over its photo: how strongly its grids fire, and where a model looked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.atomic import whole_file
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
    photo = read_photo(store.record(key).get("source"))
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
    _save(figure, path)
    return photo is not None


def draw_regions(store: FeatureStore, key: str, path: Path) -> bool:
    """Write a PNG: the photo, if it is still there, and the boxes, brighter the stronger they fire.

    Returns:
        Whether the photo was found.

    Raises:
        UserError: no such map, it is damaged, or the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    regions = store.regions(key)
    photo = read_photo(store.record(key).get("source"))
    height, width = (1, 1) if photo is None else photo.shape[:2]
    energy_N = np.linalg.norm(regions.features_NC, axis=1)
    figure, panel = pyplot.subplots(figsize=(7.5, 6))
    panel.imshow(np.zeros((1, 1, 3)) if photo is None else photo, extent=(0, width, height, 0))
    shade = pyplot.cm.ScalarMappable(cmap="viridis")
    shade.set_array(energy_N)
    shade.autoscale()
    for number in np.argsort(energy_N):
        x1, y1, x2, y2 = regions.boxes_N4[number] * (width, height, width, height)
        color = shade.to_rgba(energy_N[number])
        panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=color, lw=1.4))
        told = [] if regions.classes_N is None else [f"class {regions.classes_N[number]}"]
        told += [] if regions.scores_N is None else [f"{regions.scores_N[number]:.2f}"]
        if told:
            panel.text(x1, y1, " ".join(told), fontsize=6, color="black", backgroundcolor=color)
    figure.colorbar(shade, ax=panel, label="L2 norm of the region")
    panel.set_title(f"{key}: {len(energy_N)} regions of {store.channels} channels")
    panel.axis("off")
    figure.tight_layout()
    _save(figure, path)
    return photo is not None


def read_photo(source: object) -> np.ndarray | None:
    """pixels_HW3 (uint8 RGB) as the encoder saw them in full size; None where they are gone.

    Args:
        source: the photo's file, as a store keeps it.
    """
    from gridvlp.extract.photo_decoding import BadPhoto, decode_photo

    if not isinstance(source, str):
        return None
    try:
        return np.asarray(decode_photo(Path(source)).image)
    except BadPhoto:
        return None


def draw_answer(
    path: Path,
    question: str,
    sources: Sequence[object],
    relevance_HW: Sequence[np.ndarray],
    answers: Sequence[tuple[str, float]],
) -> None:
    """Write a PNG: each photo, where the model looked in it, and the best answers.

    Args:
        path: where to.
        question: the sentence that was asked.
        sources: the photo file of each image; one that is gone leaves only its relevance.
        relevance_HW: the relevance of each image's grids, from 0 to 1.
        answers: best first, with probabilities.

    Raises:
        UserError: the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    photos = [read_photo(source) for source in sources]
    count = 2 * len(photos) + 1
    figure, panels = pyplot.subplots(1, count, figsize=(4 * count - 1, 3.6), squeeze=False)
    for number, (photo, looked_HW) in enumerate(zip(photos, relevance_HW, strict=True)):
        plain, heat = panels[0, 2 * number : 2 * number + 2]
        height, width = looked_HW.shape if photo is None else photo.shape[:2]
        if photo is not None:
            plain.imshow(photo)
            heat.imshow(photo)
        heat.imshow(
            looked_HW,
            cmap="inferno",
            alpha=0.6,
            extent=(0, width, height, 0),
            interpolation="bicubic",
        )
        heat.set_title("where the model looked")
        plain.axis("off")
        heat.axis("off")
    names, chances = zip(*reversed(answers), strict=True)
    panels[0, -1].barh(names, [100 * chance for chance in chances])
    panels[0, -1].set_xlabel("percent")
    panels[0, -1].set_title(f"answer: {answers[0][0]}")
    figure.suptitle(question)
    figure.tight_layout()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    try:
        with whole_file(path, sync=False) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        pyplot.close(figure)
