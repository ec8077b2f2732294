"""The detector that pre-trains the encoder: C5 Faster R-CNN with a 1x1 RoI pool and attributes.

Jiang et al. (2020), paper 3.2: the box head sees one pooled vector per box, so that the backbone
itself must put all that a box holds into single grids. A port of grid-feats-vqa to the current
Detectron2, whose heads are configured explicitly.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.modeling.backbone import Backbone, build_resnet_backbone
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional

from gridvlp.extract.settings import BACKBONES, PIXEL_MEAN, TrainExtractorOptions

MAX_ATTRIBUTES = 16  # per box; Visual Genome has boxes with more
ATTRIBUTE_WEIGHT = 0.2
EMBEDDING_SIZE, HIDDEN_SIZE = 256, 512
TRAINING_DILATION = 2
NO_ATTRIBUTE = -1


class AttributePredictor(nn.Module):
    """Attributes of a box from its feature and its true class."""

    def __init__(self, feature_size: int, classes: int, attributes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes + 1, EMBEDDING_SIZE)
        self.fc = nn.Linear(feature_size + EMBEDDING_SIZE, HIDDEN_SIZE)
        self.score = nn.Linear(HIDDEN_SIZE, attributes)

    def forward(self, features_ND: Tensor, classes_N: Tensor) -> Tensor:
        """Logits (N, attributes)."""
        joined = torch.cat([features_ND, self.embedding(classes_N)], dim=-1)
        return self.score(functional.relu(self.fc(joined)))

    def loss(self, logits_NK: Tensor, attributes_NM: Tensor) -> Tensor:
        """Cross-entropy over a box's attributes, averaged per box, then over boxes.

        Args:
            logits_NK: scores of K attributes.
            attributes_NM: int64, up to M attributes of each box, NO_ATTRIBUTE elsewhere.
        """
        given_NM = attributes_NM >= 0
        some_N = given_NM.any(dim=1)
        if not bool(some_N.any()):
            return logits_NK.sum() * 0.0
        logp_NM = functional.log_softmax(logits_NK, dim=-1).gather(1, attributes_NM.clamp(min=0))
        per_box_N = -(logp_NM * given_NM).sum(1)[some_N] / given_NM.sum(1)[some_N]
        return per_box_N.mean()


@ROI_HEADS_REGISTRY.register()
class GridROIHeads(StandardROIHeads):
    """Detectron2's box head with an attribute predictor on the foreground boxes."""

    @configurable
    def __init__(self, *, attribute_predictor: AttributePredictor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attribute_predictor = attribute_predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Detectron2's hook: the arguments of ``__init__`` from a configuration."""
        made = super().from_config(cfg, input_shape)
        made["attribute_predictor"] = AttributePredictor(
            made["box_head"].output_shape.channels,
            cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            cfg.MODEL.ROI_ATTRIBUTE_HEAD.NUM_CLASSES,
        )
        return made

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        maps = [features[name] for name in self.box_in_features]
        boxes = [found.proposal_boxes for found in proposals]
        features_ND = self.box_head(self.box_pooler(maps, boxes))
        predictions = self.box_predictor(features_ND)
        if not self.training:
            return self.box_predictor.inference(predictions, proposals)[0]
        losses = self.box_predictor.losses(predictions, proposals)
        classes_N = torch.cat([found.gt_classes for found in proposals])
        attributes_NM = torch.cat([found.gt_attributes for found in proposals])
        foreground_N = (classes_N >= 0) & (classes_N < self.num_classes)
        logits_NK = self.attribute_predictor(features_ND[foreground_N], classes_N[foreground_N])
        loss = self.attribute_predictor.loss(logits_NK, attributes_NM[foreground_N])
        losses["loss_attributes"] = ATTRIBUTE_WEIGHT * loss
        return losses

    def describe(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """Class logits (N, classes + 1) and attribute logits (N, K) of given boxes.

        The attributes are predicted for the true class ``gt_classes``.
        """
        maps = [features[name] for name in self.box_in_features]
        features_ND = self.box_head(self.box_pooler(maps, [found.gt_boxes for found in instances]))
        classes_N = torch.cat([found.gt_classes for found in instances])
        logits = self.attribute_predictor(features_ND, classes_N)
        return self.box_predictor(features_ND)[0], logits


def backbone_config(backbone: str, width: float, norm: str, dilation: int) -> CfgNode:
    """Detectron2's configuration of a C5 backbone.

    ``width`` below 1 keeps the channels of a group and drops groups and channels alike.
    """
    facts = BACKBONES[backbone]
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 2 if norm == "FrozenBN" else 0
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH = facts.depth
    resnets.OUT_FEATURES = ["res5"]
    resnets.NORM = norm
    if facts.groups > 1:
        resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP = (
            int(facts.groups * width),
            facts.width_per_group,
        )
    else:
        resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP = 1, int(facts.width_per_group * width)
    resnets.STEM_OUT_CHANNELS = int(64 * width)
    resnets.RES2_OUT_CHANNELS = int(256 * width)
    resnets.STRIDE_IN_1X1 = facts.stride_in_1x1
    resnets.RES5_DILATION = dilation
    cfg.MODEL.PIXEL_MEAN = list(PIXEL_MEAN)
    cfg.MODEL.PIXEL_STD = list(facts.pixel_std)
    return cfg


def build_backbone(cfg: CfgNode) -> Backbone:
    """The backbone alone, with three input channels."""
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


def build_detector(options: TrainExtractorOptions, classes: int, attributes: int) -> nn.Module:
    """The detector in training mode; batch norms are frozen if it starts from given weights."""
    norm = "FrozenBN" if options.weights else "BN"
    cfg = backbone_config(options.backbone, options.width, norm, TRAINING_DILATION)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    rpn = cfg.MODEL.RPN
    rpn.IN_FEATURES = ["res5"]
    rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST = 6000, 1000
    rpn.POST_NMS_TOPK_TRAIN = options.proposals
    rpn.PRE_NMS_TOPK_TRAIN = 6 * options.proposals
    rpn.SMOOTH_L1_BETA = 1 / 9
    heads = cfg.MODEL.ROI_HEADS
    heads.NAME = "GridROIHeads"
    heads.IN_FEATURES = ["res5"]
    heads.NUM_CLASSES = classes
    heads.BATCH_SIZE_PER_IMAGE = options.boxes_per_image
    box = cfg.MODEL.ROI_BOX_HEAD
    box.NAME = "FastRCNNConvFCHead"
    box.NUM_FC, box.FC_DIM = 2, options.fc_size
    box.POOLER_RESOLUTION, box.POOLER_SAMPLING_RATIO = 1, 2
    box.SMOOTH_L1_BETA = 1.0
    cfg.MODEL.ROI_ATTRIBUTE_HEAD = CfgNode({"NUM_CLASSES": attributes})
    return build_model(cfg)


__all__ = [
    "MAX_ATTRIBUTES",
    "NO_ATTRIBUTE",
    "FrozenBatchNorm2d",
    "GridROIHeads",
    "backbone_config",
    "build_backbone",
    "build_detector",
]
