"""A store to plain .npy or .npz files."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gridvlp.atomic import whole_file, write_text
from gridvlp.data.photo_names import file_name
from gridvlp.errors import UserError
from gridvlp.run.progress import track
from gridvlp.run.skip_list import SkipList
from gridvlp.store import DamagedMap, FeatureStore

KEYS = "keys.json"
# A name that this file system cannot have; other errors are the disk's
UNFIT_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


@dataclass
class ExportReport:
    """What became of the maps."""

    folder: Path
    written: int = 0
    already_there: int = 0
    renamed: dict[str, str] = field(default_factory=dict)  # file's name -> key
    skipped: SkipList = field(default_factory=SkipList)

    def lines(self) -> list[str]:
        """The report, to be printed."""
        lines = [
            f"{self.written:,} maps written to {self.folder}, {self.already_there:,} there already,"
            f" {len(self.skipped):,} skipped."
        ]
        lines += [f"  skipped {name}: {why}" for name, why in self.skipped.reasons.items()]
        if self.renamed:
            lines.append(
                f"{len(self.renamed):,} keys cannot be a file's name; {self.folder / KEYS} lists "
                "their files."
            )
        return lines


def export(store: FeatureStore, folder: Path, say: Callable[[str], object] = print) -> ExportReport:
    """Write every map as folder/KEY.npy (C, H, W); those that are there are kept.

    Of a store of regions, write folder/KEY.npz with features (N, C), boxes (N, 4) as fractions of
    the photo, and, where there are any, classes (N,) and scores (N,). Where a key cannot be a
    file's name it is encoded (see ``file_name``), and keys.json tells the key. Damaged maps are
    skipped.

    Raises:
        UserError: too many maps are damaged, or the disk refuses.
    """
    report = ExportReport(
        folder,
        skipped=SkipList(
            question="is the store whole?", advice="`gridvlp verify` names what is damaged."
        ),
    )
    suffix = ".npz" if store.kind == "regions" else ".npy"
    keys = store.keys()
    names = {key: file_name(key, suffix) for key in keys}
    report.renamed = {name: key for key, name in names.items() if name != key + suffix}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if report.renamed:
            keys_of_all = exported_keys(folder) | report.renamed  # of other stores, too
            write_text(folder / KEYS, json.dumps(keys_of_all, indent=1))
        with track("export", len(names), "maps") as bar:
            for key, name in names.items():
                bar.advance()
                _export(store, key, folder / name, report)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error
    for line in report.lines():
        say(line)
    return report


def exported_keys(folder: Path) -> dict[str, str]:
    """Keys by the names of their files, of the exports that could not name files by keys.

    Raises:
        UserError: keys.json is broken.
    """
    path = folder / KEYS
    if not path.is_file():
        return {}
    try:
        keys = json.loads(path.read_bytes())
        if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
            raise ValueError("it does not name a key for each file")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    return keys


def _export(store: FeatureStore, key: str, path: Path, report: ExportReport) -> None:
    try:
        if path.exists():
            report.already_there += 1
            return
        arrays = _arrays(store, key)
        with whole_file(path, sync=False) as temporary, temporary.open("wb") as file:
            if store.kind == "regions":
                np.savez(file, allow_pickle=False, **arrays)
            else:
                np.save(file, arrays["map"], allow_pickle=False)
    except DamagedMap as error:
        report.skipped.add(key, str(error))
        return
    except OSError as error:
        if error.errno not in UNFIT_NAME:
            raise
        report.skipped.add(key, f"the disk takes no file of the name {path.name}")
        return
    report.skipped.take()
    report.written += 1


def _arrays(store: FeatureStore, key: str) -> dict[str, np.ndarray]:
    if store.kind != "regions":
        return {"map": store.map(key, dtype=store.dtype)}
    regions = store.regions(key, dtype=store.dtype)
    arrays = {"features": regions.features_NC, "boxes": regions.boxes_N4}
    if regions.classes_N is not None:
        arrays["classes"] = regions.classes_N
    if regions.scores_N is not None:
        arrays["scores"] = regions.scores_N
    return arrays
