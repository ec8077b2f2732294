"""The detector that pre-trains the encoder: C5 Faster R-CNN with a 1x1 RoI pool and attributes.

Jiang et al. (2020), paper 3.2: the box head sees one pooled vector per box, so that the backbone
itself must put all that a box holds into single grids. A port of grid-feats-vqa to the current
Detectron2, whose heads are configured explicitly.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional

from gridvlp.extract.backbone import Architecture, c4_config
from gridvlp.extract.options import TrainExtractorOptions

MAX_ATTRIBUTES = 16  # per box; Visual Genome has boxes with more
FC_SIZE = 1024  # grid-feats-vqa; scaled with the width of the backbone
EMBEDDING_SIZE, HIDDEN_SIZE = 256, 512
NO_ATTRIBUTE = -1


class AttributePredictor(nn.Module):
    """Attributes of a box from its feature and its true class; named as in grid-feats-vqa."""

    def __init__(self, feature_size: int, classes: int, attributes: int) -> None:
        super().__init__()
        self.obj_embed = nn.Embedding(classes + 1, EMBEDDING_SIZE)
        self.fc = nn.Sequential(nn.Linear(feature_size + EMBEDDING_SIZE, HIDDEN_SIZE), nn.ReLU())
        self.attr_score = nn.Linear(HIDDEN_SIZE, attributes)
        nn.init.normal_(self.attr_score.weight, std=0.01)
        nn.init.zeros_(self.attr_score.bias)

    def forward(self, features_ND: Tensor, classes_N: Tensor) -> Tensor:
        """Logits (N, attributes)."""
        joined = torch.cat([features_ND, self.obj_embed(classes_N)], dim=-1)
        return self.attr_score(self.fc(joined))

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


class _WithAttributes:
    """What the two kinds of box heads share: losses and answers from the features of boxes.

    There is no predictor where the annotations tell no attributes.
    """

    box_predictor: Any
    num_classes: int

    @configurable
    def __init__(
        self,
        *,
        attribute_predictor: AttributePredictor | None,
        attribute_weight: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.attribute_weight = attribute_weight
        self.attribute_predictor = attribute_predictor

    def _box_features(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """(N, D) of all boxes."""
        raise NotImplementedError

    def _losses(self, features_ND: Tensor, proposals: list[Instances]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.box_predictor.losses(
            self.box_predictor(features_ND), proposals
        )
        if self.attribute_predictor is None:
            return losses
        classes_N = torch.cat([found.gt_classes for found in proposals])
        attributes_NM = torch.cat([found.gt_attributes for found in proposals])
        foreground_N = (classes_N >= 0) & (classes_N < self.num_classes)
        logits_NK = self.attribute_predictor(features_ND[foreground_N], classes_N[foreground_N])
        loss = self.attribute_predictor.loss(logits_NK, attributes_NM[foreground_N])
        losses["loss_attributes"] = self.attribute_weight * loss
        return losses

    def describe(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> tuple[Tensor, Tensor | None]:
        """Class logits (N, classes + 1) and attribute logits (N, K) of given boxes.

        The attributes are predicted for the true class ``gt_classes``; None without a predictor.
        """
        features_ND = self._box_features(features, [found.gt_boxes for found in instances])
        logits = None
        if self.attribute_predictor is not None:
            classes_N = torch.cat([found.gt_classes for found in instances])
            logits = self.attribute_predictor(features_ND, classes_N)
        return self.box_predictor(features_ND)[0], logits


def _attributes_from_config(cfg: CfgNode, channels: int) -> dict[str, Any]:
    classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    attributes = cfg.MODEL.ROI_ATTRIBUTE_HEAD.NUM_CLASSES
    return {
        "attribute_predictor": (
            AttributePredictor(channels, classes, attributes) if attributes else None
        ),
        "attribute_weight": cfg.MODEL.ROI_ATTRIBUTE_HEAD.LOSS_WEIGHT,
    }


@ROI_HEADS_REGISTRY.register()
class GridROIHeads(_WithAttributes, StandardROIHeads):
    """Detectron2's box head with an attribute predictor on the foreground boxes."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Detectron2's hook: the arguments of ``__init__`` from a configuration."""
        made = super().from_config(cfg, input_shape)
        return {**made, **_attributes_from_config(cfg, made["box_head"].output_shape.channels)}

    def _box_features(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        maps = [features[name] for name in self.box_in_features]
        pooled: Tensor = self.box_head(self.box_pooler(maps, boxes))
        return pooled

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        features_ND = self._box_features(features, [found.proposal_boxes for found in proposals])
        if self.training:
            return self._losses(features_ND, proposals)
        return self.box_predictor.inference(self.box_predictor(features_ND), proposals)[0]


@ROI_HEADS_REGISTRY.register()
class RegionROIHeads(_WithAttributes, Res5ROIHeads):
    """The box head of a C4 detector (bottom-up attention): res5 on each box, and attributes."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Detectron2's hook: the arguments of ``__init__`` from a configuration."""
        made = super().from_config(cfg, input_shape)
        channels = made["box_predictor"].cls_score.in_features
        return {**made, **_attributes_from_config(cfg, channels)}

    def _box_features(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        maps = [features[name] for name in self.in_features]
        described: Tensor = self._shared_roi_transform(maps, boxes).mean(dim=[2, 3])
        return described

    def forward(self, images: Any, features: Any, proposals: Any, targets: Any = None) -> Any:
        """As Detectron2's, with the attribute loss in training."""
        if not self.training:
            return super().forward(images, features, proposals, targets)
        proposals = self.label_and_sample_proposals(proposals, targets)
        boxes = [found.proposal_boxes for found in proposals]
        return [], self._losses(self._box_features(features, boxes), proposals)


def build_detector(
    options: TrainExtractorOptions, architecture: Architecture, classes: int, attributes: int
) -> nn.Module:
    """The detector in training mode; batch norms are frozen if it starts from given weights.

    From scratch, with several processes, the norms see the whole batch.
    """
    frozen = options.weights is not None
    norm = "FrozenBN" if frozen else "BN"
    if not frozen and options.processes > 1:
        norm = "SyncBN" if torch.cuda.is_available() else "naiveSyncBN"
    freeze_at = 2 if frozen else 0
    if options.regions:
        cfg = c4_config(architecture, classes, norm=norm, freeze_at=freeze_at)
        cfg.MODEL.ROI_HEADS.NAME = "RegionROIHeads"
    else:
        cfg = _grid_config(options, architecture, norm, freeze_at)
    rpn = cfg.MODEL.RPN
    rpn.BATCH_SIZE_PER_IMAGE = options.rpn_batch
    rpn.PRE_NMS_TOPK_TRAIN = 6 * options.proposals  # Detectron2's ratio
    rpn.POST_NMS_TOPK_TRAIN = options.proposals
    rpn.SMOOTH_L1_BETA = 1 / 9  # grid-feats-vqa
    rpn.BOUNDARY_THRESH = options.rpn_boundary
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = options.roi_batch
    cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA = 1.0  # grid-feats-vqa
    cfg.MODEL.ROI_ATTRIBUTE_HEAD = CfgNode(
        {"NUM_CLASSES": attributes, "LOSS_WEIGHT": options.attribute_weight}
    )
    model = build_model(cfg)
    if not frozen:
        for name, parameter in model.named_parameters():
            if name.endswith("conv3.norm.weight"):
                # Every block begins as the identity (Goyal et al., 2017): from scratch, the
                # colours of the sample world are learned in a third of the steps.
                nn.init.zeros_(parameter)
    return model


def _grid_config(
    options: TrainExtractorOptions, architecture: Architecture, norm: str, freeze_at: int
) -> CfgNode:
    cfg = architecture.config(dilation=options.res5_dilation, norm=norm, freeze_at=freeze_at)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res5"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 6000, 1000
    cfg.MODEL.ROI_HEADS.NAME = "GridROIHeads"
    box = cfg.MODEL.ROI_BOX_HEAD
    box.NAME = "FastRCNNConvFCHead"
    box.NUM_FC, box.FC_DIM = 2, max(64, round(FC_SIZE * options.width))
    box.POOLER_RESOLUTION, box.POOLER_SAMPLING_RATIO = 1, 2  # grid-feats-vqa
    return cfg
