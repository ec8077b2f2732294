"""What a store says of itself in its group's zarr.json, typed and in range."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gridvlp.store.errors import StoreError
from gridvlp.store.files import LocalFiles, RemoteFiles
from gridvlp.store.layout import FORMAT_VERSION, KINDS, check_seal, parse_json
from gridvlp.store.numbers import DTYPES
from gridvlp.store.recipe import recipe_digest, recipe_of

READ_VERSIONS = (4, FORMAT_VERSION)
RANGES = {
    "channels": (1, 1 << 20),
    "max_grids": (1, 1 << 20),
    "chunk_grids": (1, 1 << 16),
    "order_seed": (0, (1 << 64) - 1),
}
MAP_BYTES = 1 << 31  # of a map's float32 numbers and one chunk's
DEPTH = 32
# what a reader of an old store cannot know
UNBOUND = (
    "{place} has store format 4, whose index does not say which files belong to it: a shard or a "
    "file of facts of another store of the same shape would be read without an error. Extract "
    "again for a store of format 5."
)


@dataclass(frozen=True)
class StoreAttributes:
    """The attributes of a store; docs/store-format.md says what each means."""

    format_version: int
    kind: str
    dtype: str
    channels: int
    max_grids: int
    chunk_grids: int
    order_seed: int
    encoder: dict[str, Any]
    stored: dict[str, Any] = field(repr=False)  # as they stand in the file, but for the checksum

    @classmethod
    def from_json(cls, own: Mapping[str, Any]) -> StoreAttributes:
        """The attributes in ``attributes.gridvlp`` of a group.

        Raises:
            ValueError: one is missing, of another type or out of range; it says which.
        """
        for name, choices in (("kind", KINDS), ("dtype", DTYPES)):
            if own.get(name) not in choices:
                raise ValueError(f"{name} is {own.get(name)!r}, not {' or '.join(choices)}")
        for name, (least, most) in RANGES.items():
            value = own.get(name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"{name} is {value!r}, not a whole number from {least:,} to {most:,}"
                )
        map_bytes = 4 * own["channels"] * (own["max_grids"] + own["chunk_grids"])
        if map_bytes > MAP_BYTES:
            raise ValueError(
                f"{own['max_grids']:,} max_grids of {own['channels']:,} channels are "
                f"{map_bytes:,} bytes; a map has at most {MAP_BYTES:,}"
            )
        encoder = own.get("encoder")
        if not isinstance(encoder, dict):
            raise ValueError(f"encoder is {encoder!r}, not an object")
        if not _is_shallow(own):
            raise ValueError(f"it is nested more than {DEPTH} levels deep")
        names = ("format_version", "kind", "dtype", *RANGES, "encoder")
        return cls(**{name: own[name] for name in names}, stored=dict(own))

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that can change a number in the store (gridvlp.store.recipe)."""
        return recipe_of(self.stored)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the attributes, by which a shard's index names the store it belongs to."""
        return recipe_digest(self.stored)

    @property
    def is_bound(self) -> bool:
        """Whether the index says which files belong to it."""
        return self.format_version > 4

    def notes(self, place: object) -> list[str]:
        """What a store of an old format cannot promise."""
        return [] if self.is_bound else [UNBOUND.format(place=place)]


def read_attributes(files: LocalFiles | RemoteFiles) -> StoreAttributes:
    """The attributes of a store.

    Raises:
        StoreError: it is not a store, or of a version that this release does not know, or what it
            says of itself cannot be.
    """
    place = files.place
    try:
        document = parse_json(files.read("zarr.json"))
        own = document["attributes"]["gridvlp"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"There is no feature store at {place}: make it with `gridvlp extract --images ...`."
        ) from error
    except OSError as error:
        raise StoreError(f"{place} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError):
        own = None
    if not isinstance(own, dict) or "format_version" not in own:
        raise StoreError(f"{place} is not a gridvlp feature store.")
    version = own["format_version"]
    if type(version) is not int or version not in READ_VERSIONS:
        raise StoreError(
            f"{place} has store format {version!r}; this release reads formats "
            f"{' and '.join(map(str, READ_VERSIONS))}. Use the release that wrote it, or extract "
            "again."
        )
    try:
        check_seal(document, required=version > 4)
        for name, expected in (("zarr_format", 3), ("node_type", "group")):
            if document.get(name) != expected:
                raise ValueError(f"{name} is {document.get(name)!r}, not {expected!r}")
        return StoreAttributes.from_json(own)
    except ValueError as error:
        raise StoreError(f"{place}/zarr.json is damaged: {error}. Extract again.") from error


def checked_encoder(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """What made the maps, as it comes back from JSON.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return dict(json.loads(json.dumps(dict(encoder), allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"encoder is not JSON: {error}") from error


def _is_shallow(value: Any) -> bool:
    level: list[Any] = [value]
    for _ in range(DEPTH):
        level = [
            below
            for above in level
            if isinstance(above, dict | list)
            for below in (above.values() if isinstance(above, dict) else above)
        ]
        if not level:
            return True
    return not any(isinstance(value, dict | list) for value in level)
