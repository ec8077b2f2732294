"""Feature files of other projects to a store, and a store to plain .npy files."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gridvlp.errors import UserError
from gridvlp.progress import track
from gridvlp.store import FeatureStore, StoreError, StoreWriter

SUFFIXES = (".npy", ".npz", ".pth", ".pt")


@dataclass
class ConvertReport:
    """What became of the files."""

    found: int
    written: int = 0
    already_there: int = 0
    skipped: dict[str, str] = field(default_factory=dict)  # path -> reason

    def lines(self) -> list[str]:
        """The report, to be printed; each skipped file with its reason."""
        return [
            f"{self.found:,} feature files: {self.written:,} written, {self.already_there:,} there "
            f"already, {len(self.skipped):,} skipped.",
            *(f"  skipped {path}: {reason}" for path, reason in self.skipped.items()),
        ]


def convert(
    source: Path,
    out: Path,
    encoder: str,
    *,
    channels_last: bool = False,
    max_grids: int = 608,
) -> ConvertReport:
    """Write a folder's feature files, one per photo, into a store; goes on with one that was begun.

    Args:
        source: folder of .npy, .npz (one array each) or .pth/.pt files (one tensor each, as
            grid-feats-vqa writes them), searched through; a file's stem is the photo's key.
        out: the store.
        encoder: what made the features; stores of other encoders are not read together.
        channels_last: the arrays are (H, W, C) and not (C, H, W); a leading 1 is dropped.
        max_grids: the most grids H x W that a map may have.

    Raises:
        UserError: no feature file, none that can be used, or a store of something else.
    """
    files = sorted(path for path in source.rglob("*") if path.suffix in SUFFIXES)
    if not files:
        raise UserError(f"There is no {', '.join(SUFFIXES)} file in {source}.")
    report = ConvertReport(len(files))
    writer: StoreWriter | None = None
    about = {"name": encoder, "weights_sha256": None, "converted": True}
    try:
        if out.exists():
            writer = StoreWriter.open(out)
            if writer.encoder.get("name") != encoder:
                raise UserError(
                    f"{out} holds maps of {writer.encoder.get('name')}, not of {encoder}: name "
                    "another store with --out."
                )
        with track("convert", len(files), "maps") as bar:
            for path in files:
                bar.advance()
                if writer is not None and path.stem in writer:
                    report.already_there += 1
                    continue
                try:
                    map_CHW = read_feature_file(path, channels_last)
                    if writer is None:
                        channels = len(map_CHW)
                        writer = StoreWriter.create(
                            out, channels=channels, max_grids=max_grids, encoder=about
                        )
                    _check(map_CHW, writer)
                except UserError as reason:
                    report.skipped[str(path)] = str(reason)
                    continue
                writer.add(path.stem, map_CHW, source=str(path))
                report.written += 1
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
        first, wrong = next(iter(report.skipped.items()))
        raise UserError(f"None of the {len(files)} files can be used; {first}: {wrong}")
    return report


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
            f"has {height * width} grids; the store takes {writer.max_grids} (--max-grids)."
        )
    if not np.isfinite(map_CHW).all() or np.abs(map_CHW).max(initial=0) > np.finfo("float16").max:
        raise UserError("has numbers that are not finite in float16.")


def export(
    store: FeatureStore, folder: Path, say: Callable[[str], object] = print
) -> tuple[int, int]:
    """Write every map as folder/KEY.npy (C, H, W), in the store's dtype; those there are kept.

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
                path = folder / f"{key}.npy"
                if path.exists():
                    there += 1
                    continue
                unfinished = folder / f".{key}.tmp"
                with unfinished.open("wb") as file:
                    np.save(file, store.map(key, dtype=store.dtype), allow_pickle=False)
                os.replace(unfinished, path)
                written += 1
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error
    say(f"{written:,} maps written to {folder}, {there:,} there already.")
    return written, there
