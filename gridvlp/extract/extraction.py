"""Photos to a feature store, with a frozen encoder.

gridvlp extract --images coco/
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gridvlp.errors import UserError
from gridvlp.extract.encoder import STRIDE, FrozenEncoder, Weights, read_weights
from gridvlp.extract.photos import BadPhoto, Photo, find_photos, read_photo
from gridvlp.extract.settings import ExtractOptions, parse_size
from gridvlp.progress import track
from gridvlp.run_folder import versions, write_text
from gridvlp.store import StoreWriter, canonical_key

WINDOW = 16  # batches read ahead, so that photos of one size can be put together
SAVE_SECONDS = 300.0  # at most this much work is lost to a kill
FEW_ZEROS, MANY_ZEROS = 0.2, 0.98  # of post-ReLU C5 maps outside this range something is wrong
DEAD_SHARE = 0.5


@dataclass
class FeatureStatistics:
    """Of the maps that this call wrote: what tells a good encoder from a misfed one."""

    values: int = 0
    zeros: int = 0
    total: float = 0.0
    largest: float = 0.0
    alive_C: np.ndarray | None = None

    def add(self, map_CHW: np.ndarray) -> None:
        """Count one map."""
        self.values += map_CHW.size
        self.zeros += map_CHW.size - int(np.count_nonzero(map_CHW))
        self.total += float(map_CHW.sum(dtype=np.float64))
        self.largest = max(self.largest, float(map_CHW.max()))
        alive_C: np.ndarray = np.any(map_CHW, axis=(1, 2))
        self.alive_C = alive_C if self.alive_C is None else self.alive_C | alive_C

    @property
    def figures(self) -> dict[str, float]:
        """Sparsity and dead channels in percent, mean and maximum."""
        if self.alive_C is None:
            return {}
        return {
            "zeros %": 100 * self.zeros / self.values,
            "mean": self.total / self.values,
            "max": self.largest,
            "dead channels %": 100 * float(1 - self.alive_C.mean()),
        }

    def warnings(self) -> list[str]:
        """What looks wrong, and what it may come from."""
        if self.alive_C is None:
            return []
        found = []
        share = self.zeros / self.values
        if not FEW_ZEROS <= share <= MANY_ZEROS:
            found.append(
                f"{100 * share:.1f}% of the features are zero, which is unusual after a ReLU: are "
                "these the right weights?"
            )
        if 1 - self.alive_C.mean() > DEAD_SHARE:
            found.append("More than half of the channels never fire: are these trained weights?")
        return found


@dataclass
class ExtractReport:
    """What became of the photos."""

    store: Path
    found: int
    written: int = 0
    already_there: int = 0
    skipped: dict[str, str] = field(default_factory=dict)  # path -> reason
    seconds: float = 0.0
    statistics: FeatureStatistics = field(default_factory=FeatureStatistics)

    def lines(self) -> list[str]:
        """The report, to be printed."""
        rate = self.written / self.seconds if self.seconds else 0.0
        told = [
            f"{self.found:,} photos: {self.written:,} written to {self.store} in "
            f"{self.seconds:.0f} s ({rate:.1f} photos/s), {self.already_there:,} there already, "
            f"{len(self.skipped):,} skipped."
        ]
        for reason, count in Counter(_kind(r) for r in self.skipped.values()).most_common():
            told.append(f"  skipped {count:,}: {reason}")
        if self.skipped:
            told.append(f"  each is listed in {skipped_file(self.store)}")
        if self.statistics.figures:
            values = ", ".join(f"{n} {v:.3g}" for n, v in self.statistics.figures.items())
            told.append(f"Features: {values}.")
        told += [f"Warning: {warning}" for warning in self.statistics.warnings()]
        return told


def skipped_file(store: Path) -> Path:
    """Where the skipped files of the last extraction into a store are listed."""
    return store.with_name(store.name + ".skipped.txt")


def extract(options: ExtractOptions, say: Callable[[str], object] = print) -> ExtractReport:
    """Encode photos into a store, new or begun; photos that are in it are passed over.

    Maps are written in the order of the photos, whatever the batches, so that a run that was
    killed and started again leaves the store of one that was not.

    Args:
        options: which photos, which encoder, where to.
        say: called with lines for the person at the keyboard.

    Raises:
        UserError: no photo, no encoder, or a store that was made otherwise.
    """
    photos = find_photos(options.images)
    weights = read_weights(options.weights, options.backbone, options.width)
    size = options.size or weights.size
    encoder = FrozenEncoder(weights, options.precision)
    about = describe(weights, encoder, size)
    say(f"Encoder: {weights.name}, {encoder.channels} channels, {size}, {about['precision']}.")
    for note in weights.notes:
        say(note)
    if options.weights == "random":
        say("Warning: this encoder is untrained; its maps are good for trials only.")
    report = ExtractReport(options.out, len(photos))
    start = time.monotonic()
    with _open(options, encoder.channels, size, about) as writer:
        todo = _select(photos, writer, report)
        _encode_all(todo, encoder, parse_size(size), writer, report, options)
    report.seconds = time.monotonic() - start
    listed = "".join(f"{path}\t{reason}\n" for path, reason in report.skipped.items())
    write_text(skipped_file(options.out), listed)
    if not report.written and not report.already_there:
        raise UserError(
            f"None of the {len(photos)} photos could be used: {next(iter(report.skipped.values()))}"
            f"; each is listed in {skipped_file(options.out)}."
        )
    return report


def describe(weights: Weights, encoder: FrozenEncoder, size: str) -> dict[str, Any]:
    """What a store keeps of its encoder, so that its maps can be trusted and made again."""
    architecture = weights.architecture
    shorter, longest = parse_size(size)
    return {
        "name": weights.name,
        "weights_sha256": weights.sha256,
        "backbone": architecture.backbone,
        "width": architecture.width,
        "layer": "res5 after ReLU",
        "stride": STRIDE,
        "pixel_mean": list(architecture.pixel_mean),
        "pixel_std": list(architecture.pixel_std),
        "channel_order": architecture.channel_order,
        "pixel_range": "0-255",
        "resize": {"shorter": shorter, "longest": longest, "filter": "bilinear", "padding": "none"},
        "precision": str(encoder.dtype).removeprefix("torch."),
        "versions": versions(),
    }


def _open(options: ExtractOptions, channels: int, size: str, about: dict[str, Any]) -> StoreWriter:
    path = options.out
    shorter, longest = parse_size(size)
    most = -(-shorter // STRIDE) * -(-longest // STRIDE)
    writer = StoreWriter.create(
        path,
        channels=channels,
        max_grids=most,
        dtype=options.dtype,
        encoder=about,
        exist_ok=True,
    )
    changed = [
        name
        for name in ("weights_sha256", "resize", "precision", "pixel_mean", "pixel_std")
        if writer.encoder.get(name) != about[name]
    ]
    if changed:
        name = changed[0]
        writer.close()
        raise UserError(
            f"{path} was made with another {name} ({writer.encoder.get(name)}, now {about[name]}): "
            "name another store with --out, or extract with what it was made with."
        )
    return writer


def _select(photos: list[Path], writer: StoreWriter, report: ExtractReport) -> list[Path]:
    """The photos that are not in the store, one for each key."""
    first: dict[str, Path] = {}
    for path in photos:
        key = canonical_key(path.stem)
        if key in first:
            report.skipped[str(path)] = f"the same key as {first[key]}"
            continue
        first[key] = path
    todo = [path for key, path in first.items() if key not in writer]
    report.already_there = len(first) - len(todo)
    return todo


def _encode_all(
    paths: Sequence[Path],
    encoder: FrozenEncoder,
    size: tuple[int, int],
    writer: StoreWriter,
    report: ExtractReport,
    options: ExtractOptions,
) -> None:
    saved = time.monotonic()
    with track("extract", len(paths), "photos") as bar:
        for window in _windows(paths, size, options):
            maps = _encode(window, encoder, options.batch_size)
            for (path, photo), map_CHW in zip(window, maps, strict=True):
                if isinstance(photo, BadPhoto) or map_CHW is None:
                    report.skipped[str(path)] = str(photo)
                else:
                    writer.add(
                        path.stem,
                        map_CHW,
                        source=str(path),
                        original_size=list(photo.original_size),
                        resized_size=list(photo.pixels_HW3.shape[:2]),
                    )
                    report.statistics.add(map_CHW)
                    report.written += 1
                bar.advance()
            if time.monotonic() - saved > SAVE_SECONDS:
                writer.flush()
                saved = time.monotonic()


Read = tuple[Path, Photo | BadPhoto]


def _windows(
    paths: Sequence[Path], size: tuple[int, int], options: ExtractOptions
) -> Iterator[list[Read]]:
    """The photos in order, decoded by threads one window ahead of the encoder."""

    def read(path: Path) -> Photo | BadPhoto:
        try:
            return read_photo(path, size)
        except BadPhoto as reason:
            return reason

    upcoming = iter(paths)
    most = WINDOW * options.batch_size
    with ThreadPoolExecutor(options.workers, thread_name_prefix="decode") as pool:

        def submit() -> list[tuple[Path, Future[Photo | BadPhoto]]]:
            return [(path, pool.submit(read, path)) for path in islice(upcoming, most)]

        ahead = submit()
        try:
            while ahead:
                current, ahead = ahead, submit()
                yield [(path, future.result()) for path, future in current]
        finally:
            for _, future in ahead:
                future.cancel()


def _encode(window: list[Read], encoder: FrozenEncoder, batch_size: int) -> list[np.ndarray | None]:
    """Maps (C, H, W) in the window's order; only photos of one size share a batch."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, (_, photo) in enumerate(window):
        if isinstance(photo, Photo):
            by_size.setdefault(photo.pixels_HW3.shape, []).append(place)
    maps: list[np.ndarray | None] = [None] * len(window)
    for places in by_size.values():
        for first in range(0, len(places), batch_size):
            chosen = places[first : first + batch_size]
            pixels = [photo.pixels_HW3 for photo in (window[p][1] for p in chosen)
                      if isinstance(photo, Photo)]  # fmt: skip
            maps_BCHW = encoder(torch.from_numpy(np.stack(pixels))).cpu().numpy()
            for place, map_CHW in zip(chosen, maps_BCHW, strict=True):
                maps[place] = map_CHW
    return maps


def _kind(reason: str) -> str:
    """A reason without what is particular to one file."""
    return reason.split(" as ")[0].split(":")[0]
