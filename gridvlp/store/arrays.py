"""The arrays of a store, and their Zarr metadata, which must be those of the store's attributes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.atomic import write_bytes
from gridvlp.store.attributes import StoreAttributes, read_attributes
from gridvlp.store.chunks import decode, encode
from gridvlp.store.errors import StoreError, StoreUnreachable
from gridvlp.store.files import LocalFiles, RemoteFiles
from gridvlp.store.layout import check_seal, parse_json, sealed
from gridvlp.store.numbers import KEPT_AS
from gridvlp.store.regions import UNKNOWN_CLASS, UNKNOWN_SCORE

BFLOAT16_NAN = 0x7FC0
MOST_CHUNKS = 1 << 20  # of a shard
MOST_ROWS = 1 << 53  # as many as a double counts


@dataclass(frozen=True)
class Array:
    """One array of a store; chunk n of any of them belongs to the same map."""

    name: str
    dtype: np.dtype  # little-endian
    row_shape: tuple[int, ...]
    fill: float  # where nothing was written
    chunk_rows: int

    def file(self, shard: int) -> str:
        """The file of a shard, by its name in the store."""
        return "/".join([self.name, "c", str(shard), *("0" for _ in self.row_shape)])

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk's numbers."""
        return self.chunk_rows * math.prod(self.row_shape) * self.dtype.itemsize

    def encode(self, rows: np.ndarray) -> list[bytes]:
        """The chunks that hold some rows, the last one filled up with zeros."""
        count = -(-len(rows) // self.chunk_rows)
        filled = np.zeros((count, self.chunk_rows, *self.row_shape), dtype=self.dtype)
        filled.reshape(-1, *self.row_shape)[: len(rows)] = rows
        return [encode(chunk) for chunk in filled]

    def decode(
        self, chunks: Sequence[bytes | memoryview], checks: Sequence[bytes] | None
    ) -> np.ndarray:
        """The rows of some chunks.

        Args:
            chunks: as they are stored.
            checks: the checksums that their shard has of them, where it has any.

        Raises:
            ValueError: the bytes are not those of such chunks.
        """
        rows = np.empty((len(chunks), self.chunk_rows, *self.row_shape), dtype=self.dtype)
        for place, (chunk, part) in enumerate(zip(chunks, rows, strict=True)):
            decode(chunk, part, None if checks is None else checks[place])
        return rows.reshape(-1, *self.row_shape)


@dataclass(frozen=True)
class StoreLayout:
    """What a store says of itself and of its arrays."""

    attributes: StoreAttributes
    arrays: dict[str, Array]
    rows: int  # of the array grids
    shard_rows: int  # of each of its shards

    @property
    def shards(self) -> int:
        """Shards for which the arrays are long enough."""
        return -(-self.rows // self.shard_rows)

    @property
    def shard_chunks(self) -> int:
        """Chunks of a shard, in any of the arrays."""
        return self.shard_rows // self.attributes.chunk_grids


def store_arrays(about: StoreAttributes) -> dict[str, Array]:
    """The arrays that a store has, by its attributes."""
    channels, rows, kept_as = about.channels, about.chunk_grids, KEPT_AS[about.dtype]
    missing = {"<u2": BFLOAT16_NAN, "u1": 0}.get(kept_as, math.nan)
    arrays = [Array("grids", np.dtype(kept_as), (channels,), missing, rows)]
    if about.dtype == "int8":  # one row for each chunk of grids; a map's is that of its first
        arrays.append(Array("scales", np.dtype("<f2"), (2, channels), math.nan, 1))
    if about.kind == "regions":
        arrays += [
            Array("boxes", np.dtype("<f4"), (4,), math.nan, rows),
            Array("classes", np.dtype("<i4"), (), UNKNOWN_CLASS, rows),
            Array("scores", np.dtype("<f4"), (), UNKNOWN_SCORE, rows),
        ]
    return {array.name: array for array in arrays}


def read_layout(files: LocalFiles | RemoteFiles) -> StoreLayout:
    """The attributes of a store and the sizes of its arrays.

    Raises:
        StoreError: it is not a store; or the attributes, or an array's metadata, are damaged or
            disagree.
    """
    about = read_attributes(files)
    arrays = store_arrays(about)
    names = [f"{name}/zarr.json" for name in arrays]
    rows = shard_rows = 0
    try:
        contents = files.read_some(names)
    except OSError as error:
        raise StoreUnreachable(f"{files.place} cannot be read: {error}.") from error
    for array, name, content in zip(arrays.values(), names, contents, strict=True):
        try:
            if content is None:
                raise ValueError("it is missing")
            document = parse_json(content)
            check_seal(document, required=about.is_bound)
            array_rows, array_shard_rows = _check_metadata(array, document)
            if array.name == "grids":
                rows, shard_rows = array_rows, array_shard_rows
            chunks, wanted = array_shard_rows // array.chunk_rows, shard_rows // about.chunk_grids
            if chunks != wanted:
                raise ValueError(f"its shards have {chunks} chunks, those of grids {wanted}")
        except ValueError as error:
            raise StoreError(f"{files.place}/{name} is damaged: {error}. Extract again.") from error
    return StoreLayout(about, arrays, rows, shard_rows)


def grow(store: Path, arrays: Iterable[Array], chunks: int) -> None:
    """Give the arrays at least this many chunks.

    Raises:
        OSError: it cannot be written.
    """
    for array in arrays:
        file = store / array.name / "zarr.json"
        document = json.loads(file.read_bytes())
        rows = chunks * array.chunk_rows
        if document["shape"][0] < rows:
            document["shape"][0] = rows
            write_bytes(file, sealed(document))


def _check_metadata(array: Array, document: Any) -> tuple[int, int]:
    """Rows of an array, and of each of its shards, from its zarr.json.

    Fill values and dimension names are for others: where no chunk is, this reader reads nothing.

    Raises:
        ValueError: a field is not as the store's attributes want it; it says both values.
    """
    sharding = "codecs.0.configuration"
    blosc = f"{sharding}.codecs.1.configuration"
    rows = _whole_number(document, "shape.0", 0, MOST_ROWS)
    shard_rows = _whole_number(
        document, "chunk_grid.configuration.chunk_shape.0", 1, MOST_CHUNKS * array.chunk_rows
    )
    if shard_rows % array.chunk_rows:
        raise ValueError(f"its shards have {shard_rows} rows, its chunks {array.chunk_rows}")
    wanted = {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": array.dtype.name,
        "shape": [rows, *array.row_shape],
        "chunk_grid.name": "regular",
        "chunk_grid.configuration.chunk_shape": [shard_rows, *array.row_shape],
        "chunk_key_encoding.name": "default",
        "codecs.0.name": "sharding_indexed",
        "codecs.1": None,
        f"{sharding}.chunk_shape": [array.chunk_rows, *array.row_shape],
        f"{sharding}.codecs.0.name": "bytes",
        f"{sharding}.codecs.1.name": "blosc",
        f"{sharding}.codecs.2": None,
        f"{blosc}.cname": "zstd",
        f"{blosc}.typesize": array.dtype.itemsize,
        f"{sharding}.index_codecs.0.name": "bytes",
        f"{sharding}.index_codecs.0.configuration.endian": "little",
        f"{sharding}.index_codecs.1.name": "crc32c",
        f"{sharding}.index_codecs.2": None,
        "storage_transformers.0": None,
    }
    if array.dtype.itemsize > 1:
        wanted |= {
            f"{sharding}.codecs.0.configuration.endian": "little",
            f"{blosc}.shuffle": "shuffle",
        }
    defaults = {
        "chunk_key_encoding.configuration.separator": "/",
        f"{sharding}.index_location": "end",
    }
    for field, value in {**wanted, **defaults}.items():
        found = _field(document, field)
        if found is None and field in defaults:
            continue
        if repr(found) != repr(value):  # which keeps 1, 1.0 and True apart
            raise ValueError(f"{field} is {found!r}, not {value!r}")
    return rows, shard_rows


def _whole_number(document: Any, field: str, least: int, most: int) -> int:
    found = _field(document, field)
    if type(found) is not int or not least <= found <= most:
        raise ValueError(f"{field} is {found!r}, not a whole number from {least:,} to {most:,}")
    return found


def _field(document: Any, field: str) -> Any:
    """What lies under a dotted name; None where nothing does."""
    for name in field.split("."):
        if isinstance(document, dict):
            document = document.get(name)
        elif isinstance(document, list) and name.isdigit() and int(name) < len(document):
            document = document[int(name)]
        else:
            return None
    return document
