"""Photos to a feature store, with a frozen encoder.

gridvlp extract --images coco/
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from gridvlp.data.photo_names import passed_over_text, stored_mismatch
from gridvlp.errors import UserError
from gridvlp.extract.backbone import STRIDE
from gridvlp.extract.encoder import FrozenEncoder, Weights, device_name, read_weights
from gridvlp.extract.encoding import Encoder, Size, encode_items
from gridvlp.extract.options import ExtractOptions, parse_size
from gridvlp.extract.photos import survey_photos
from gridvlp.extract.recipe import Recipe, RegionChoice, Resize
from gridvlp.extract.regions import NMS_THRESHOLD, RegionEncoder
from gridvlp.extract.selection import Item, select_items
from gridvlp.extract.statistics import FeatureStatistics
from gridvlp.run.environment import versions
from gridvlp.run.progress import track
from gridvlp.run.skip_list import SkipList, skipped_file
from gridvlp.store import FeatureStore, MapError, StoreWriter

SAVE_SECONDS = 300.0  # at most this much work is lost to a kill


@dataclass
class ExtractReport:
    """What became of the photos."""

    store: Path
    found: int = 0
    written: int = 0
    already_there: int = 0
    twins: int = 0  # photos of Visual Genome left out, because they are given as COCO's
    twins_used: int = 0  # of these, read after all, because COCO's file is of no use
    few: int = 0  # photos with fewer regions than asked for
    keys: tuple[str, ...] = ()  # in the order of the photos
    part: tuple[int, int] | None = None
    regions: int | None = None
    skip_list: SkipList = field(default_factory=SkipList)
    passed_over: Counter[str] = field(default_factory=Counter)  # files by suffix
    rules: Counter[str] = field(default_factory=Counter)  # photos by rule of decoding
    seconds: float = 0.0
    statistics: FeatureStatistics = field(default_factory=FeatureStatistics)

    @property
    def skipped(self) -> dict[str, str]:
        """The reason of each file that was left out, by its path."""
        return self.skip_list.reasons

    def lines(self) -> list[str]:
        """The report, to be printed."""
        shard = f" of shard {self.part[0]} of {self.part[1]}" if self.part else ""
        rate = self.written / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.found:,} photos{shard}: {self.written:,} written to {self.store} in "
            f"{self.seconds:.0f} s ({rate:.1f} photos/s), {self.already_there:,} there already, "
            f"{len(self.skipped):,} skipped."
        ]
        for reason, count in self.skip_list.kinds():
            lines.append(f"  skipped {count:,}: {reason}")
        if self.skipped:
            lines.append(f"  each is listed in {skipped_file(self.store, self.part)}")
        if self.passed_over:
            lines.append(passed_over_text(self.passed_over))
        if self.twins:
            lines.append(
                f"{self.twins:,} photos of Visual Genome left out: they are given as COCO's, and a "
                "map serves both."
            )
        if self.twins_used:
            lines.append(
                f"  {self.twins_used:,} of them read all the same: COCO's file is missing or "
                "damaged."
            )
        for rule, count in sorted(self.rules.items()):
            lines.append(f"{count:,} photos were decoded by the rule for {rule} (docs/data.md).")
        if self.few:
            lines.append(f"{self.few:,} photos have fewer than {self.regions} regions.")
        if self.statistics.figures:
            values = ", ".join(f"{n} {v:.3g}" for n, v in self.statistics.figures.items())
            lines.append(f"Features: {values}.")
        lines += [f"Warning: {warning}" for warning in self.statistics.warnings()]
        return lines


def extract(options: ExtractOptions, say: Callable[[str], object] = print) -> ExtractReport:
    """Encode photos into a store, new or begun; photos that are in it are passed over.

    Features are written in the order of the photos, whatever the batches. A run that was killed
    and started again on the same photos leaves the same maps, bit for bit, as one that was not.
    Which part of several a photo belongs to depends on its key alone, so that lists may grow
    between runs.

    Args:
        options: which photos, which encoder, where to.
        say: called with lines for the person at the keyboard.

    Raises:
        UserError: no photo, no encoder, a store of another recipe, or too many photos that are
            skipped.
    """
    files = survey_photos(options.images)
    detector = options.regions is not None
    weights = read_weights(options.weights, options.backbone, options.width, detector)
    size = options.size or weights.size
    encoder: Encoder
    if options.regions is None:
        encoder = FrozenEncoder(weights, options.precision)
    else:
        encoder = RegionEncoder(weights, options.regions, options.precision, options.proposals)
    recipe = recipe_of_encoder(weights, encoder, size)
    what = f"{size}, {recipe.precision}" + (f", {options.regions} regions" if detector else "")
    say(f"Encoder: {weights.name}, {encoder.channels} channels, {what}, on {encoder.device}.")
    for note in weights.notes:
        say(note)
    if options.weights == "random":
        say("Warning: this encoder is untrained; its maps are good for trials only.")
    skipped = SkipList(options.skip_limit, "are these photos, and the right weights?")
    report = ExtractReport(
        *(options.out,),
        part=options.part,
        regions=options.regions,
        skip_list=skipped,
        passed_over=files.passed_over,
    )
    start = time.monotonic()
    listed = skipped_file(options.out, options.part)
    try:
        with _open(options, encoder, recipe, say) as writer:
            try:
                items, report.twins = select_items(files.paths, options.part, skipped)
                report.keys = tuple(item.key for item in items)
                for name, reason in files.missing.items():
                    skipped.note(name, reason)
                report.found = len(items) + len(skipped)
                _fill(writer, items, encoder, parse_size(size), report, options)
            finally:
                report.seconds = time.monotonic() - start
                writer.flush()  # what is whole is kept, whatever ended the work
                skipped.write(listed)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{encoder.device} has too little memory: give a --batch-size below "
            f"{options.batch_size}; what is in {options.out} stays."
        ) from error
    if report.found and not report.written and not report.already_there:
        name, reason = next(iter(skipped.reasons.items()))
        if report.found == 1:
            raise UserError(f"{name} cannot be used: {reason}.")
        raise UserError(
            f"None of the {report.found} photos could be used: {reason}; each is listed in "
            f"{listed}."
        )
    return report


def recipe_of_encoder(weights: Weights, encoder: Encoder, size: str) -> Recipe:
    """Everything that can change a feature of an encoder's at a size."""
    regions = None
    if isinstance(encoder, RegionEncoder):
        regions = RegionChoice(encoder.count, encoder.proposals, NMS_THRESHOLD)
    return Recipe(
        weights.name,
        weights.sha256,
        weights.architecture,
        Resize(*parse_size(size)),
        str(encoder.dtype).removeprefix("torch."),
        regions=regions,
    )


