"""How long a photo takes: the encoder alone, or with the fusion model on what it gives."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from gridvlp.extract.encoder import FrozenEncoder, read_weights
from gridvlp.extract.options import parse_size
from gridvlp.extract.photos import resized
from gridvlp.extract.regions import RegionEncoder

PHOTO = (480, 640)  # height, width: the commonest of COCO's; what a time per photo is taken on
WORDS = 20  # paper 4.2
REPEATS = 5  # of a timing; the median counts


def time_photo(backbone: str, size: str, regions: int | None, fusion: bool) -> float:
    """Seconds for one photo of 640 x 480 pixels, batch 1, decoded; median of repeats.

    Weights are random: they do not change the work.
    """
    pixels_1HW3 = torch.randint(0, 256, (1, *resized(*PHOTO, *parse_size(size)), 3)).byte()
    encoder: Any
    if regions is None:
        encoder = FrozenEncoder(read_weights("random", backbone, 1.0))
    else:
        encoder = RegionEncoder(read_weights("random", backbone, 1.0, detector=True), regions)
    fuse: Callable[[Any], Any] = lambda map_1CHW: map_1CHW  # noqa: E731
    if fusion:
        fuse = _fusion(encoder.channels, encoder.device, encoder.dtype)

    def once() -> float:
        start = time.perf_counter()
        fuse(encoder(pixels_1HW3))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(REPEATS))


def _fusion(channels: int, device: Any, dtype: Any) -> Callable[[Any], Any]:
    from gridvlp.train.model.fusion import GridVLPConfig, GridVLPModel, choose_attention

    model = GridVLPModel(GridVLPConfig(grid_channels=channels)).eval().to(device)
    choose_attention(model, device)
    words = torch.ones(1, WORDS, dtype=torch.long, device=device)

    def run(map_1CHW: Any) -> Any:
        grids_1GC = map_1CHW.flatten(2).transpose(1, 2)
        seen = torch.ones(grids_1GC.shape[:2], dtype=torch.bool, device=device)
        with torch.inference_mode(), torch.autocast(device.type, dtype, dtype != torch.float32):
            return model(words, words.bool(), grids_1GC, seen, torch.zeros_like(words[:, 0]))

    return run
