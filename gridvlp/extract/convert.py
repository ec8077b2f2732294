"""Feature files of other projects to a store; gridvlp.extract.export is the way back."""

from __future__ import annotations

import pickle
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.data.photo_names import passed_over_text, photo_keys, source_facts, stored_mismatch
from gridvlp.errors import UserError
from gridvlp.extract.convert_tsv import read_tsv
from gridvlp.extract.export import KEYS, export, exported_keys
from gridvlp.run.progress import track
from gridvlp.run.skip_list import SKIP_LIMIT, SkipList, skipped_file
from gridvlp.store import FeatureStore, MapError, StoreWriter, canonical_key

__all__ = ["ConvertReport", "convert", "export", "read_feature_file"]

SUFFIXES = (".npy", ".npz", ".pth", ".pt")


@dataclass
class ConvertReport:
    """What became of the photos' features."""

    store: Path
    skipped: SkipList
    found: int = 0
    written: int = 0
    already_there: int = 0
    bare_numbers: int = 0  # keys that may be COCO's, without the zeros of its file names
    passed_over: Counter[str] = field(default_factory=Counter)  # files by suffix

    def lines(self) -> list[str]:
        """The report, to be printed."""
        lines = [
            f"{self.found:,} photos' features: {self.written:,} written, {self.already_there:,} "
            f"there already, {len(self.skipped):,} skipped."
        ]
        lines += [f"  skipped {count:,}: {reason}" for reason, count in self.skipped.kinds()]
        if self.skipped:
            lines.append(f"  each is listed in {skipped_file(self.store)}")
        if self.passed_over:
            lines.append(passed_over_text(self.passed_over))
        if self.bare_numbers:
            lines.append(
                f"{self.bare_numbers:,} ids are bare numbers. If they are COCO's, convert again "
                "with --coco-ids, or no photo of an annotation is found."
            )
        return lines


@dataclass(frozen=True)
class _Photo:
    """The features of one photo, not read yet."""

    name: str  # of the file, or of the line in it
    key: str  # "" where there is none
    path: Path | None  # of a file of one map
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
    skip_limit: int = SKIP_LIMIT,
) -> ConvertReport:
    """Write the features of other projects into a store, new or begun.

    Args:
        source: folder of .npy, .npz (one array each) or .pth/.pt files (one tensor each, as
            grid-feats-vqa writes them), searched through; keys are files' stems, with the folder
            where stems are equal (see ``photo_keys``), or those that an export left in keys.json.
            Or a .tsv file of LXMERT's or bottom-up attention's, or a folder of them; these make a
            store of regions.
        out: the store.
        encoder: what made the features; stores of other encoders are not read together.
        channels_last: the arrays are (H, W, C) and not (C, H, W); a leading 1 is dropped.
        max_grids: the most grids H x W that a map may have, or regions of a photo.
        coco_ids: the ids of a .tsv file are COCO's numbers: 42 is the photo 000000000042.
        skip_limit: see ``SkipList``.

    Raises:
        UserError: no feature file, none that can be used, too many that cannot, or a store of
            something else.
    """
    files, tables, passed_over = _search(source)
    kind = "regions" if tables else "grids"
    skipped = SkipList(skip_limit, "are these features, all of one encoder?")
    report = ConvertReport(out, skipped, passed_over=passed_over)
    about = {"name": encoder, "weights_sha256": None, "converted": True}
    if tables:
        photos = _lines(tables, coco_ids)
        total, unit = sum(path.stat().st_size for path in tables) // 1000, "kB"
    else:
        photos, total, unit = _files(source, files, channels_last), len(files), "maps"
    writer: StoreWriter | None = None
    if out.exists():
        writer = _open(out, encoder, kind)
    selection = _Selection(writer, report)
    try:
        with track("convert", total, unit) as bar:
            for photo in photos:
                bar.advance(photo.size)
                report.found += 1
                if not selection(photo):
                    continue
                try:
                    features = photo.load()
                    if not photo.key:
                        raise UserError("has no photo's id.")
                    _check_count(features["grid_map"], max_grids, writer)
                except UserError as reason:
                    skipped.add(photo.name, str(reason))
                    continue
                if writer is None:
                    channels = len(features["grid_map"])
                    writer = StoreWriter.create(
                        out, channels=channels, max_grids=max_grids, encoder=about, kind=kind
                    )
                try:
                    writer.add(photo.key, **features)
                except MapError as reason:
                    skipped.add(photo.name, str(reason).replace(f" of {photo.key}", "", 1))
                    continue
                skipped.take()
                selection.take(photo)
                report.written += 1
                if photo.key.isdigit() and len(photo.key) < 12:
                    report.bare_numbers += bool(tables)
    finally:
        if writer is not None:
            try:
                writer.flush()  # what is whole is kept, whatever ended the work
            finally:
                writer.close()
        skipped.write(skipped_file(out))
    if not report.written and not report.already_there:
        if not skipped:
            raise UserError(f"{source} is empty.")
        first, wrong = next(iter(skipped.reasons.items()))
        raise UserError(f"None of {report.found} photos' features can be used; {first}: {wrong}")
    return report


