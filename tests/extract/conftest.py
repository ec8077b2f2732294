"""A tiny Visual Genome: coloured squares and discs in the official files, with every oddity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 210)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test caches is seen by no other."""
    monkeypatch.setenv("GRIDVLP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same arithmetic on every machine; two threads on two busy cores wait for each other."""
    torch.set_num_threads(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def _write_visual_genome(folder: Path, photos: int = 24, seed: int = 0) -> dict[str, Any]:
    """Write a release of ``photos`` good photos; returns the three lists for tests to change."""
    rng = np.random.default_rng(seed)
    release: dict[str, Any] = {"image_data": [], "objects": [], "attributes": []}
    number = 0
    for i in range(photos):
        image_id = 1000 + i
        size = (128, 96) if i % 3 else (96, 128)
        picture = Image.new("RGB", size, (210, 210, 200))
        draw = ImageDraw.Draw(picture)
        things = []
        for half in (0, 1):
            side = int(rng.integers(24, 40))
            x, y = (half * size[0] // 2 + 4, 20) if size[0] > size[1] else (20, half * 64 + 8)
            colour = sorted(COLOURS)[int(rng.integers(3))]
            name = ("box", "ball")[int(rng.integers(2))]
            shape = draw.rectangle if name == "box" else draw.ellipse
            shape((x, y, x + side, y + side), fill=COLOURS[colour])
            number += 1
            box = {"object_id": number, "x": x, "y": y, "w": side, "h": side, "names": [name]}
            things.append((box, [colour, "plain"]))
        path = folder / ("VG_100K", "VG_100K_2")[i % 2] / f"{image_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=95)
        release["image_data"].append({"image_id": image_id, "width": size[0], "height": size[1]})
        release["objects"].append({"image_id": image_id, "objects": [dict(b) for b, _ in things]})
        release["attributes"].append(
            {"image_id": image_id, "attributes": [{**b, "attributes": a} for b, a in things]}
        )
    _save_release(folder, release)
    return release


def _save_release(folder: Path, release: dict[str, Any]) -> None:
    """Write the three annotation files."""
    for name, value in release.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


@pytest.fixture(scope="session")
def write_visual_genome() -> Callable[..., dict[str, Any]]:
    """Writes a release of so many good photos into a folder; returns its lists, to be changed."""
    return _write_visual_genome


@pytest.fixture(scope="session")
def save_release() -> Callable[[Path, dict[str, Any]], None]:
    """Writes changed lists over a release."""
    return _save_release


@pytest.fixture(scope="session")
def visual_genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny release without oddities."""
    folder = tmp_path_factory.mktemp("vg")
    _write_visual_genome(folder)
    return folder


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Twelve photos of noise in three sizes, in two subfolders, named out of order."""
    rng = np.random.default_rng(7)
    folder = tmp_path / "photos"
    for i in range(12):
        height, width = [(96, 128), (128, 96), (100, 100)][i * 7 % 3]
        path = folder / "ab"[i % 2] / f"photo{(i * 5) % 12:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return folder
