"""The fast encoder gives Detectron2's own features; published files load strictly."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from PIL import Image

from gridvlp.errors import UserError
from gridvlp.extract.backbone import (
    SHAPES,
    Architecture,
    architecture_of,
    load_strictly,
    new_architecture,
)
from gridvlp.extract.detector import build_detector
from gridvlp.extract.encoder import FrozenEncoder, Weights, read_weights, save_encoder
from gridvlp.extract.options import TrainExtractorOptions
from gridvlp.extract.photos import read_photo

HAS_BF16 = torch.cpu._is_avx512_bf16_supported()


def lively(architecture: Architecture, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights whose norms have random statistics, as those of a trained backbone have."""
    generator = torch.Generator().manual_seed(seed)
    state = architecture.build().state_dict()
    for key, value in state.items():
        noise = torch.rand(value.shape, generator=generator)
        if key.endswith("running_var"):
            value.copy_(0.5 + noise)
        elif key.endswith(("running_mean", "norm.bias")):
            value.copy_(0.2 * (noise - 0.5))
        elif key.endswith("norm.weight"):
            value.copy_((0.1 if "conv3" in key else 0.8) + 0.2 * noise)
        else:
            fan = value[0].numel()
            value.copy_((noise - 0.5) * (24 / fan) ** 0.5)
    return state


def detectron2_map(
    architecture: Architecture, state: dict[str, torch.Tensor], pixels_HW3: np.ndarray
) -> torch.Tensor:
    """C5 (C, H, W) by Detectron2's own model, with its own normalisation; one photo at a time."""
    cfg = architecture.config(dilation=1, norm="FrozenBN", freeze_at=2)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res5"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    model: Any = build_model(cfg).eval()
    missing, unexpected = model.backbone.load_state_dict(state, strict=False)
    assert not missing
    assert not unexpected
    ordered = pixels_HW3[:, :, ::-1] if architecture.channel_order == "BGR" else pixels_HW3
    tensor = torch.from_numpy(ordered.transpose(2, 0, 1).copy())
    with torch.no_grad():
        images = model.preprocess_image([{"image": tensor}])
        return model.backbone(images.tensor)["res5"][0]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("backbone", "width"), [("x50", 0.25), ("r50", 0.5), ("x50", 1.0)])
def test_float32_equals_detectron2(backbone: str, width: float) -> None:
    architecture = new_architecture(backbone, width)
    state = lively(architecture)
    pixels_HW3 = noise(100, 75)
    expected = detectron2_map(architecture, state, pixels_HW3)
    encoder = FrozenEncoder(Weights("w", architecture, state, ""), "float32")
    found = encoder(torch.from_numpy(pixels_HW3)[None])[0]
    assert found.shape == (2048 * width, 4, 3)  # ceil(100 / 32), ceil(75 / 32): no padding
    assert found.max() > 0.1
    assert (found - expected).norm() / expected.norm() < 1e-4
    assert ((found - expected).abs().max() / expected.abs().max()) < 1e-4


def test_rgb_models_see_rgb() -> None:
    architecture = replace(
        new_architecture("x50", 0.25),
        channel_order="RGB",
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
    )
    state = lively(architecture)
    expected = detectron2_map(architecture, state, noise(64, 64))
    found = FrozenEncoder(Weights("w", architecture, state, ""), "float32")(
        torch.from_numpy(noise(64, 64))[None]
    )[0]
    assert (found - expected).norm() / expected.norm() < 1e-4


@pytest.mark.skipif(not HAS_BF16, reason="the processor does not multiply in bfloat16")
def test_bfloat16_keeps_the_direction_of_every_grid() -> None:
    architecture = new_architecture("x50", 1.0)
    weights = Weights("w", architecture, lively(architecture), "")
    pixels = torch.from_numpy(noise(160, 224))[None]
    exact, fast = FrozenEncoder(weights, "float32"), FrozenEncoder(weights)
    assert fast.dtype == torch.bfloat16
    cosine = torch.cosine_similarity(exact(pixels), fast(pixels), dim=1)
    assert cosine.min() >= 0.999


