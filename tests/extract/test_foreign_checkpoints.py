"""Files of other projects, written in their exact key names and shapes, load; nothing is run."""

import pickle
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gridvlp.errors import UserError
from gridvlp.extract.backbone import STD_BGR, new_architecture
from gridvlp.extract.encoder import FrozenEncoder, read_weights
from gridvlp.extract.foreign_checkpoints import TORCHVISION_PIXELS, read_checkpoint

BLOCKS = {"r50": (3, 4, 6, 3), "x101": (3, 4, 23, 3), "x152": (3, 8, 36, 3), "x50": (3, 4, 6, 3)}


def convolutions(backbone: str, width: float = 1.0) -> Iterator[tuple[int, int, str, tuple]]:
    """(stage, block, branch, shape) of a ResNet by He et al. or Xie et al., told independently."""
    groups, inner = {"r50": (1, 64), "x50": (32, 128)}.get(backbone, (32, 256))
    inner, groups = round(inner * width), round(groups * width) if groups > 1 else 1
    before = round(64 * width)
    for stage, blocks in enumerate(BLOCKS[backbone], 2):
        outer = round(256 * width) * 2 ** (stage - 2)
        for block in range(blocks):
            if block == 0:
                yield stage, block, "shortcut", (outer, before, 1, 1)
            yield stage, block, "conv1", (inner, before, 1, 1)
            yield stage, block, "conv2", (inner, inner // groups, 3, 3)
            yield stage, block, "conv3", (outer, inner, 1, 1)
            before = outer
        inner *= 2


def published_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    """What grid-feats-vqa's files hold, as its source builds it."""
    names = {"stem.conv1": (64, 3, 7, 7)}
    for stage, block, branch, shape in convolutions(backbone):
        names[f"res{stage}.{block}.{branch}"] = shape
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in names.items():
        shapes[f"backbone.{name}.weight"] = shape
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"backbone.{name}.norm.{kind}"] = shape[:1]
    heads = {
        "proposal_generator.rpn_head.conv": (2048, 2048, 3, 3),
        "proposal_generator.rpn_head.objectness_logits": (15, 2048, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas": (60, 2048, 1, 1),
        "roi_heads.box_head.fc1": (1024, 2048),
        "roi_heads.box_head.fc2": (1024, 1024),
        "roi_heads.box_predictor.cls_score": (1601, 1024),
        "roi_heads.box_predictor.bbox_pred": (6400, 1024),
        "roi_heads.attribute_predictor.fc.0": (512, 1280),
        "roi_heads.attribute_predictor.attr_score": (400, 512),
    }
    for name, shape in heads.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes["roi_heads.attribute_predictor.obj_embed.weight"] = (1601, 256)
    shapes["proposal_generator.anchor_generator.cell_anchors.0"] = (15, 4)
    return shapes


@pytest.mark.parametrize("backbone", ["r50", "x101", "x152"])
def test_published_names_and_shapes_are_what_extraction_needs(backbone: str) -> None:
    shapes = published_shapes(backbone)
    with torch.device("meta"):
        wanted = new_architecture(backbone, 1.0).build().state_dict()
    told = {k[9:]: shape for k, shape in shapes.items() if k.startswith("backbone.")}
    assert told == {key: tuple(value.shape) for key, value in wanted.items()}


def test_published_r50_loads_whole(tmp_path: Path) -> None:
    """In the older file format, with the state of its optimiser, as Detectron2 saved it in 2020."""
    state = OrderedDict((k, torch.full(s, 0.01)) for k, s in published_shapes("r50").items())
    trainer = {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}}, "iteration": 89999}
    path = tmp_path / "R-50.pth"
    torch.save({"model": state, **trainer}, path, _use_new_zipfile_serialization=False)
    weights = read_weights(str(path))
    assert weights.architecture == new_architecture("r50", 1.0)
    assert weights.architecture.pixel_std == (1, 1, 1)
    assert weights.architecture.stride_in_1x1
    assert weights.notes == ("R-50.pth: 20 tensors of the detector's heads left aside.",)
    FrozenEncoder(weights, "float32")


