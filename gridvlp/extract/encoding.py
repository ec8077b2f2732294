"""The unit of work: a list of photos becomes features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gridvlp.data.photo_names import source_facts
from gridvlp.extract.encoder import FrozenEncoder
from gridvlp.extract.photos import BadPhoto, Photo, read_photo
from gridvlp.extract.regions import RegionEncoder
from gridvlp.extract.selection import Item
from gridvlp.extract.statistics import FeatureStatistics

WINDOW = 4  # batches looked at together, so that photos of one size can share one
# On a processor more photos at a time gain nothing, and their memory costs page faults.
CPU_BATCH_PIXELS = 600 * 1000

Encoder = FrozenEncoder | RegionEncoder
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Encoded:
    """A photo's features and what is known of it, as ``StoreWriter.add`` takes them."""

    features: dict[str, np.ndarray]
    facts: dict[str, Any]
    rules: tuple[str, ...]  # by which the photo was decoded (``photos.Photo``)
    statistics: FeatureStatistics


@dataclass(frozen=True)
class Outcome:
    """What became of one item: features or None, and the files that could not be read."""

    item: Item
    encoded: Encoded | None
    failures: dict[Path, str]  # reasons; with features, those of the files before the one read


@dataclass(frozen=True)
class _Read:
    photo: Photo | None
    source: dict[str, Any]  # facts of the file
    failures: dict[Path, str]


def encode_items(
    items: Sequence[Item],
    encoder: Encoder,
    size: Size,
    batch_size: int = 8,
    workers: int = 2,
    half: bool = True,
    stored_size: Callable[[Item], Size | None] = lambda item: None,
) -> Iterator[Outcome]:
    """Decode, resize and encode photos; they come in their order. Touches nothing but the files.

    A batch is a function of the items alone. Of a batch that is partly stored all photos are
    encoded again, so that features do not depend, to the bit, on where an earlier run ended.

    Decoding and encoding run in threads, one window of photos ahead of the caller. On a processor
    each of its cores encodes photos of its own: no core waits for another within a layer.

    Args:
        items: the photos.
        encoder: of grids or regions.
        size: shorter side, and the most that the longer may have.
        batch_size: the most photos of one size that are encoded together.
        workers: threads that decode.
        half: give features in float16, and not in float32.
        stored_size: the resized size of an item that needs no features, None of the others.

    Yields:
        An outcome for each item without a stored size.
    """
    upcoming = iter(items)
    threads = torch.get_num_threads()
    streams = min(threads, max(1, len(items))) if encoder.device.type == "cpu" else 1
    decoding = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    encoding = ThreadPoolExecutor(
        *(streams, "encode", torch.set_num_threads, (threads // streams,))
    )

    def decode() -> list[_Decoding]:
        window = islice(upcoming, WINDOW * batch_size)
        entries = []
        for item in window:
            stored = stored_size(item)
            read = None if stored is not None else decoding.submit(_read, item, size)
            entries.append(_Decoding(item, stored, read))
        return entries

    def encode(window: list[_Decoding]) -> list[_Encoding]:
        read = [None if entry.read is None else entry.read.result() for entry in window]
        sizes = [
            entry.stored or (r.photo.pixels_HW3.shape[:2] if r and r.photo else None)
            for entry, r in zip(window, read, strict=True)
        ]
        jobs: list[tuple[Future[list[Encoded]], int] | None] = [None] * len(window)
        for places in _batches(sizes, encoder, batch_size):
            if all(window[place].stored for place in places):
                continue
            photos = []
            for place in places:
                again = read[place] or _read(window[place].item, size)
                if again.photo is not None and again.photo.pixels_HW3.shape[:2] == sizes[place]:
                    photos.append((place, again))
            job = encoding.submit(_encode, [r for _, r in photos], encoder, half)
            for number, (place, _) in enumerate(photos):
                jobs[place] = job, number
        return [
            (entry.item, r, job)
            for entry, r, job in zip(window, read, jobs, strict=True)
            if r is not None
        ]

    try:
        following = decode()
        current = encode(following)
        following = decode()
        while following or current:
            ahead = encode(following)
            following = decode()
            for item, read, job in current:
                encoded = None if job is None else job[0].result()[job[1]]
                yield Outcome(item, encoded, read.failures)
            current = ahead
    finally:
        decoding.shutdown(cancel_futures=True)
        encoding.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Decoding:
    item: Item
    stored: Size | None
    read: Future[_Read] | None  # of items that are not stored


_Encoding = tuple[Item, _Read, tuple[Future[list[Encoded]], int] | None]


def _read(item: Item, size: Size) -> _Read:
    """The first of an item's files that is a photo."""
    failures: dict[Path, str] = {}
    for path in item.paths:
        try:
            return _Read(read_photo(path, size), source_facts(path), failures)
        except BadPhoto as reason:
            failures[path] = str(reason)
        except OSError as error:
            failures[path] = error.strerror or str(error)
    return _Read(None, {}, failures)


def _batches(
    sizes: Sequence[Size | None], encoder: Encoder, batch_size: int
) -> Iterator[list[int]]:
    """Places in the window of photos to be encoded together; only those of one size are."""
    by_size: dict[Size, list[int]] = {}
    for place, size in enumerate(sizes):
        if size is not None:
            by_size.setdefault(size, []).append(place)
    for (height, width), places in by_size.items():
        most = batch_size
        if encoder.device.type == "cpu":
            most = min(most, max(1, CPU_BATCH_PIXELS // (height * width)))
        for first in range(0, len(places), most):
            yield places[first : first + most]


def _encode(read: Sequence[_Read], encoder: Encoder, half: bool) -> list[Encoded]:
    """The features of photos of one size."""
    photos = [(entry.photo, entry) for entry in read if entry.photo is not None]
    pixels_BHW3 = torch.from_numpy(np.stack([photo.pixels_HW3 for photo, _ in photos]))
    regions = isinstance(encoder, RegionEncoder)
    if isinstance(encoder, RegionEncoder):
        described = encoder(pixels_BHW3)
    else:
        described = [{"grid_map": map_CHW} for map_CHW in encoder(pixels_BHW3)]
    encoded = []
    for (photo, entry), features in zip(photos, described, strict=True):
        statistics = FeatureStatistics.of(features["grid_map"], pooled=regions)
        if half:  # here, because NumPy takes thirty times as long
            features["grid_map"] = features["grid_map"].half()
        arrays = {name: value.cpu().numpy() for name, value in features.items()}
        facts = {
            **entry.source,
            "original_size": list(photo.original_size),
            "resized_size": list(photo.pixels_HW3.shape[:2]),
        }
        encoded.append(Encoded(arrays, facts, photo.rules, statistics))
    return encoded