@pytest.mark.skipif(not HAS_BF16, reason="the processor does not multiply in bfloat16")
def test_bfloat16_on_real_photos(shared_data: Path) -> None:
    architecture = new_architecture("x50", 0.5)
    weights = Weights("w", architecture, lively(architecture), "")
    exact, fast = FrozenEncoder(weights, "float32"), FrozenEncoder(weights)
    for path in sorted((shared_data / "coco" / "val2017").glob("*.jpg"))[:5]:
        pixels = torch.from_numpy(read_photo(path, (224, 373)).pixels_HW3.copy())[None]
        assert torch.cosine_similarity(exact(pixels), fast(pixels), dim=1).min() >= 0.999


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_batching_changes_nothing(precision: str) -> None:
    architecture = new_architecture("x50", 0.25)
    encoder = FrozenEncoder(Weights("w", architecture, lively(architecture), ""), precision)
    pixels_BHW3 = torch.from_numpy(np.stack([noise(70, 96, seed) for seed in range(5)]))
    together = encoder(pixels_BHW3)
    alone = torch.cat([encoder(pixels_BHW3[i : i + 1]) for i in range(5)])
    limit = 1e-5 if encoder.dtype == torch.float32 else 2e-2
    assert (together - alone).norm() / alone.norm() < limit


@pytest.mark.parametrize("backbone", list(SHAPES))
def test_architecture_is_told_from_shapes(backbone: str) -> None:
    for width in (0.25, 1.0) if backbone == "x50" else (0.25,):
        architecture = new_architecture(backbone, width)
        assert architecture_of(architecture.build().state_dict(), "w") == architecture


def test_published_sizes() -> None:
    """Parameters of the backbones as published: R-50 and the ResNeXts without their classifier."""
    for backbone, millions in (("r50", 23.5), ("x50", 23.0)):
        # norms are buffers here, as they are frozen
        count = sum(
            v.numel() for v in new_architecture(backbone, 1.0).build().state_dict().values()
        )
        assert count / 1e6 == pytest.approx(millions, abs=0.15)


@pytest.mark.parametrize("backbone", ["r50", "x101", "x152"])
def test_grid_feats_vqa_checkpoint_loads_by_its_own_names(tmp_path: Path, backbone: str) -> None:
    """The whole detector is in the published file; extraction needs its backbone, all of it."""
    architecture = new_architecture(backbone, 0.25)
    backbone_state = lively(architecture)
    published = {f"backbone.{key}": value for key, value in backbone_state.items()}
    published |= {
        "proposal_generator.rpn_head.conv.weight": torch.zeros(4, 4, 3, 3),
        "roi_heads.box_head.fc1.weight": torch.zeros(8, 4),
        "roi_heads.attribute_predictor.obj_embed.weight": torch.zeros(3, 2),
    }
    torch.save({"model": published, "iteration": 89999}, tmp_path / "X.pth")
    weights = read_weights(str(tmp_path / "X.pth"))
    assert weights.architecture == architecture
    assert weights.state.keys() == backbone_state.keys()
    assert weights.size == "600x1000"
    FrozenEncoder(weights, "float32")
    del published["backbone.res4.2.conv2.weight"]
    torch.save({"model": published}, tmp_path / "missing.pth")
    with pytest.raises(UserError, match=r"lacks res4\.2\.conv2\.weight"):
        FrozenEncoder(read_weights(str(tmp_path / "missing.pth")))


def test_norms_that_caffe2_multiplied_in() -> None:
    architecture = new_architecture("x50", 0.25)
    state = lively(architecture)
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.zero_()
        elif key.endswith("running_var"):
            value.fill_(1 - 1e-5)
    short = {key: value for key, value in state.items() if "running" not in key}
    maps = [
        FrozenEncoder(Weights("w", architecture, given, ""), "float32")(
            torch.from_numpy(noise(64, 64))[None]
        )
        for given in (state, short)
    ]
    assert torch.equal(*maps)


def test_misfits_are_named() -> None:
    architecture = new_architecture("x50", 0.25)
    good = architecture.build().state_dict()
    with pytest.raises(UserError, match=r"unknown fc\.weight"):
        load_strictly(architecture.build(), {**good, "fc.weight": torch.zeros(1)}, "w")
    with pytest.raises(UserError, match=r"misshapen stem\.conv1\.weight"):
        load_strictly(architecture.build(), {**good, "stem.conv1.weight": torch.zeros(1)}, "w")
    with pytest.raises(UserError, match="no ResNet backbone"):
        architecture_of({"encoder.weight": torch.zeros(3)}, "w")


