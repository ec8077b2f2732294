"""Which versions of libraries made the maps of a store: facts of its origin, not of its recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from gridvlp.atomic import make_folders, write_bytes
from gridvlp.store.errors import StoreError
from gridvlp.store.files import LocalFiles, RemoteFiles
from gridvlp.store.layout import checked_json, checked_lines
from gridvlp.store.recipe import recipe_digest

FOLDER = "versions"
_FILE = re.compile(r"[0-9a-f]{12}\.json")


def record_versions(store: Path, versions: Mapping[str, str]) -> list[dict[str, str]]:
    """Keep the versions of this writer's libraries; returns those of others that differ.

    A file is named by its content, so that writers need not wait for each other.

    Raises:
        StoreError: a file of versions is damaged, or cannot be written.
    """
    own = {str(name): str(version) for name, version in versions.items()}
    recorded = read_versions(LocalFiles(store))
    if own not in recorded:
        name = f"{recipe_digest(own)[:12]}.json"
        try:
            make_folders(store / FOLDER)
            content = checked_lines(dict(sorted(own.items())))
            write_bytes(store / FOLDER / name, content)
        except OSError as error:
            raise StoreError(f"{store} cannot be written: {error}.") from error
    return [others for others in recorded if others != own]


def read_versions(files: LocalFiles | RemoteFiles) -> list[dict[str, str]]:
    """Every set of versions that wrote to a store; none over a URL, whose files are not listed.

    Raises:
        StoreError: a file of them is damaged, or cannot be read.
    """
    try:
        names = sorted(name for name in files.names(FOLDER) or [] if _FILE.fullmatch(name))
        contents = [files.read(f"{FOLDER}/{name}") for name in names]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{files.place}/{FOLDER} cannot be read: {error}.") from error
    recorded = []
    for name, content in zip(names, contents, strict=True):
        full = f"{files.place}/{FOLDER}/{name}"
        versions = checked_json(full, content)
        if not (isinstance(versions, dict) and set(map(type, versions.values())) <= {str}):
            raise StoreError(f"{full} is damaged: it is not an object of texts.")
        recorded.append(versions)
    return recorded


def damaged_versions(files: LocalFiles | RemoteFiles) -> dict[str, str]:
    """What is wrong with a store's files of versions."""
    try:
        read_versions(files)
    except StoreError as error:
        return {f"{files.place}/{FOLDER}": str(error)}
    return {}
