"""Photos to a feature store, with a frozen encoder.

gridvlp extract --images coco/
"""

from __future__ import annotations

import time
import zlib
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
from gridvlp.extract.regions import NMS_THRESHOLD, RegionEncoder
from gridvlp.extract.settings import ExtractOptions, parse_size
from gridvlp.extract.statistics import FeatureStatistics
from gridvlp.extract.visual_genome import coco_keys
from gridvlp.progress import track
from gridvlp.run_folder import versions, write_text
from gridvlp.store import StoreWriter, canonical_key

WINDOW = 4  # batches looked at together, so that photos of one size can share one
SAVE_SECONDS = 300.0  # at most this much work is lost to a kill
# On a processor more photos at a time gain nothing, and their memory costs page faults.
CPU_BATCH_PIXELS = 600 * 1000


@dataclass
class ExtractReport:
    """What became of the photos."""

    store: Path
    found: int = 0
    written: int = 0
    already_there: int = 0
    twins: int = 0  # photos of Visual Genome left out, because they are given as COCO's
    few: int = 0  # photos with fewer regions than asked for
    part: tuple[int, int] | None = None
    regions: int | None = None
    skipped: dict[str, str] = field(default_factory=dict)  # path -> reason
    seconds: float = 0.0
    statistics: FeatureStatistics = field(default_factory=FeatureStatistics)

    def lines(self) -> list[str]:
        """The report, to be printed."""
        shard = f" of shard {self.part[0]} of {self.part[1]}" if self.part else ""
        rate = self.written / self.seconds if self.seconds else 0.0
        told = [
            f"{self.found:,} photos{shard}: {self.written:,} written to {self.store} in "
            f"{self.seconds:.0f} s ({rate:.1f} photos/s), {self.already_there:,} there already, "
            f"{len(self.skipped):,} skipped."
        ]
        for reason, count in Counter(_kind(r) for r in self.skipped.values()).most_common():
            told.append(f"  skipped {count:,}: {reason}")
        if self.skipped:
            told.append(f"  each is listed in {skipped_file(self.store, self.part)}")
        if self.twins:
            told.append(
                f"{self.twins:,} photos of Visual Genome left out: they are given as COCO's, and a "
                "map serves both."
            )
        if self.few:
            told.append(f"{self.few:,} photos have fewer than {self.regions} regions.")
        if self.statistics.figures:
            values = ", ".join(f"{n} {v:.3g}" for n, v in self.statistics.figures.items())
            told.append(f"Features: {values}.")
        told += [f"Warning: {warning}" for warning in self.statistics.warnings()]
        return told


def skipped_file(store: Path, part: tuple[int, int] | None = None) -> Path:
    """Where the skipped files of the last extraction into a store, or its part k of n, are."""
    which = f"-{part[0]}-of-{part[1]}" if part else ""
    return store.with_name(f"{store.name}.skipped{which}.txt")


def extract(options: ExtractOptions, say: Callable[[str], object] = print) -> ExtractReport:
    """Encode photos into a store, new or begun; photos that are in it are passed over.

    Features are written in the order of the photos, whatever the batches, so that a run that was
    killed and started again leaves the store of one that was not. Which part of several a photo
    belongs to depends on its key alone, so that lists may grow between runs.

    Args:
        options: which photos, which encoder, where to.
        say: called with lines for the person at the keyboard.

    Raises:
        UserError: no photo, no encoder, or a store that was made otherwise.
    """
    photos = find_photos(options.images)
    detector = options.regions is not None
    weights = read_weights(options.weights, options.backbone, options.width, detector)
    size = options.size or weights.size
    encoder: Encoder
    if options.regions is None:
        encoder = FrozenEncoder(weights, options.precision)
    else:
        encoder = RegionEncoder(weights, options.regions, options.precision)
    about = describe(weights, encoder, size)
    what = f"{size}, {about['precision']}" + (f", {options.regions} regions" if detector else "")
    say(f"Encoder: {weights.name}, {encoder.channels} channels, {what}, on {encoder.device}.")
    for note in weights.notes:
        say(note)
    if options.weights == "random":
        say("Warning: this encoder is untrained; its maps are good for trials only.")
    report = ExtractReport(options.out, part=options.part, regions=options.regions)
    start = time.monotonic()
    with _open(options, encoder.channels, size, about) as writer:
        todo = _select(photos, writer, report)
        try:
            _fill(writer, todo, encoder, parse_size(size), report, options)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{encoder.device} has too little memory: give a --batch-size below "
                f"{options.batch_size}; what is in {options.out} stays."
            ) from error
    report.seconds = time.monotonic() - start
    listed = skipped_file(options.out, options.part)
    try:
        write_text(listed, "".join(f"{path}\t{why}\n" for path, why in report.skipped.items()))
    except OSError as error:
        raise UserError(f"{listed} cannot be written: {error.strerror}.") from error
    if report.found and not report.written and not report.already_there:
        raise UserError(
            f"None of the {report.found} photos could be used: "
            f"{next(iter(report.skipped.values()))}; each is listed in {listed}."
        )
    return report


