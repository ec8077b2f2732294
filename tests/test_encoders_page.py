"""The example of docs/encoders.md runs as it stands."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridvlp.store import FeatureStore

pytest.importorskip("torchvision")
PAGE = Path(__file__).parents[1] / "docs" / "encoders.md"


def example() -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    names: dict[str, Any] = {"__name__": "encode"}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_the_example_writes_a_store_of_its_encoders_maps(tmp_path: Path) -> None:
    import torch
    from PIL import Image

    names = example()
    names["SHORTER"], names["LONGEST"] = 64, 128
    rng = np.random.default_rng(0)
    for name, size in (("a", (80, 64)), ("b", (300, 60)), ("c", (64, 64))):
        Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), np.uint8)).save(
            tmp_path / f"{name}.jpg"
        )
    torch.manual_seed(0)
    encoder = names["make_encoder"](weights=None)
    (tmp_path / "c.jpg").rename(tmp_path / "later")
    names["encode"](tmp_path, tmp_path / "s.zarr", encoder)
    (tmp_path / "later").rename(tmp_path / "c.jpg")
    names["encode"](tmp_path, tmp_path / "s.zarr", encoder)  # goes on
    store = FeatureStore(tmp_path / "s.zarr")
    assert store.keys() == ["a", "b", "c"]
    assert store.encoder["name"] == "torchvision resnet50"
    assert store.shape("a") == (2048, 2, 3)
    with torch.inference_mode():
        own = encoder(names["read_photo"](tmp_path / "a.jpg"))[0].numpy()
    np.testing.assert_array_equal(store.map("a"), own.astype(np.float16).astype(np.float32))
    with torch.inference_mode(), pytest.raises(SystemExit, match="other weights"):
        names["encode"](tmp_path, tmp_path / "s.zarr", names["make_encoder"](weights=None))
