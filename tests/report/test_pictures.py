"""Pages and pictures show the pixels that the encoder saw."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gridvlp.extract.photos import read_photo
from gridvlp.report import pictures
from gridvlp.store import FeatureStore, StoreWriter


def photo(kind: str, path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind == "transparent":
        Image.fromarray(noise).save(path, format="PNG")
    elif kind == "16 bits":
        Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(path, format="PNG")
    elif kind == "float":
        Image.fromarray(noise[..., 0] / np.float32(255)).save(path, format="TIFF")
    elif kind == "turned":
        Image.fromarray(noise[..., :3]).save(path, format="JPEG", exif=exif)
    elif kind == "cut end":
        Image.fromarray(noise[..., :3]).save(path, format="JPEG")
        path.write_bytes(path.read_bytes()[:-2])
    return path


@pytest.mark.parametrize("kind", ["transparent", "16 bits", "float", "turned", "cut end"])
def test_what_is_shown_is_what_was_encoded(tmp_path: Path, kind: str) -> None:
    path = photo(kind, tmp_path / "a.jpg")
    shown = pictures.read_photo(str(path))
    assert shown is not None
    shorter = min(shown.shape[:2])
    assert np.array_equal(shown, read_photo(path, (shorter, 1000)).pixels_HW3)


def test_what_the_encoder_cannot_read_is_not_shown(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", format="EPS")
    for source in (None, 5, str(tmp_path / "gone.jpg"), str(tmp_path / "a.jpg"), str(tmp_path)):
        assert pictures.read_photo(source) is None


@pytest.mark.parametrize("kind", ["transparent", "gone"])
def test_a_picture_of_a_map_says_whether_its_photo_is_there(tmp_path: Path, kind: str) -> None:
    path = photo(kind, tmp_path / "a.png")
    with StoreWriter.create(tmp_path / "s", channels=8) as writer:
        writer.add("a", np.ones((8, 2, 3), np.float32), source=str(path))
    with_photo = pictures.draw_energy(FeatureStore(tmp_path / "s"), "a", tmp_path / "energy.png")
    assert with_photo == (kind == "transparent")
    assert (tmp_path / "energy.png").stat().st_size > 1000
