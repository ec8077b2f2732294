"""A store is proven right, or wrong, by its photos, years later."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from gridvlp.cli import cli
from gridvlp.errors import UserError
from gridvlp.extract.audit import audit
from gridvlp.extract.encoder import FrozenEncoder
from gridvlp.extract.extraction import extract
from gridvlp.extract.options import ExtractOptions
from gridvlp.store import FeatureStore, StoreWriter


def quiet(_: str) -> None:
    """Takes the place of print."""


@pytest.fixture
def options(photo_folder: Path, tmp_path: Path) -> ExtractOptions:
    return ExtractOptions(
        (photo_folder,), tmp_path / "store.zarr", "random", width=0.125, size="64x128"
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_a_store_is_what_its_photos_give(options: ExtractOptions, dtype: str) -> None:
    extract(replace(options, dtype=dtype), quiet)
    outcome = audit(options.out, options.images, weights="random", maps=12, say=quiet)
    assert len(outcome.errors) == 12
    assert outcome.wrong == {}
    assert max(outcome.errors.values()) < outcome.tolerance


def test_photos_that_were_moved_are_found(options: ExtractOptions, tmp_path: Path) -> None:
    extract(options, quiet)
    shutil.copytree(options.images[0], tmp_path / "elsewhere" / "photos")
    shutil.rmtree(options.images[0])
    outcome = audit(options.out, (tmp_path / "elsewhere",), weights="random", say=quiet)
    assert len(outcome.errors) == 8
    assert not outcome.wrong
    shutil.rmtree(tmp_path / "elsewhere")
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"None of 12 photos .* name their folders"):
        audit(options.out, (tmp_path,), weights="random", say=quiet)


def test_photos_of_one_name_in_folders_of_one_name_are_told_apart(
    options: ExtractOptions, tmp_path: Path
) -> None:
    one, two = sorted(options.images[0].rglob("*.png"))[:2]
    for day, photo in (("monday", one), ("friday", two)):
        (tmp_path / day / "cam").mkdir(parents=True)
        shutil.copy(photo, tmp_path / day / "cam" / "1.png")
    days = (tmp_path / "monday", tmp_path / "friday")
    extract(replace(options, images=days), quiet)
    outcome = audit(options.out, days, weights="random", say=quiet)
    assert sorted(outcome.errors) == ["friday/cam/1", "monday/cam/1"]
    assert outcome.wrong == {}
    with pytest.raises(UserError, match="None of 2"):  # rather than Monday's by Friday's photo
        audit(options.out, days[1:], weights="random", say=quiet)


def test_a_wrong_map_is_named(options: ExtractOptions, tmp_path: Path) -> None:
    """Two photos that were exchanged after they were extracted; and the command's exit code."""
    extract(options, quiet)
    one, two = sorted(options.images[0].rglob("*.png"))[:2]
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    command = ["audit", str(options.out), "--images", str(options.images[0])]
    result = CliRunner().invoke(cli, [*command, "--weights", "random", "--maps", "12"])
    assert isinstance(result.exception, UserError)
    assert "2 of 12 maps" in str(result.exception)
    wrong = [line.split()[0] for line in result.output.splitlines() if line.endswith("WRONG")]
    assert sorted(wrong) == sorted([one.stem, two.stem])


def test_other_weights_are_refused(options: ExtractOptions) -> None:
    extract(options, quiet)
    from gridvlp.extract.backbone import new_architecture
    from gridvlp.extract.encoder import _random_weights, save_encoder

    folder = options.out.parent / "encoder"
    folder.mkdir()
    architecture = new_architecture("r50", 0.125)
    save_encoder(
        folder, "r", architecture, _random_weights(architecture, False).state, "64x128", {}
    )
    with pytest.raises(UserError, match="weights_sha256"):
        audit(options.out, options.images, weights=str(folder), say=quiet)


def test_foreign_features_say_that_they_cannot_be_made_again(tmp_path: Path) -> None:
    with StoreWriter.create(tmp_path / "s.zarr", channels=4, encoder={"name": "clip"}) as writer:
        writer.add("a", np.ones((4, 2, 2), np.float32))
    with pytest.raises(UserError, match="cannot be made again"):
        audit(tmp_path / "s.zarr", (tmp_path,), weights="random", say=quiet)


def test_regions_are_compared_each_with_its_own(options: ExtractOptions) -> None:
    extract(replace(options, regions=10, proposals=40), quiet)
    assert FeatureStore(options.out).kind == "regions"
    outcome = audit(options.out, options.images, weights="random", maps=4, say=quiet)
    assert len(outcome.errors) == 4
    assert outcome.wrong == {}


@pytest.mark.parametrize(("factor", "wrong"), [(1.0, 0), (1.01, 0), (1.08, 12)])
def test_a_difference_beyond_rounding_is_wrong(
    options: ExtractOptions, monkeypatch: pytest.MonkeyPatch, factor: float, wrong: int
) -> None:
    from gridvlp.extract import audit as module

    class Louder(FrozenEncoder):
        def forward(self, pixels_BHW3: torch.Tensor) -> torch.Tensor:
            return super().forward(pixels_BHW3) * factor

    extract(replace(options, precision="bfloat16"), quiet)
    monkeypatch.setattr(module, "FrozenEncoder", Louder)
    outcome = audit(options.out, options.images, weights="random", maps=12, say=quiet)
    assert (len(outcome.errors), len(outcome.wrong)) == (12, wrong)
