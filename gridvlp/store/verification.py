"""Reads every map of a store once, to tell those whose bytes are no longer what was written."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from gridvlp.store.errors import StoreError, StoreUnreachable
from gridvlp.store.reader import FeatureStore

MAPS_AT_ONCE = 256


def verify(
    store: FeatureStore,
    threads: int = 2,
    advance: Callable[[int], object] = lambda maps: None,
) -> dict[str, str]:
    """Read and check every map, its chunks and its facts, and the files of the index.

    Args:
        store: what to check.
        threads: reads that are under way at once.
        advance: told how many maps more are done.

    Returns:
        What is wrong with each damaged map, by key, and with each damaged file of the index, by
        its name. Empty when all are whole.

    Raises:
        StoreUnreachable: a URL cannot be read any more.
    """
    damaged = store.damaged_index_files()
    keys = store.keys()
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(keys), MAPS_AT_ONCE):
            part = keys[first : first + MAPS_AT_ONCE]
            for key, wrong in zip(
                part, pool.map(lambda k: _wrong_with(store, k), part), strict=True
            ):
                if wrong:
                    damaged[key] = wrong
            advance(len(part))
    return damaged


def _wrong_with(store: FeatureStore, key: str) -> str | None:
    try:
        store.check(key)
    except StoreUnreachable:
        raise
    except StoreError as error:
        return str(error)
    return None
