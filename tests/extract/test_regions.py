"""Regions are Detectron2's own, chosen as bottom-up attention chooses them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from PIL import Image
from torchvision.ops import nms

from gridvlp.errors import UserError
from gridvlp.extract.backbone import c4_config, new_architecture
from gridvlp.extract.detector_training import train_extractor
from gridvlp.extract.encoder import FrozenEncoder, Weights, read_weights
from gridvlp.extract.extraction import extract
from gridvlp.extract.options import ExtractOptions, TrainExtractorOptions
from gridvlp.extract.regions import RegionEncoder, best_regions
from gridvlp.store import FeatureStore

WIDTH = 0.125


@pytest.fixture(scope="module")
def weights() -> Weights:
    """A detector whose scores differ, as those of a trained one do."""
    weights = read_weights("random", "x50", WIDTH, detector=True)
    generator = torch.Generator().manual_seed(1)
    state = dict(weights.state)
    for key in ("cls_score.weight", "objectness_logits.weight", "anchor_deltas.weight"):
        for name in state:
            if name.endswith(key):
                state[name] = torch.randn(state[name].shape, generator=generator) * 0.5
    return replace(weights, state=state)


def pixels(height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(height)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return torch.from_numpy(np.array(small.resize((width, height), Image.Resampling.BICUBIC)))


def slow_choice(boxes_R4: torch.Tensor, scores_RK: torch.Tensor, count: int) -> list[Any]:
    """As in bottom-up attention's own extraction: NMS class by class, then the best of each box."""
    best: dict[int, tuple[float, int]] = {}
    for category in range(scores_RK.shape[1]):
        for place in nms(boxes_R4, scores_RK[:, category], 0.5).tolist():
            score = float(scores_RK[place, category])
            if score > best.get(place, (-1.0, 0))[0]:
                best[place] = (score, category)
    ranked = sorted(best.items(), key=lambda item: -item[1][0])[:count]
    return [(place, category) for place, (_, category) in ranked]


@pytest.mark.parametrize("count", [1, 10, 100])
def test_choice_is_bottom_up_attentions(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(60, 2, generator=generator) * 50
    boxes_R4 = torch.cat([corners, corners + 20 + 20 * torch.rand(60, 2, generator=generator)], 1)
    scores_RK = torch.rand(60, 7, generator=generator).softmax(1)
    places_N, classes_N = best_regions(boxes_R4, scores_RK, count)
    found = list(zip(places_N.tolist(), classes_N.tolist(), strict=True))
    assert found == slow_choice(boxes_R4, scores_RK, count)
    assert 1 <= len(found) <= count


@pytest.mark.parametrize(("count", "proposed"), [(20, 80), (100, 300)])
def test_float32_equals_detectron2(weights: Weights, count: int, proposed: int) -> None:
    """Proposals, features and scores by Detectron2's own modules, norms not folded."""
    cfg = c4_config(weights.architecture, 1600)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = proposed
    model: Any = build_model(cfg).eval()
    model.load_state_dict(weights.state)
    photo = pixels(96, 128)
    with torch.no_grad():
        images = model.preprocess_image([{"image": photo.flip(-1).permute(2, 0, 1)}])
        maps = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, maps)
        boxes_R4 = proposals[0].proposal_boxes.tensor
        pooled = model.roi_heads._shared_roi_transform([maps["res4"]], [Boxes(boxes_R4)])
        features_RC = pooled.mean(dim=[2, 3])
        scores_RK = model.roi_heads.box_predictor(features_RC)[0].softmax(1)[:, :-1]
    chosen = slow_choice(boxes_R4, scores_RK, count)
    found = RegionEncoder(weights, count, "float32", proposed)(photo[None])[0]
    places = [place for place, _ in chosen]
    assert found["classes_N"].tolist() == [category for _, category in chosen]
    sides = torch.tensor([128.0, 96, 128, 96])
    assert torch.allclose(found["boxes_N4"], boxes_R4[places] / sides, atol=1e-4)
    expected_CN = features_RC[places].T
    assert found["grid_map"].shape == (256, 1, count)
    assert (found["grid_map"][:, 0] - expected_CN).norm() / expected_CN.norm() < 1e-4
    scores = torch.stack([scores_RK[place, category] for place, category in chosen])
    assert torch.allclose(found["scores_N"], scores, rtol=1e-3)


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="the processor does not multiply in bfloat16"
)
def test_fast_arithmetic_describes_the_same_boxes_alike(weights: Weights) -> None:
    """Which proposals are the best may change by rounding; what is said of a box may not."""
    exact, fast = (RegionEncoder(weights, 50, precision) for precision in ("float32", "bfloat16"))
    photo = pixels(96, 128)
    boxes_R4 = torch.tensor([[0.0, 0, 128, 96], [10, 10, 60, 70], [64, 32, 120, 90]])
    features = []
    for encoder in (exact, fast):
        with torch.inference_mode():
            map_BCHW = encoder.model.backbone(encoder.pixels(photo[None], encoder.dtype))["res4"]
            features.append(encoder._describe(map_BCHW[0].float(), boxes_R4))
    assert torch.cosine_similarity(*features).min() >= 0.999
    assert len(fast(photo[None])[0]["scores_N"]) > 0


def options(tmp_path: Path, **changes: Any) -> ExtractOptions:
    base = ExtractOptions(
        *((tmp_path / "photos",), tmp_path / "store.zarr", "random", "x50", WIDTH, "64x128"),
        precision="float32",
        regions=10,
    )
    return replace(base, **changes)


