"""The versions of the libraries that made a store's maps are kept beside its recipe."""

from pathlib import Path

import pytest

from gridvlp.store import FeatureStore, StoreError, StoreWriter
from gridvlp.store.layout import checked_lines
from gridvlp.store.summary import summarize
from gridvlp.store.verification import verify
from tests.store.test_store import C, numbered, write


def test_versions_are_kept_beside_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first, second = {"torch": "2.8", "pillow": "11"}, {"torch": "2.9", "pillow": "11"}
    with StoreWriter.create(path, channels=C, versions=first) as writer:
        writer.add("a", numbered(2, 2))
        assert writer.record_versions(first) == []
    digest = FeatureStore(path).recipe_digest
    assert FeatureStore(path).versions == [first]
    with StoreWriter.create(path, channels=C, exist_ok=True) as writer:
        assert writer.record_versions(dict(reversed(first.items()))) == []
        assert writer.record_versions(second) == [first]
        assert writer.record_versions(second) == [first]
        assert writer.recipe == FeatureStore(path).recipe
    store = FeatureStore(path)
    assert sorted(store.versions, key=str) == sorted([first, second], key=str)
    assert store.recipe_digest == digest
    assert "made with" in "\n".join(summarize(store).lines())
    assert len(list((path / "versions").iterdir())) == 2


def test_versions_that_are_damaged_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s"
    StoreWriter.create(path, channels=C, versions={"torch": "2.8"}).close()
    (file,) = (path / "versions").iterdir()
    for content in (b"", file.read_bytes()[:-5], checked_lines([1]), checked_lines({"a": 1})):
        file.write_bytes(content)
        store = FeatureStore(path)
        with pytest.raises(StoreError, match=rf"versions/{file.name} is damaged"):
            _ = store.versions
        assert file.name in verify(store)[f"{path}/versions"]


def test_a_store_without_versions_has_none(tmp_path: Path) -> None:
    assert write(tmp_path / "s", {}).versions == []