@pytest.mark.slow
def test_torchvision_weights_convert(tmp_path: Path) -> None:
    """The same map as torchvision's own forward, on RGB pixels with its statistics."""
    torch.manual_seed(0)
    model = torchvision.models.resnext50_32x4d(weights=None).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.constant_(parameter, 0.2)
    torch.save(model.state_dict(), tmp_path / "resnext50.pth")
    pixels = torch.from_numpy(noise(96, 64))[None]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        for layer in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            x = getattr(model, layer)(x)
    weights = read_weights(str(tmp_path / "resnext50.pth"))
    assert weights.architecture.backbone == "x50"
    found = FrozenEncoder(weights, "float32")(pixels)
    assert (found - x).norm() / x.norm() < 1e-4


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(str(tmp_path / "trap.pth"))
    assert not (tmp_path / "ran").exists()


def test_damaged_and_absent_weights_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gridvlp train-extractor --visual-genome data/vg.*--weig"):
        read_weights(str(tmp_path / "absent"))
    (tmp_path / "text.pth").write_text("<html>404</html>")
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(str(tmp_path / "text.pth"))
    for number, held in enumerate(({"model": None}, {"model": torch.zeros(2)}, [1], {})):
        torch.save(held, tmp_path / f"{number}.pth")
        with pytest.raises(UserError, match="holds no weights"):
            read_weights(str(tmp_path / f"{number}.pth"))
    torch.save({1: torch.zeros(2)}, tmp_path / "numbered.pth")
    with pytest.raises(UserError, match="holds no ResNet"):
        read_weights(str(tmp_path / "numbered.pth"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="not finished"):
        read_weights(str(tmp_path / "run"))


def test_a_damaged_checkpoint_is_never_a_traceback(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = io.BytesIO()
    torch.save({"model": {"backbone.stem.conv1.weight": torch.zeros(4, 3, 7, 7)}}, whole)
    for _ in range(100):
        damaged = bytearray(whole.getvalue())
        for place in rng.integers(min(900, len(damaged)), size=4):
            damaged[place] = int(rng.integers(256))
        (tmp_path / "a.pth").write_bytes(damaged)
        with pytest.raises(UserError):  # whole, it would have no res2
            read_weights(str(tmp_path / "a.pth"))


def test_encoder_folder_round_trip(tmp_path: Path) -> None:
    architecture = new_architecture("x50", 0.25)
    state = lively(architecture)
    folder = tmp_path / "encoder"
    folder.mkdir()
    save_encoder(folder, "mine", architecture, state, "128x224", {"note": 1})
    for source in (tmp_path, folder):
        weights = read_weights(str(source))
        assert (weights.name, weights.architecture, weights.size) == (
            "mine",
            architecture,
            "128x224",
        )
        assert all(torch.equal(weights.state[key], state[key]) for key in state)
    about = json.loads((folder / "encoder.json").read_text())
    assert about["weights_sha256"] == weights.sha256
    about["architecture"]["width"] = 0.5
    (folder / "encoder.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="does not fit"):
        FrozenEncoder(read_weights(str(folder)))
    (folder / "encoder.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="not the file it was"):
        read_weights(str(folder))


def test_random_weights_are_the_same_every_time_and_sane() -> None:
    first, second = (read_weights("random", "x50", 0.25) for _ in range(2))
    assert first.sha256 == second.sha256
    features = FrozenEncoder(first, "float32")(torch.from_numpy(noise(96, 96))[None])
    assert 0.01 < features.mean() < 100
    assert 0.1 < (features == 0).float().mean() < 0.9


def test_training_detector_has_the_recipes_shapes() -> None:
    """RECIPES: dilation 2 in training, 2 FC of 1024, 1601 classes, embedding 256, FC 512, 400."""
    options = TrainExtractorOptions(Path("vg"), backbone="x50")
    model: Any = build_detector(options, new_architecture("x50", 1.0), 1600, 400)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["roi_heads.box_head.fc1.weight"] == (1024, 2048)
    assert shapes["roi_heads.box_head.fc2.weight"] == (1024, 1024)
    assert shapes["roi_heads.box_predictor.cls_score.weight"] == (1601, 1024)
    assert shapes["roi_heads.attribute_predictor.obj_embed.weight"] == (1601, 256)
    assert shapes["roi_heads.attribute_predictor.fc.0.weight"] == (512, 1024 + 256)
    assert shapes["roi_heads.attribute_predictor.attr_score.weight"] == (400, 512)
    pooler = model.roi_heads.box_pooler
    assert pooler.output_size == (1, 1)
    with torch.no_grad():
        assert model.backbone(torch.zeros(1, 3, 64, 96))["res5"].shape == (1, 2048, 4, 6)