def describe(weights: Weights, encoder: Encoder, size: str) -> dict[str, Any]:
    """What a store keeps of its encoder, so that its maps can be trusted and made again."""
    architecture = weights.architecture
    shorter, longest = parse_size(size)
    about = {
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
    if isinstance(encoder, RegionEncoder):
        del about["stride"]
        about["layer"] = "res5 on 14 x 14 RoIAlign of res4, mean"
        about["regions"] = {
            "most": encoder.count,
            "proposals": encoder.proposals,
            "boxes": "proposals",
            "nms": NMS_THRESHOLD,
        }
    return about


def _open(options: ExtractOptions, channels: int, size: str, about: dict[str, Any]) -> StoreWriter:
    shorter, longest = parse_size(size)
    try:
        writer = StoreWriter.create(
            options.out,
            channels=channels,
            max_grids=options.regions or -(-shorter // STRIDE) * -(-longest // STRIDE),
            dtype=options.dtype,
            encoder=about,
            kind="grids" if options.regions is None else "regions",
            part=options.part,
            exist_ok=True,
        )
    except OSError as error:
        raise UserError(f"{options.out} cannot be made: {error.strerror or error}.") from error
    same = ("weights_sha256", "resize", "precision", "pixel_mean", "pixel_std", "regions")
    changed = [name for name in same if writer.encoder.get(name) != about.get(name)]
    if changed:
        name = changed[0]
        writer.close()
        raise UserError(
            f"{options.out} was made with another {name} ({writer.encoder.get(name)}, now "
            f"{about.get(name)}): name another store with --out, or extract with what it was made "
            "with."
        )
    return writer


def _select(photos: list[Path], writer: StoreWriter, report: ExtractReport) -> list[Path]:
    """The photos of this part that are not in the store, one for each key."""
    first: dict[str, Path] = {}
    keys = [canonical_key(path.stem) for path in photos]
    given, twins = set(keys), coco_keys(photos)
    for path, key in zip(photos, keys, strict=True):
        if report.part and not _belongs(key, *report.part):
            continue
        if twins.get(path) in given:
            report.twins += 1
            continue
        report.found += 1
        if key in first:
            report.skipped[str(path)] = f"the same key as {first[key]}"
            continue
        first[key] = path
    todo = [path for key, path in first.items() if key not in writer]
    report.already_there = len(first) - len(todo)
    return todo


def _belongs(key: str, part: int, parts: int) -> bool:
    return zlib.crc32(key.encode(errors="surrogateescape")) % parts == part


def _fill(
    writer: StoreWriter,
    paths: Sequence[Path],
    encoder: Encoder,
    size: tuple[int, int],
    report: ExtractReport,
    options: ExtractOptions,
) -> None:
    saved = time.monotonic()
    with track("extract", len(paths), "photos") as bar:
        half = options.dtype == "float16"
        encoded = encode_photos(paths, encoder, size, options.batch_size, options.workers, half)
        for path, found in encoded:
            if isinstance(found, BadPhoto):
                report.skipped[str(path)] = str(found)
            else:
                writer.add(path.stem, **found.features, source=str(path), **found.sizes)
                report.statistics.add(found.statistics)
                report.few += found.features["grid_map"].shape[2] < (report.regions or 0)
                report.written += 1
            bar.advance()
            if time.monotonic() - saved > SAVE_SECONDS:
                writer.flush()
                saved = time.monotonic()


# --- the unit of work: a list of photos becomes features -------------------------------------

Encoder = FrozenEncoder | RegionEncoder
Read = tuple[Path, Photo | BadPhoto]


@dataclass(frozen=True)
class Encoded:
    """A photo's features and its sizes, [height, width], as ``StoreWriter.add`` takes them."""

    features: dict[str, np.ndarray]
    sizes: dict[str, Any]
    statistics: FeatureStatistics


def encode_photos(
    paths: Sequence[Path],
    encoder: Encoder,
    size: tuple[int, int],
    batch_size: int = 8,
    workers: int = 2,
    half: bool = True,
) -> Iterator[tuple[Path, Encoded | BadPhoto]]:
    """Decode, resize and encode photos; they come in their order. Touches nothing but the files.

    Decoding and encoding run in threads, one window of photos ahead of the caller. On a processor
    each of its cores encodes photos of its own: no core waits for another within a layer.

    Args:
        paths: photo files.
        encoder: of grids or regions.
        size: shorter side, and the most that the longer may have.
        batch_size: the most photos of one size that are encoded together.
        workers: threads that decode.
        half: give features in float16, and not in float32.
    """
    upcoming = iter(paths)
    threads = torch.get_num_threads()
    streams = min(threads, max(1, len(paths))) if encoder.device.type == "cpu" else 1
    decoding = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    encoding = ThreadPoolExecutor(
        *(streams, "encode", torch.set_num_threads, (threads // streams,))
    )

    def read(path: Path) -> Photo | BadPhoto:
        try:
            return read_photo(path, size)
        except BadPhoto as reason:
            return reason

    def decode() -> list[tuple[Path, Future[Photo | BadPhoto]]]:
        chosen = islice(upcoming, WINDOW * batch_size)
        return [(path, decoding.submit(read, path)) for path in chosen]

    def encode(decoded: list[tuple[Path, Future[Photo | BadPhoto]]]) -> _Window:
        window = [(path, future.result()) for path, future in decoded]
        jobs: list[tuple[Future[list[Encoded]], int] | None] = [None] * len(window)
        for places in _batches(window, encoder, batch_size):
            photos = [photo for photo in (window[p][1] for p in places) if isinstance(photo, Photo)]
            job = encoding.submit(_encode, photos, encoder, half)
            for number, place in enumerate(places):
                jobs[place] = job, number
        return list(zip(window, jobs, strict=True))

    try:
        following = decode()
        current = encode(following)
        following = decode()
        while current:
            ahead = encode(following)
            following = decode()
            for (path, photo), job in current:
                if isinstance(photo, BadPhoto):
                    yield path, photo
                else:
                    assert job is not None
                    yield path, job[0].result()[job[1]]
            current = ahead
    finally:
        decoding.shutdown(cancel_futures=True)
        encoding.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


_Window = list[tuple[Read, tuple[Future[list[Encoded]], int] | None]]


def _batches(window: list[Read], encoder: Encoder, batch_size: int) -> Iterator[list[int]]:
    """Places in the window of photos to be encoded together; only those of one size are."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, (_, photo) in enumerate(window):
        if isinstance(photo, Photo):
            by_size.setdefault(photo.pixels_HW3.shape, []).append(place)
    for (height, width, _), places in by_size.items():
        most = batch_size
        if encoder.device.type == "cpu":
            most = min(most, max(1, CPU_BATCH_PIXELS // (height * width)))
        for first in range(0, len(places), most):
            yield places[first : first + most]


def _encode(photos: list[Photo], encoder: Encoder, half: bool) -> list[Encoded]:
    """The features of photos of one size."""
    pixels_BHW3 = torch.from_numpy(np.stack([photo.pixels_HW3 for photo in photos]))
    regions = isinstance(encoder, RegionEncoder)
    if isinstance(encoder, RegionEncoder):
        found = encoder(pixels_BHW3)
    else:
        found = [{"grid_map": map_CHW} for map_CHW in encoder(pixels_BHW3)]
    encoded = []
    for photo, features in zip(photos, found, strict=True):
        statistics = FeatureStatistics.of(features["grid_map"], pooled=regions)
        if half:  # here, because NumPy takes thirty times as long
            features["grid_map"] = features["grid_map"].half()
        arrays = {name: value.cpu().numpy() for name, value in features.items()}
        resized_size = list(photo.pixels_HW3.shape[:2])
        sizes = {"original_size": list(photo.original_size), "resized_size": resized_size}
        encoded.append(Encoded(arrays, sizes, statistics))
    return encoded


def _kind(reason: str) -> str:
    """A reason without what is particular to one file."""
    return reason.split(" as ")[0].split(":")[0]