def test_misfits_of_a_detectors_backbone_are_refused(tmp_path: Path) -> None:
    state = {f"backbone.{key}": value for key, value in small("r50").items()}
    path = tmp_path / "R-50.pth"
    for change, told in (
        ({"backbone.res5.2.conv3.weight": None}, r"lacks res5\.2\.conv3\.weight"),
        ({"backbone.res5.2.extra.weight": torch.zeros(1)}, r"unknown res5\.2\.extra"),
        ({"backbone.res5.2.conv3.weight": torch.zeros(1)}, r"misshapen res5\.2\.conv3"),
    ):
        held = {k: v for k, v in {**state, **change}.items() if v is not None}
        torch.save({"model": held}, path)
        with pytest.raises(UserError, match=told):
            FrozenEncoder(read_weights(str(path)), "float32")


def small(backbone: str, width: float = 0.25) -> dict[str, torch.Tensor]:
    return new_architecture(backbone, width).build().state_dict()


def test_deformable_convolutions_are_refused(tmp_path: Path) -> None:
    held = {f"backbone.{key}": value for key, value in small("x152").items()}
    held["backbone.res4.0.conv2_offset.weight"] = torch.zeros(18, 4, 3, 3)
    torch.save({"model": held}, tmp_path / "X-152pp.pth")
    with pytest.raises(UserError, match=r"deformable.*X-152\+\+.*--weights x152"):
        read_weights(str(tmp_path / "X-152pp.pth"))


@pytest.mark.parametrize("backbone", ["x101", "x152"])
def test_how_pixels_are_prepared_is_told_or_said_to_be_assumed(
    tmp_path: Path, backbone: str
) -> None:
    """grid-feats-vqa's X-152 and Caffe2's have other statistics in one and the same shape."""
    published = new_architecture(backbone, 0.25)
    detector = {f"backbone.{key}": value for key, value in small(backbone).items()}
    mark = {"roi_heads.attribute_predictor.attr_score.weight": torch.zeros(4, 4)}
    kept = {"pixel_mean": torch.ones(3, 1, 1), "pixel_std": torch.full((3, 1, 1), 2.0)}
    for held, architecture, assumed in (
        ({**detector, **mark}, published, False),
        ({**detector, "roi_heads.box_head.fc1.weight": torch.zeros(1)}, published, True),
        (small(backbone), published, True),
        (
            {**detector, **kept},
            replace(published, pixel_mean=(1.0, 1.0, 1.0), pixel_std=(2.0, 2.0, 2.0)),
            False,
        ),
    ):
        torch.save({"model": held}, tmp_path / "x.pth")
        found = read_checkpoint(tmp_path / "x.pth")
        assert found.architecture == architecture
        assert any("does not say" in note for note in found.notes) == assumed


def caffe2(backbone: str, width: float = 0.25, whole: bool = False) -> dict[str, np.ndarray]:
    """An ImageNet model by Caffe2's names; norms fused, as Detectron's, or whole (Detectron2)."""
    rng = np.random.default_rng(0)
    branches = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
    shapes = {"conv1": (round(64 * width), 3, 7, 7)}
    for stage, block, branch, shape in convolutions(backbone, width):
        shapes[f"res{stage}_{block}_branch{branches[branch]}"] = shape
    held = {}
    for name, shape in shapes.items():
        norm = "res_conv1_bn" if name == "conv1" else f"{name}_bn"
        held[f"{name}_w"] = rng.normal(0, 0.1, shape).astype(np.float32)
        held[f"{norm}_s"] = rng.normal(1, 0.1, shape[:1]).astype(np.float32)
        held[f"{norm}_b"] = rng.normal(0, 0.1, shape[:1]).astype(np.float32)
        if whole:
            held[f"{norm}_rm"] = rng.normal(0, 0.1, shape[:1]).astype(np.float32)
            held[f"{norm}_riv"] = rng.uniform(0.5, 2, shape[:1]).astype(np.float32)
    held["conv1_b"] = np.zeros(shapes["conv1"][0], np.float32)
    held["fc1000_w"], held["fc1000_b"] = np.zeros((10, 4), np.float32), np.zeros(10, np.float32)
    held["conv1_w_momentum"] = held["conv1_w"]
    return held


