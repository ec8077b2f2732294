"""Feature files of other projects to a store, and a store to plain .npy files."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.convert_tsv import read_tsv
from gridvlp.errors import UserError
from gridvlp.progress import track
from gridvlp.store import FeatureStore, StoreError, StoreWriter

SUFFIXES = (".npy", ".npz", ".pth", ".pt")


@dataclass
class ConvertReport:
    """What became of the photos' features."""

    found: int = 0
    written: int = 0
    already_there: int = 0
    skipped: dict[str, str] = field(default_factory=dict)  # path, line -> reason
    bare_numbers: int = 0  # keys that may be COCO's, without the zeros of its file names

    def lines(self) -> list[str]:
        """The report, to be printed; each skipped file with its reason."""
        return [
            f"{self.found:,} photos' features: {self.written:,} written, {self.already_there:,} "
            f"there already, {len(self.skipped):,} skipped.",
            *(f"  skipped {path}: {reason}" for path, reason in self.skipped.items()),
            *(
                [
                    f"{self.bare_numbers:,} ids are bare numbers. If they are COCO's, convert "
                    "again with --coco-ids, or no photo of an annotation is found."
                ]
                if self.bare_numbers
                else []
            ),
        ]


@dataclass(frozen=True)
class _Photo:
    """The features of one photo, not read yet."""

    name: str  # of the file, or of the line in it
    key: str  # "" where there is none
    size: int  # for the progress
    load: Callable[[], dict[str, Any]]  # arguments of StoreWriter.add; raises UserError


def convert(
    source: Path,
    out: Path,
    encoder: str,
    *,
    channels_last: bool = False,
    max_grids: int = 608,
    coco_ids: bool = False,
) -> ConvertReport:
    """Write the features of other projects into a store; goes on with one that was begun.

    Args:
        source: folder of .npy, .npz (one array each) or .pth/.pt files (one tensor each, as
            grid-feats-vqa writes them), searched through; a file's stem is the photo's key. Or a
            .tsv file of LXMERT's or bottom-up attention's, or a folder of them; these make a store
            of regions.
        out: the store.
        encoder: what made the features; stores of other encoders are not read together.
        channels_last: the arrays are (H, W, C) and not (C, H, W); a leading 1 is dropped.
        max_grids: the most grids H x W that a map may have, or regions of a photo.
        coco_ids: the ids of a .tsv file are COCO's numbers: 42 is the photo 000000000042.

    Raises:
        UserError: no feature file, none that can be used, or a store of something else.
    """
    tables = [source] if source.is_file() else sorted(source.rglob("*.tsv"))
    files = sorted(path for path in source.rglob("*") if path.suffix in SUFFIXES)
    if not files and not tables:
        raise UserError(f"There is no {', '.join(SUFFIXES)} or .tsv file in {source}.")
    if files and tables:
        raise UserError(
            f"{source} has .tsv files and others: name a folder of one kind, or a file."
        )
    if tables and tables[0].suffix != ".tsv":
        raise UserError(f"{source} is no .tsv file; for others name their folder.")
    kind = "regions" if tables else "grids"
    report = ConvertReport()
    writer: StoreWriter | None = None
    about = {"name": encoder, "weights_sha256": None, "converted": True}
    if tables:
        photos = _lines(tables, coco_ids)
        total, unit = sum(path.stat().st_size for path in tables) // 1000, "kB"
    else:
        photos, total, unit = _files(files, channels_last), len(files), "maps"
    try:
        if out.exists():
            writer = StoreWriter.open(out)
            if writer.encoder.get("name") != encoder or writer.kind != kind:
                raise UserError(
                    f"{out} holds {writer.kind} of {writer.encoder.get('name')}, not {kind} of "
                    f"{encoder}: name another store with --out."
                )
        with track("convert", total, unit) as bar:
            for photo in photos:
                bar.advance(photo.size)
                report.found += 1
                if writer is not None and photo.key in writer:
                    report.already_there += 1
                    continue
                try:
                    given = photo.load()
                    if not photo.key:
                        raise UserError("has no photo's id.")
                    if writer is None:
                        channels = len(given["grid_map"])
                        writer = StoreWriter.create(
                            out, channels=channels, max_grids=max_grids, encoder=about, kind=kind
                        )
                    _check(given["grid_map"], writer)
                except UserError as reason:
                    report.skipped[photo.name] = str(reason)
                    continue
                writer.add(photo.key, **given)
                report.written += 1
                if photo.key.isdigit() and len(photo.key) < 12:
                    report.bare_numbers += bool(tables)
        if writer is not None:
            writer.flush()
    except KeyboardInterrupt:
        if writer is not None:
            writer.flush()
        raise
    finally:
        if writer is not None:
            writer.close()
    if not report.written and not report.already_there:
        if not report.skipped:
            raise UserError(f"{source} is empty.")
        first, wrong = next(iter(report.skipped.items()))
        raise UserError(f"None of {report.found} photos' features can be used; {first}: {wrong}")
    return report