def test_regions_fill_a_store(photo_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 5000), "red").save(photo_folder / "line.png")
    report = extract(options(tmp_path), lambda line: None)
    assert (report.found, report.written) == (13, 13)
    store = FeatureStore(tmp_path / "store.zarr")
    assert store.kind == "regions"
    assert store.encoder["regions"]["most"] == 10
    assert "stride" not in store.encoder
    few = 0
    for key in store.keys():  # noqa: SIM118
        found = store.regions(key)
        count = len(found.features_NC)
        few += count < 10
        assert 1 <= count <= 10
        assert found.features_NC.shape == (count, 256)
        assert (found.boxes_N4[:, :2] < found.boxes_N4[:, 2:]).all()
        assert found.scores_N is not None
        assert (np.diff(found.scores_N) <= 0).all()  # best first
        assert found.classes_N is not None
        assert found.classes_N.max() < 1600
    assert report.few == few
    if few:
        assert f"{few} photos have fewer than 10 regions" in "\n".join(report.lines())
    again = extract(options(tmp_path), lambda line: None)
    assert (again.written, again.already_there) == (0, 13)


def test_regions_and_grids_do_not_mix(photo_folder: Path, tmp_path: Path) -> None:
    extract(options(tmp_path), lambda line: None)
    with pytest.raises(UserError, match="kind regions, not grids"):
        extract(options(tmp_path, regions=None), lambda line: None)
    with pytest.raises(UserError, match=r"regions\.most: 10 and 20 now"):
        extract(options(tmp_path, regions=20), lambda line: None)


@pytest.mark.parametrize("anchors", [15, 12])
def test_detectron2_checkpoints_load_by_their_own_names(
    tmp_path: Path, weights: Weights, anchors: int
) -> None:
    """With attribute and mask heads beside what regions need, which are left out."""
    state = dict(weights.state)
    for name, rows in (("objectness_logits", 1), ("anchor_deltas", 4)):
        for part in ("weight", "bias"):
            key = f"proposal_generator.rpn_head.{name}.{part}"
            state[key] = state[key][: rows * anchors].clone()
    extra = {
        "roi_heads.attribute_predictor.obj_embed.weight": torch.zeros(3, 2),
        "roi_heads.mask_head.deconv.weight": torch.zeros(2),
        "pixel_mean": torch.zeros(3, 1, 1),
    }
    torch.save({"model": {**state, **extra}}, tmp_path / "c4.pth")
    read = read_weights(str(tmp_path / "c4.pth"), detector=True)
    assert read.architecture == weights.architecture
    assert len(RegionEncoder(read, 5, "float32")(pixels(64, 96)[None])[0]["scores_N"]) == 5
    with pytest.raises(UserError, match="--regions 100"):
        read_weights(str(tmp_path / "c4.pth"))
    del state["roi_heads.res5.1.conv2.weight"]
    torch.save({"model": state}, tmp_path / "missing.pth")
    with pytest.raises(UserError, match=r"lacks roi_heads\.res5\.1\.conv2\.weight"):
        RegionEncoder(read_weights(str(tmp_path / "missing.pth"), detector=True), 5)


def test_an_encoder_of_grids_has_no_regions(tmp_path: Path) -> None:
    architecture = new_architecture("x50", WIDTH)
    state = {f"backbone.{k}": v for k, v in architecture.build().state_dict().items()}
    torch.save({"model": state}, tmp_path / "grids.pth")
    FrozenEncoder(read_weights(str(tmp_path / "grids.pth")))
    with pytest.raises(UserError, match=r"no C4 detector.*an encoder of grids has none"):
        RegionEncoder(read_weights(str(tmp_path / "grids.pth"), detector=True), 5)


def test_a_c4_detector_is_trained_and_extracts(
    visual_genome: Path, photo_folder: Path, tmp_path: Path
) -> None:
    """From a backbone's weights, res5 of which go into the box head; the run then is an encoder."""
    backbone = read_weights("random", "x50", WIDTH).state
    torch.save(backbone, tmp_path / "start.pth")
    training = TrainExtractorOptions(
        visual_genome,
        run=tmp_path / "run",
        regions=True,
        weights=tmp_path / "start.pth",
        width=WIDTH,
        size="64x96",
        iterations=2,
        batch_size=2,
        rpn_batch=8,
        roi_batch=8,
        proposals=10,
        learning_rate=1e-6,
        precision="float32",
    )
    figures = train_extractor(training, lambda line: None)
    assert {"AP", "class accuracy", "attribute accuracy"} <= figures.keys()
    trained = read_weights(str(tmp_path / "run"), detector=True)
    for ours, theirs in (("backbone.res4.0.", "res4.0."), ("roi_heads.res5.0.", "res5.0.")):
        pair = (trained.state[f"{ours}conv2.weight"], backbone[f"{theirs}conv2.weight"])
        assert torch.cosine_similarity(*(weight.flatten() for weight in pair), dim=0) > 0.99
    with pytest.raises(UserError, match="--regions 100"):
        read_weights(str(tmp_path / "run"))
    report = extract(options(tmp_path, weights=str(tmp_path / "run")), lambda line: None)
    assert report.written == 12
    classes = FeatureStore(tmp_path / "store.zarr").regions("photo00").classes_N
    assert classes is not None
    assert classes.max() < 2  # box and ball