def options_of_recipe(
    options: ExtractOptions, recipe: Mapping[str, Any], where: str
) -> ExtractOptions:
    """Options with which ``extract`` makes maps of a recipe; ``where`` names its maps.

    Raises:
        UserError: the store's features were made otherwise.
    """
    made = Recipe.from_encoder(recipe["encoder"], where)
    regions = made.regions
    return replace(
        options,
        size=made.resize.text,
        precision=made.precision,
        dtype=recipe["dtype"],
        backbone=made.architecture.backbone,  # of random weights
        width=made.architecture.width,
        regions=regions.most if regions else None,
        proposals=regions.proposals if regions else options.proposals,
    )


def _open(
    options: ExtractOptions, encoder: Encoder, recipe: Recipe, say: Callable[[str], object]
) -> StoreWriter:
    shorter, longest = recipe.resize.shorter, recipe.resize.longest
    software = {**versions(), "device": device_name(encoder.device)}
    try:
        writer = StoreWriter.create(
            options.out,
            channels=encoder.channels,
            max_grids=options.regions or -(-shorter // STRIDE) * -(-longest // STRIDE),
            dtype=options.dtype,
            encoder=recipe.as_encoder(),
            kind="grids" if options.regions is None else "regions",
            part=options.part,
            exist_ok=True,
        )
    except OSError as error:
        raise UserError(f"{options.out} cannot be made: {error.strerror or error}.") from error
    try:
        for line in version_changes(writer.record_versions(software), software):
            say(line)
    except BaseException:
        writer.close()
        raise
    return writer


def version_changes(earlier: list[dict[str, str]], now: dict[str, str]) -> list[str]:
    """A warning for each library whose version has changed since a store was written to."""
    changed = {
        name: sorted({before.get(name, "none") for before in earlier} - {version})
        for name, version in now.items()
    }
    return [
        f"Warning: the store has maps made with {name} {', '.join(others)}; this is {now[name]}. "
        "Pixels may differ by a rounding: `gridvlp audit` measures it."
        for name, others in changed.items()
        if others
    ]


def _fill(
    writer: StoreWriter,
    items: list[Item],
    encoder: Encoder,
    size: Size,
    report: ExtractReport,
    options: ExtractOptions,
) -> None:
    stored = _StoredSizes(writer, report)
    missing = sum(stored(item) is None for item in items)
    saved = time.monotonic()
    with track("extract", missing, "photos") as bar:
        half = options.dtype == "float16"
        outcomes = encode_items(
            items, encoder, size, options.batch_size, options.workers, half, stored
        )
        for outcome in outcomes:
            bar.advance()
            for path, reason in outcome.failures.items():
                report.skip_list.note(str(path), reason)
            encoded = outcome.encoded
            if encoded is None:
                path, reason = next(iter(outcome.failures.items()))
                report.skip_list.add(str(path), reason)
                continue
            try:
                writer.add(outcome.item.key, **encoded.features, **encoded.facts)
            except MapError as error:
                reason = str(error).replace(f" of {outcome.item.key}", "", 1)
                report.skip_list.add(encoded.facts["source"], reason)
                continue
            report.skip_list.take()
            report.statistics.add(encoded.statistics)
            report.rules.update(encoded.rules)
            report.few += encoded.features["grid_map"].shape[2] < (report.regions or 0)
            report.twins_used += bool(outcome.failures)
            report.written += 1
            if time.monotonic() - saved > SAVE_SECONDS:
                writer.flush()
                saved = time.monotonic()


class _StoredSizes:
    """The resized sizes of the items that the store has; those of another photo are skipped."""

    def __init__(self, writer: StoreWriter, report: ExtractReport) -> None:
        self.writer, self.report = writer, report
        self.store = FeatureStore(writer.path) if len(writer) else None
        self.sizes: dict[str, Size] = {}

    def __call__(self, item: Item) -> Size | None:
        key = self._stored_key(item)
        if self.store is None or key is None:
            return None
        if item.key not in self.sizes:
            record = self.store.record(key)
            mismatch = stored_mismatch(key, item.paths, record)
            if mismatch:
                self.report.skip_list.note(str(item.paths[0]), mismatch)
            else:
                self.report.already_there += 1
            height, width = record.get("resized_size", (1, 1))
            self.sizes[item.key] = int(height), int(width)
        return self.sizes[item.key]

    def _stored_key(self, item: Item) -> str | None:
        """The key under which the store has an item: its own, or the plain stem of an earlier run,
        in which no photo of another folder had that name.
        """
        if item.key in self.writer:
            return item.key
        stem = item.key.rpartition("/")[2]
        if self.store is None or stem == item.key or stem not in self.writer:
            return None
        record = self.store.record(stem)
        tail = Path(str(record.get("source"))).parts[-2:]
        same = any(path.parts[-2:] == tail for path in item.paths)
        return stem if same and stored_mismatch(stem, item.paths, record) is None else None