def _files(files: Sequence[Path], channels_last: bool) -> Iterator[_Photo]:
    for path in files:

        def load(path: Path = path) -> dict[str, Any]:
            return {"grid_map": read_feature_file(path, channels_last), "source": str(path)}

        yield _Photo(str(path), path.stem, 1, load)


def _lines(tables: Sequence[Path], coco_ids: bool) -> Iterator[_Photo]:
    for path in tables:
        read = told = 0
        for line in read_tsv(path):
            read += line.size
            size, told = read // 1000 - told, read // 1000
            yield _Photo(f"{path}, line {line.number}", line.key(coco_ids), size, line.regions)


def read_feature_file(path: Path, channels_last: bool = False) -> np.ndarray:
    """The map (C, H, W) of one file, float32. Nothing is unpickled.

    Raises:
        UserError: the file cannot be read, or holds no such array.
    """
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                names = [name for name in arrays.files if arrays[name].ndim >= 3]
                if len(names) != 1:
                    raise UserError(f"holds {len(names)} arrays of three dimensions, not one.")
                array = arrays[names[0]]
        else:
            import torch

            tensor = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(tensor, torch.Tensor):
                raise UserError(f"holds a {type(tensor).__name__}, not a tensor.")
            array = tensor.float().numpy()
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        raise UserError(f"cannot be read: {str(error).splitlines()[0]}") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError("cannot be read as plain numbers; files that hold code are not.") from error
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3 or array.dtype.kind != "f":
        raise UserError(f"has shape {array.shape} of {array.dtype}, not C x H x W of floats.")
    if channels_last:
        array = array.transpose(2, 0, 1)
    elif array.shape[0] < array.shape[2] and array.shape[2] >= 256:
        raise UserError(f"has shape {array.shape}: if that is H x W x C, give --channels-last.")
    return np.ascontiguousarray(array, dtype=np.float32)


def _check(map_CHW: np.ndarray, writer: StoreWriter) -> None:
    channels, height, width = map_CHW.shape
    if channels != writer.channels:
        raise UserError(f"has {channels} channels; the store has {writer.channels}.")
    if height * width > writer.max_grids:
        raise UserError(
            f"has {height * width} {writer.kind}; the store takes {writer.max_grids} (--max-grids)."
        )
    if not np.isfinite(map_CHW).all() or np.abs(map_CHW).max(initial=0) > np.finfo("float16").max:
        raise UserError("has numbers that are not finite in float16.")


def export(
    store: FeatureStore, folder: Path, say: Callable[[str], object] = print
) -> tuple[int, int]:
    """Write every map as folder/KEY.npy (C, H, W); those that are there are kept.

    Of a store of regions, write folder/KEY.npz with features (N, C), boxes (N, 4) as fractions of
    the photo, and, where there are any, classes (N,) and scores (N,).

    Returns:
        How many were written, and how many were there already.

    Raises:
        UserError: a key is no file name, a map is damaged, or the disk refuses.
    """
    written = there = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with track("export", len(store), "maps") as bar:
            keys = store.keys()
            for key in keys:
                bar.advance()
                if "/" in key or "\0" in key or key in (".", ".."):
                    raise StoreError(f"The key {key!r} cannot be a file's name.")
                path = folder / f"{key}.{'npz' if store.kind == 'regions' else 'npy'}"
                if path.exists():
                    there += 1
                    continue
                unfinished = folder / f".{key}.tmp"
                with unfinished.open("wb") as file:
                    if store.kind == "regions":
                        found = store.regions(key, dtype=store.dtype)
                        arrays = {"features": found.features_NC, "boxes": found.boxes_N4}
                        if found.classes_N is not None:
                            arrays["classes"] = found.classes_N
                        if found.scores_N is not None:
                            arrays["scores"] = found.scores_N
                        np.savez(file, allow_pickle=False, **arrays)
                    else:
                        np.save(file, store.map(key, dtype=store.dtype), allow_pickle=False)
                os.replace(unfinished, path)
                written += 1
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error
    say(f"{written:,} maps written to {folder}, {there:,} there already.")
    return written, there
