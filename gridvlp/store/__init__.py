"""The feature store: frozen maps on disk, and the contract between the two stages."""

from gridvlp.store.layout import (
    DamagedMap,
    DuplicateKey,
    StoreError,
    StoreUnreachable,
    canonical_key,
)
from gridvlp.store.reader import FeatureStore
from gridvlp.store.regions import Regions
from gridvlp.store.writer import StoreWriter

__all__ = [
    "DamagedMap",
    "DuplicateKey",
    "FeatureStore",
    "Regions",
    "StoreError",
    "StoreUnreachable",
    "StoreWriter",
    "canonical_key",
]