def _search(source: Path) -> tuple[list[Path], list[Path], Counter[str]]:
    """Files of one map each, tables, and how many other files there are by their suffix."""
    inside = [source] if source.is_file() else sorted(source.rglob("*"))
    files = [path for path in inside if path.suffix.lower() in SUFFIXES]
    tables = [path for path in inside if path.suffix.lower() == ".tsv"]
    if not files and not tables:
        raise UserError(f"There is no {', '.join(SUFFIXES)} or .tsv file in {source}.")
    if files and tables:
        raise UserError(
            f"{source} has .tsv files and others: name a folder of one kind, or a file."
        )
    if source.is_file() and not tables:
        raise UserError(f"{source} is not a .tsv file; for others name their folder.")
    known = {*files, *tables, source / KEYS}
    others = (path for path in inside if path not in known and not path.name.startswith("."))
    return files, tables, Counter(path.suffix.lower() for path in others if path.is_file())


def _open(out: Path, encoder: str, kind: str) -> StoreWriter:
    writer = StoreWriter.open(out)
    if writer.encoder.get("name") != encoder or writer.kind != kind:
        writer.close()
        raise UserError(
            f"{out} holds {writer.kind} of {writer.encoder.get('name')}, not {kind} of {encoder}: "
            "name another store with --out."
        )
    return writer


class _Selection:
    """Whether a photo's features are to be read: not if its key came before, or is in the store."""

    def __init__(self, writer: StoreWriter | None, report: ConvertReport) -> None:
        self.report = report
        self.store = FeatureStore(report.store) if writer is not None and len(writer) else None
        self.names: dict[str, str] = {}  # by key

    def __call__(self, photo: _Photo) -> bool:
        key = canonical_key(photo.key)
        if key in self.names:
            self.report.skipped.note(photo.name, f"has the same key as {self.names[key]}")
            return False
        if self.store is None or key not in self.store:
            return True
        self.take(photo)
        paths = [] if photo.path is None else [photo.path]
        if mismatch := stored_mismatch(photo.key, paths, self.store.record(key)):
            self.report.skipped.note(photo.name, mismatch)
        else:
            self.report.already_there += 1
        return False

    def take(self, photo: _Photo) -> None:
        """Leave out what has the same key from now on."""
        self.names[canonical_key(photo.key)] = photo.name


def _files(source: Path, files: Sequence[Path], channels_last: bool) -> Iterator[_Photo]:
    exported = exported_keys(source)
    for path, key in zip(files, photo_keys(files), strict=True):

        def load(path: Path = path) -> dict[str, Any]:
            return {
                "grid_map": read_feature_file(path, channels_last),
                **source_facts(path),
            }

        own = path.stem if key == canonical_key(path.stem) else key
        name = str(path.relative_to(source))
        yield _Photo(str(path), exported.get(name, own), path, 1, load)


def _lines(tables: Sequence[Path], coco_ids: bool) -> Iterator[_Photo]:
    for path in tables:
        read = told = 0
        for line in read_tsv(path):
            read += line.size
            size, told = read // 1000 - told, read // 1000
            yield _Photo(
                f"{path}, line {line.number}", line.key(coco_ids), None, size, line.regions
            )


def read_feature_file(path: Path, channels_last: bool = False) -> np.ndarray:
    """The map (C, H, W) of one file, float32. Nothing is unpickled.

    Raises:
        UserError: the file cannot be read, or holds no such array.
    """
    if not path.is_file():  # a pipe would be waited for
        raise UserError("is not a file.")
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        elif path.suffix.lower() == ".npz":
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
    except UserError:
        raise
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError("cannot be read as plain numbers; files that hold code are not.") from error
    except Exception as error:
        # a damaged file, of which any part may be wrong, must not end the work on the others
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot be read: {reason}") from error
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3 or array.dtype.kind != "f" or not array.size:
        raise UserError(f"has shape {array.shape} of {array.dtype}, not C x H x W of floats.")
    if channels_last:
        array = array.transpose(2, 0, 1)
    elif array.shape[0] < array.shape[2] and array.shape[2] >= 256:
        raise UserError(f"has shape {array.shape}: if that is H x W x C, give --channels-last.")
    with np.errstate(over="ignore"):  # what float32 cannot hold, the store refuses
        return np.ascontiguousarray(array, dtype=np.float32)


def _check_count(map_CHW: np.ndarray, max_grids: int, writer: StoreWriter | None) -> None:
    most = max_grids if writer is None else writer.max_grids
    count = map_CHW.shape[1] * map_CHW.shape[2]
    if count > most:
        raise UserError(f"has {count} grids or regions; the store takes {most} (--max-grids).")
