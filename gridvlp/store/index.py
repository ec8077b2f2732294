"""The files of a store's index: one for each shard, and all of them packed in one.

A shard counts from the moment that index/NNNNNN.jsonl names its maps and the files that belong to
it. Because a large store has tens of thousands of these files, a writer packs them, when it ends,
into index.bin. The packed file is only a shorter way to the same columns: shards that it lacks are
read from their own files, and without it all are.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gridvlp.store.arrays import MOST_ROWS, StoreLayout, read_layout
from gridvlp.store.errors import StoreError, StoreRefused, StoreUnreachable
from gridvlp.store.files import LocalFiles, RemoteFiles
from gridvlp.store.layout import DIGEST_BYTES, canonical_key, checked_json
from gridvlp.store.map_index import (
    IndexFault,
    MapIndex,
    ShardBinding,
    check_index,
    index_columns,
    joined,
    key_hash,
    selected,
)
from gridvlp.store.packed_index import PACKED, read_packed, write_packed

COLUMNS = ("key", "start", "height", "width")
MOST_REQUESTS = 1 << 20  # files of the index that are looked for over a URL
_SHARD_FILE = re.compile(r"(\d{6}|[1-9]\d{6,})\.jsonl")
_HEX_DIGEST = re.compile(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}")


def read_index(
    files: LocalFiles | RemoteFiles, layout: StoreLayout, only: np.ndarray | None = None
) -> MapIndex:
    """The index of a store: of the shards that count, or of some of them.

    Args:
        files: the store's.
        layout: of the store.
        only: leave out all shards but these.

    Raises:
        StoreError: an index file is damaged, or says what cannot be.
    """
    packed = _packed_or_none(files, layout)  # before the names: a writer may add to both
    numbers = listed_shards(files, layout)
    is_listed = isinstance(files, LocalFiles)
    if packed is not None and is_listed and not np.isin(packed.shards, numbers).all():
        packed = None  # the files of shards decide which of them count
    have = set() if packed is None else set(packed.shards.tolist())
    missing = sorted(set(numbers) - have)
    if only is not None:
        missing = sorted(set(missing) & set(only.tolist()))
    if packed is not None and not missing:
        index = packed
    else:
        index = _read_shards(files, layout, missing, packed is not None)
        if packed is not None:
            index = joined(packed, index) if len(index.shards) else packed
    if only is None:
        return index
    return selected(index, only[np.isin(only, index.shards)], layout.shard_rows)


def shard_file(folder: str, shard: int) -> str:
    """The file of a shard in index/ or facts/."""
    return f"{folder}/{shard:06}.jsonl"


def index_entry(
    columns: dict[str, list[Any]], binding: ShardBinding, layout: StoreLayout
) -> dict[str, Any]:
    """What an index file says of its shard."""
    return {
        **columns,
        "store": layout.attributes.digest,
        "facts": binding.facts.hex(),
        "arrays": {
            name: {"bytes": size, "tail": tail.hex()}
            for name, (size, tail) in binding.arrays.items()
        },
    }


def damaged_files(files: LocalFiles | RemoteFiles, layout: StoreLayout) -> dict[str, str]:
    """What is wrong with index files, by their names; they may be damaged while the store reads.

    Raises:
        StoreUnreachable: a URL cannot be read now.
    """
    damaged: dict[str, str] = {}
    packed, name = None, f"{files.place}/{PACKED}"
    try:
        packed = read_packed(files, layout)
    except (FileNotFoundError, StoreRefused):
        pass
    except (OSError, ValueError) as error:
        damaged[name] = f"{name} is damaged: {error}."
    listed = listed_shards(files, layout)
    have = [] if packed is None else packed.shards.tolist()
    for number in sorted({*listed, *have}):
        full = f"{files.place}/{shard_file('index', number)}"
        try:
            (content,) = files.read_some([shard_file("index", number)], some_read=True)
            if content is None:
                if number in have:
                    damaged[full] = f"{full} is missing."
                continue
            entry = _entry(full, content, layout, number)
            alone = _columns_of([number], [entry], layout)
            check_index(alone, layout)
            if (
                packed is not None
                and number in have
                and not _is_same(packed, alone, number, layout)
            ):
                damaged[name] = f"{name} is damaged: it and {full} differ."
        except StoreUnreachable:
            raise
        except StoreError as error:
            damaged[full] = str(error)
        except (OSError, ValueError) as error:
            damaged[full] = f"{full} is damaged: {error}."
    return damaged


def drop_stale_packed(folder: Path) -> None:
    """Delete a packed index of shards that no longer count, before their numbers are used again."""
    files = LocalFiles(folder)
    packed = _packed_or_none(files, read_layout(files))
    if packed is not None:
        names = [folder / shard_file("index", number) for number in packed.shards.tolist()]
        if not all(name.exists() for name in names):
            (folder / PACKED).unlink(missing_ok=True)


def pack_index(folder: Path) -> MapIndex:
    """Write a store's packed index if shards have come since the last one; returns the index.

    Raises:
        OSError: it cannot be written.
        StoreError: an index file is damaged.
    """
    files = LocalFiles(folder)
    layout = read_layout(files)
    index, packed = read_index(files, layout), _packed_or_none(files, layout)
    if packed is None or not np.array_equal(packed.shards, index.shards):
        write_packed(folder, index, layout)
    return index


def _packed_or_none(files: LocalFiles | RemoteFiles, layout: StoreLayout) -> MapIndex | None:
    try:
        return read_packed(files, layout)
    except (FileNotFoundError, StoreRefused):
        return None
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{files.place}/{PACKED} is damaged ({error}); each shard's own index is read in its "
            "place, which takes longer. The next writer makes it again.",
            stacklevel=4,
        )
        return None


def listed_shards(files: LocalFiles | RemoteFiles, layout: StoreLayout) -> list[int]:
    """The shards that have an index file; over a URL, where nothing is listed, all that may."""
    try:
        names = files.names("index")
    except OSError as error:
        raise StoreError(f"{files.place} lacks its index: {error}. Extract again.") from error
    if names is None:
        if layout.shards > MOST_REQUESTS:
            raise StoreError(
                f"{files.place}/grids/zarr.json is damaged: it has {layout.shards:,} shards."
            )
        return list(range(layout.shards))
    numbers = [int(name[:-6]) for name in names if _SHARD_FILE.fullmatch(name)]
    highest = max(numbers, default=0)
    if highest >= MOST_ROWS // layout.shard_rows:
        raise StoreError(f"{files.place}/{shard_file('index', highest)}: no shard can be so high.")
    return numbers


def _read_shards(
    files: LocalFiles | RemoteFiles, layout: StoreLayout, numbers: Sequence[int], some_read: bool
) -> MapIndex:
    """The index of some shards from their own files; over a URL, of those that have any."""
    names = [shard_file("index", number) for number in numbers]
    try:
        contents = files.read_some(names, some_read)
    except OSError as error:
        raise StoreError(f"{files.place} is damaged: {error}. Extract again.") from error
    present, entries = [], []
    for number, name, content in zip(numbers, names, contents, strict=True):
        if content is not None:
            present.append(number)
            entries.append(_entry(f"{files.place}/{name}", content, layout, number))
    index = _columns_of(present, entries, layout)
    try:
        check_index(index, layout)
    except IndexFault as error:
        where = "index"
        if error.place is not None:
            where = shard_file("index", int(index.starts[error.place]) // layout.shard_rows)
        raise StoreError(f"{files.place}/{where} is damaged: {error}. Extract again.") from error
    return index


def _columns_of(
    numbers: Sequence[int], entries: Sequence[dict[str, Any]], layout: StoreLayout
) -> MapIndex:
    keys, starts, heights, widths = (
        [value for entry in entries for value in entry[column]] for column in COLUMNS
    )
    bindings = {n: entry["binding"] for n, entry in zip(numbers, entries, strict=True)}
    return index_columns(bindings, keys, starts, heights, widths)


def _entry(name: str, content: bytes, layout: StoreLayout, number: int) -> dict[str, Any]:
    """The columns of an index file, of the types and ranges that ``check_index`` needs.

    With them its ShardBinding, packed: empty in format 4.

    Raises:
        StoreError: it is damaged, or belongs to another store or shard.
    """
    entry = checked_json(name, content)
    try:
        if not isinstance(entry, dict):
            raise ValueError("it is not an object")
        columns: list[Any] = [entry.get(column) for column in COLUMNS]
        if not all(isinstance(column, list) for column in columns):
            raise ValueError(f"{', '.join(COLUMNS)} are not arrays")
        keys, starts, heights, widths = columns
        if len({len(column) for column in columns}) > 1:
            raise ValueError("its columns have different lengths")
        if not (set(map(type, keys)) <= {str} and all(keys)):
            raise ValueError("a key is not text, or empty")
        rows, first = layout.shard_rows, number * layout.shard_rows
        most = layout.attributes.max_grids
        for column, values, low, high in (
            ("start", starts, first, first + rows - 1),
            ("height", heights, 1, most),
            ("width", widths, 1, most),
        ):
            if not set(map(type, values)) <= {int}:
                raise ValueError(f"a {column} is not a whole number")
            if values and not low <= min(values) <= max(values) <= high:
                raise ValueError(f"a {column} is not from {low} to {high}")
        if layout.attributes.is_bound and entry.get("store") != layout.attributes.digest:
            raise ValueError("it belongs to a store of other attributes (zarr.json)")
        binding = _binding(entry, layout).pack() if layout.attributes.is_bound else b""
    except ValueError as error:
        raise StoreError(f"{name} is damaged: {error}. Extract again.") from error
    return {**dict(zip(COLUMNS, columns, strict=True)), "binding": binding}


def _binding(entry: dict[str, Any], layout: StoreLayout) -> ShardBinding:
    """The binding in an index file's object.

    Raises:
        ValueError: it has none.
    """
    arrays = {}
    for name in layout.arrays:
        try:
            size, tail = (entry["arrays"][name][field] for field in ("bytes", "tail"))
        except (KeyError, TypeError):
            size = tail = None
        if type(size) is not int or not 0 <= size <= MOST_ROWS:
            raise ValueError(f"arrays.{name}.bytes is {size!r}, not a whole number")
        arrays[name] = (size, _digest(f"arrays.{name}.tail", tail))
    return ShardBinding(_digest("facts", entry.get("facts")), arrays)


def _digest(name: str, value: Any) -> bytes:
    if not (isinstance(value, str) and _HEX_DIGEST.fullmatch(value)):
        raise ValueError(f"{name} is {value!r}, not {2 * DIGEST_BYTES} hex digits")
    return bytes.fromhex(value)


def _is_same(packed: MapIndex, alone: MapIndex, shard: int, layout: StoreLayout) -> bool:
    """Whether the packed index has, and finds, the same maps of a shard as its own file."""
    part = packed.places_in(shard, layout.shard_rows)
    keys = [key for key, _, _ in alone.maps()]
    return (
        packed.binding(shard) == alone.binding(shard)
        and all(
            np.array_equal(getattr(packed, name)[part], getattr(alone, name))
            for name in ("starts", "heights", "widths")
        )
        and keys == [packed.key(place) for place in range(part.start, part.stop)]
        and all(packed.find(key, key_hash(key)) is not None for key in map(canonical_key, keys))
    )
