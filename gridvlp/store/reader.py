"""Reads stores: whole maps, or random grids at the cost of the chunks that hold them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from gridvlp.store.layout import (
    DamagedMap,
    StoreError,
    canonical_key,
    grid_order,
    read_attributes,
    read_records,
)

# One worker decodes in the calling thread: a pool of threads that was started before a fork would
# hang in the child, and readers are many already (measured: no slower for 100 grids or a map).
zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1})


class FeatureStore:
    """One store, or several read as one; maps are found under either spelling of a COCO name.

    Safe to share among threads. It may be pickled and survives fork: each process opens the
    arrays for itself.

    Raises:
        StoreError: no store, an unknown version, or stores of different encoders.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path]) -> None:
        listed = [paths] if isinstance(paths, str | Path) else list(paths)
        if not listed:
            raise StoreError("Give at least one feature store.")
        self.paths = [Path(path) for path in listed]
        self._about: list[dict[str, Any]] = []
        self._records: list[tuple[int, dict[str, Any]]] = []
        self._place: dict[str, int] = {}
        for number, path in enumerate(self.paths):
            self._about.append(read_attributes(path))
            for record in read_records(path):
                key = canonical_key(record["key"])
                if key not in self._place:
                    self._place[key] = len(self._records)
                    self._records.append((number, record))
        first = self._about[0]
        for path, about in zip(self.paths, self._about, strict=True):
            for name in ("name", "weights_sha256"):
                if about["encoder"].get(name) != first["encoder"].get(name):
                    raise StoreError(
                        f"{self.paths[0]} and {path} hold maps of different encoders "
                        f"({name}): they cannot be read as one."
                    )
            if about["channels"] != first["channels"]:
                raise StoreError(f"{self.paths[0]} and {path} differ in channels.")
        self.channels: int = first["channels"]
        self.encoder: dict[str, Any] = first["encoder"]
        self._arrays: tuple[int, list[Any]] | None = None

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and canonical_key(key) in self._place

    def keys(self) -> list[str]:
        """All keys, in the order in which they were written."""
        return [record["key"] for _, record in self._records]

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over what the stores say of themselves and over all keys and sizes."""
        digest = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode())
        for _, record in self._records:
            digest.update(
                f"{record['key']} {record['height']} {record['width']}\n".encode(
                    errors="surrogateescape"
                )
            )
        return digest.hexdigest()

    def record(self, key: str) -> dict[str, Any]:
        """The facts that were kept with a map."""
        return dict(self._find(key)[1].get("facts", {}))

    def shape(self, key: str) -> tuple[int, int, int]:
        """(C, H, W) of a map."""
        _, record = self._find(key)
        return self.channels, record["height"], record["width"]

    def map(self, key: str, dtype: Any = np.float32) -> np.ndarray:
        """The map (C, H, W).

        Raises:
            StoreError: there is no such map.
            DamagedMap: its bytes are not those that were written.
        """
        _, height, width = self.shape(key)
        return np.ascontiguousarray(self.grids(key, dtype).T).reshape(-1, height, width)

    def grids(self, key: str, dtype: Any = np.float32) -> np.ndarray:
        """All grids (H * W, C) in row-major order; errors as for ``map``."""
        number, record = self._find(key)
        count = record["height"] * record["width"]
        stored_GC = self._rows(number, record, 0, count)
        grids_GC = np.empty(stored_GC.shape, dtype=dtype)
        grids_GC[grid_order(count)] = stored_GC
        return grids_GC

    def sample(
        self,
        key: str,
        n: int = 100,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ) -> np.ndarray:
        """Random grids (min(n, H * W), C), each equally likely, without replacement.

        Takes ``n`` rows that follow each other in the stored pseudo-random order, from a random
        row on, so that only their chunks are read. Errors as for ``map``.
        """
        number, record = self._find(key)
        count = record["height"] * record["width"]
        first = int((rng or np.random.default_rng()).integers(count))
        if n >= count:
            return self._rows(number, record, 0, count).astype(dtype)
        last = min(first + n, count)
        parts = [self._rows(number, record, first, last)]
        if first + n > count:
            parts.append(self._rows(number, record, 0, first + n - count))
        return np.concatenate(parts).astype(dtype, copy=False)

    def _find(self, key: str) -> tuple[int, dict[str, Any]]:
        try:
            return self._records[self._place[canonical_key(key)]]
        except KeyError:
            paths = ", ".join(map(str, self.paths))
            raise StoreError(f"There is no map of {key} in {paths}.") from None

    def _rows(self, number: int, record: dict[str, Any], first: int, last: int) -> np.ndarray:
        start = record["start"]
        try:
            rows_GC = np.asarray(self._array(number)[start + first : start + last])
            # Zarr fills what is missing, and cuts what lies beyond the array, without a word.
            if len(rows_GC) != last - first or np.isnan(rows_GC[:, 0]).any():
                raise ValueError("a shard is missing")
            return rows_GC
        except Exception as error:  # the codecs raise exceptions of many kinds
            raise DamagedMap(
                f"The map of {record['key']} in {self.paths[number]} is damaged: {error}. "
                "Extract that photo again into a new store."
            ) from error

    def _array(self, number: int) -> Any:
        if self._arrays is None or self._arrays[0] != os.getpid():
            arrays = [zarr.open_group(path, mode="r")["grids"] for path in self.paths]
            self._arrays = (os.getpid(), arrays)
        return self._arrays[1][number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}
