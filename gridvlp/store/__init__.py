"""The feature store: frozen maps on disk, and the contract between the two stages."""

from gridvlp.store.errors import (
    DamagedMap,
    DuplicateKey,
    MapError,
    StoreError,
    StoreUnreachable,
)
from gridvlp.store.layout import canonical_key
from gridvlp.store.reader import FeatureStore
from gridvlp.store.regions import Regions
from gridvlp.store.writer import StoreWriter

__all__ = [
    "DamagedMap",
    "DuplicateKey",
    "FeatureStore",
    "MapError",
    "Regions",
    "StoreError",
    "StoreUnreachable",
    "StoreWriter",
    "canonical_key",
]