@pytest.mark.parametrize("backbone", ["r50", "x101", "x152"])
@pytest.mark.parametrize("form", ["plain", "blobs", "protocol 2", "whole norms"])
def test_imagenet_pickles(tmp_path: Path, backbone: str, form: str) -> None:
    held = caffe2(backbone, whole=form == "whole norms")
    path = tmp_path / "X.pkl"
    whole = {"blobs": held} if form == "blobs" else held
    path.write_bytes(pickle.dumps(whole, protocol=2 if form == "protocol 2" else 4))
    weights = read_weights(str(path))
    expected = new_architecture(backbone, 0.25)
    if backbone != "r50":  # which is MSRA's in either form
        std = STD_BGR if form == "whole norms" else (1.0, 1.0, 1.0)
        expected = replace(expected, pixel_std=std)
    assert weights.architecture == expected
    assert torch.equal(
        weights.state["res4.2.conv2.weight"], torch.from_numpy(held["res4_2_branch2b_w"])
    )
    assert torch.equal(
        weights.state["stem.conv1.norm.bias"], torch.from_numpy(held["res_conv1_bn_b"])
    )
    assert weights.notes == ("X.pkl: 3 tensors of the classifier left aside.",)
    FrozenEncoder(weights, "float32")


def test_torchvision_models_of_detectron2s_zoo(tmp_path: Path) -> None:
    held: dict[str, Any] = {key: value.numpy() for key, value in small("x50").items()}
    held |= {"stem.fc.weight": np.zeros((10, 4), np.float32), "stem.fc.bias": np.zeros(10)}
    whole = {"model": held, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(whole))
    weights = read_weights(str(tmp_path / "R.pkl"))
    assert weights.architecture == replace(new_architecture("x50", 0.25), **TORCHVISION_PIXELS)
    assert weights.architecture.channel_order == "RGB"
    FrozenEncoder(weights, "float32")


class Trap:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.made = (call, arguments)

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_calls_nothing(tmp_path: Path, protocol: int) -> None:
    for trap in (
        Trap(Path.touch, tmp_path / "ran"),
        Trap(eval, f"open({str(tmp_path / 'ran')!r}, 'w')"),
        Trap(__import__, "os"),
        Trap(np.load, "x.npy"),
        Trap(bytearray, 10),
    ):
        for held in ({"conv1_w": trap}, trap, [{"blobs": (1, trap)}]):
            (tmp_path / "trap.pkl").write_bytes(pickle.dumps(held, protocol=protocol))
            with pytest.raises(UserError, match="cannot be read as a checkpoint of plain tensors"):
                read_checkpoint(tmp_path / "trap.pkl")
    assert not (tmp_path / "ran").exists()


def test_a_file_with_code_is_refused_without_advice_to_run_it(tmp_path: Path) -> None:
    path = tmp_path / "trap.pth"
    torch.save({"model": Trap(Path.touch, tmp_path / "ran")}, path)
    with pytest.raises(UserError, match="holds more than tensors") as refusal:
        read_checkpoint(path)
    assert "weights_only" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_pickle_is_never_a_traceback(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = pickle.dumps({"conv1_w": np.zeros((4, 3, 7, 7), np.float32), "x": np.float32(1)})
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(min(250, len(damaged)), size=3):
            damaged[place] = int(rng.integers(256))
        cut = int(rng.integers(1, len(damaged) + 1))
        (tmp_path / "a.pkl").write_bytes(damaged[:cut])
        with pytest.raises(UserError):  # whole, it would have no res2
            read_checkpoint(tmp_path / "a.pkl")
    objects = pickle.dumps({"conv1_w": np.array([None, {}], dtype=object)})
    (tmp_path / "a.pkl").write_bytes(objects)
    with pytest.raises(UserError, match="holds no weights"):
        read_checkpoint(tmp_path / "a.pkl")
