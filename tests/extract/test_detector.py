"""The detector is grid-feats': 1x1 RoI pool, attributes of foreground boxes, dilated C5."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional

from gridvlp.extract.backbone import new_architecture
from gridvlp.extract.detector import build_detector
from gridvlp.extract.options import TrainExtractorOptions

CLASSES, ATTRIBUTES = 5, 7


def detector(**changes: Any) -> Any:
    options = replace(TrainExtractorOptions(Path("vg"), width=0.125), **changes)
    torch.manual_seed(0)
    return build_detector(options, new_architecture("x50", 0.125), CLASSES, ATTRIBUTES)


def proposals(boxes: list[list[float]], classes: list[int], told: list[list[int]]) -> Instances:
    """Boxes already matched with the truth, as the head samples them."""
    found = Instances((64, 96))
    found.proposal_boxes = found.gt_boxes = Boxes(torch.tensor(boxes))
    found.objectness_logits = torch.zeros(len(boxes))
    found.gt_classes = torch.tensor(classes)
    found.gt_attributes = torch.full((len(boxes), 16), -1)
    for row, given in zip(found.gt_attributes, told, strict=True):
        row[: len(given)] = torch.tensor(given, dtype=torch.int64)
    return found


def test_attribute_loss_is_of_foreground_boxes_given_their_true_class() -> None:
    """A slow restatement, box by box; background boxes (class 5) must not count."""
    heads = detector(attribute_weight=0.3).roi_heads
    boxes = [[0.0, 0.0, 40.0, 40.0], [10.0, 5.0, 90.0, 60.0], [50.0, 20.0, 70.0, 44.0]]
    told = [[1, 4], [2], [0, 3, 6]]
    map_BCHW = torch.rand(1, 256, 4, 6)
    found = proposals(boxes, [2, CLASSES, 0], told)
    with EventStorage():  # Detectron2's heads report to one
        losses = heads._forward_box({"res5": map_BCHW}, [found])
        nothing = heads._forward_box({"res5": map_BCHW}, [proposals(boxes, [CLASSES] * 3, told)])
    predictor = heads.attribute_predictor
    expected = []
    for i in (0, 2):
        pooled = heads.box_pooler([map_BCHW], [Boxes(torch.tensor(boxes[i : i + 1]))])
        features = heads.box_head(pooled)[0]
        joined = torch.cat([features, predictor.obj_embed.weight[found.gt_classes[i]]])
        logits = predictor.attr_score(functional.relu(predictor.fc[0](joined)))
        expected.append(-torch.stack([logits.log_softmax(0)[a] for a in told[i]]).mean())
    assert torch.allclose(losses["loss_attributes"], 0.3 * torch.stack(expected).mean(), atol=1e-6)
    assert nothing["loss_attributes"] == 0
    sum(nothing.values()).backward()  # a batch of background alone can be trained on


def test_pooled_vector_is_the_boxs_mean() -> None:
    """One vector per box: of a plane, whose mean over a box is its value at the centre."""
    model = detector()
    pooler = model.roi_heads.box_pooler
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    stride = model.backbone.output_shape()["res5"].stride
    map_1CHW = torch.stack([x, y])[None]
    box = torch.tensor([[2.0, 3.0, 8.0, 9.0]]) * stride
    pooled = pooler([map_1CHW], [Boxes(box)])
    assert pooled.shape == (1, 2, 1, 1)
    # RoIAlignV2: the value of grid (i, j) is at (i + 0.5, j + 0.5)
    assert torch.allclose(pooled.flatten(), torch.tensor([5.0 - 0.5, 6.0 - 0.5]))


@pytest.mark.parametrize(("dilation", "stride"), [(1, 32), (2, 16)])
def test_dilation_keeps_the_map_finer(dilation: int, stride: int) -> None:
    model = detector(res5_dilation=dilation)
    assert model.backbone.output_shape()["res5"].stride == stride
    assert model.backbone.res5[0].conv2.dilation == (dilation, dilation)
    assert model.backbone.res5[2].conv2.dilation == (dilation, dilation)
    with torch.no_grad():
        assert model.backbone(torch.zeros(1, 3, 64, 96))["res5"].shape[2:] == (
            64 // stride,
            96 // stride,
        )


def test_class_and_attribute_counts() -> None:
    heads = detector().roi_heads
    assert heads.num_classes == CLASSES
    assert heads.box_predictor.cls_score.out_features == CLASSES + 1
    assert heads.box_predictor.bbox_pred.out_features == 4 * CLASSES
    assert heads.attribute_predictor.attr_score.out_features == ATTRIBUTES
    found = proposals([[0.0, 0.0, 30.0, 30.0]] * 3, [0, 4, 2], [[], [1], []])
    classes_NK, attributes_NK = heads.describe({"res5": torch.rand(1, 256, 4, 6)}, [found])
    assert (classes_NK.shape, attributes_NK.shape) == ((3, CLASSES + 1), (3, ATTRIBUTES))


def test_norms_learn_from_scratch_and_are_frozen_from_weights() -> None:
    learned = {name for name, p in detector().backbone.named_parameters() if p.requires_grad}
    assert "stem.conv1.weight" in learned
    assert "stem.conv1.norm.weight" in learned
    kept = {
        name
        for name, p in detector(weights=Path("w.pth")).backbone.named_parameters()
        if p.requires_grad
    }
    assert "res3.0.conv1.weight" in kept
    assert not any("norm" in name or name.startswith(("stem", "res2")) for name in kept)


def test_published_names() -> None:
    """The heads carry grid-feats-vqa's own key names."""
    keys = {key for key in detector().state_dict() if not key.startswith("backbone.")}
    assert keys == {
        *(
            f"proposal_generator.rpn_head.{layer}.{kind}"
            for layer in ("conv", "objectness_logits", "anchor_deltas")
            for kind in ("weight", "bias")
        ),
        *(
            f"roi_heads.{layer}.{kind}"
            for layer in (
                *("box_head.fc1", "box_head.fc2"),
                *("box_predictor.cls_score", "box_predictor.bbox_pred"),
                *("attribute_predictor.fc.0", "attribute_predictor.attr_score"),
            )
            for kind in ("weight", "bias")
        ),
        "roi_heads.attribute_predictor.obj_embed.weight",
    }


def test_without_attributes_there_is_no_predictor() -> None:
    torch.manual_seed(0)
    options = TrainExtractorOptions(Path("vg"), width=0.125)
    model: Any = build_detector(options, new_architecture("x50", 0.125), CLASSES, 0)
    assert not any("attribute" in key for key in model.state_dict())
    found = proposals([[0.0, 0.0, 40.0, 40.0]], [2], [[]])
    with EventStorage():
        losses = model.roi_heads._forward_box({"res5": torch.rand(1, 256, 4, 6)}, [found])
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    assert model.roi_heads.describe({"res5": torch.rand(1, 256, 4, 6)}, [found])[1] is None
