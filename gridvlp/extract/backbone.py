"""The C5 backbone: a Detectron2 ResNet or ResNeXt, described by a handful of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import ResNet, build_resnet_backbone
from torch import nn

from gridvlp.errors import UserError

# depth, groups and channels per group, as in grid-feats-vqa; x50 is ResNeXt-50 32x4d
SHAPES = {"r50": (50, 1, 64), "x50": (50, 32, 4), "x101": (101, 32, 8), "x152": (152, 32, 8)}
STRIDE = 32  # pixels between the grids of a C5 map
PROPOSALS = 300  # of a C4 detector at test
RES4_BLOCKS = {50: 6, 101: 23, 152: 36}

# Of 0-255 pixels in BGR (Detectron2); were published with std 1, X-101 with this.
MEAN_BGR = (103.53, 116.28, 123.675)
STD_BGR = (57.375, 57.12, 58.395)


@dataclass(frozen=True)
class Architecture:
    """A backbone and how its pixels are prepared."""

    backbone: str
    width: float = 1.0
    pixel_mean: tuple[float, ...] = MEAN_BGR
    pixel_std: tuple[float, ...] = STD_BGR
    channel_order: str = "BGR"
    stride_in_1x1: bool = False  # True for MSRA's ResNets, False for Caffe2's ResNeXts

    @property
    def channels(self) -> int:
        """C of the C5 map."""
        return round(2048 * self.width)

    def config(self, *, dilation: int, norm: str, freeze_at: int) -> CfgNode:
        """Detectron2's configuration of this backbone and its pixels."""
        depth, groups, per_group = SHAPES[self.backbone]
        if groups == 1:
            per_group = round(per_group * self.width)
        else:
            groups = round(groups * self.width)
        cfg = get_cfg()
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
        cfg.MODEL.PIXEL_MEAN = list(self.pixel_mean)
        cfg.MODEL.PIXEL_STD = list(self.pixel_std)
        cfg.INPUT.FORMAT = self.channel_order
        cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
        cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
        resnets = cfg.MODEL.RESNETS
        resnets.DEPTH, resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP = depth, groups, per_group
        resnets.STEM_OUT_CHANNELS = round(64 * self.width)
        resnets.RES2_OUT_CHANNELS = round(256 * self.width)
        resnets.STRIDE_IN_1X1 = self.stride_in_1x1
        resnets.RES5_DILATION = dilation
        resnets.NORM = norm
        resnets.OUT_FEATURES = ["res5"]
        return cfg

    def build(self) -> ResNet:
        """The backbone as extraction uses it: dilation 1, stride 32, frozen norms."""
        cfg = self.config(dilation=1, norm="FrozenBN", freeze_at=0)
        return build_resnet_backbone(cfg, ShapeSpec(channels=3))


def c4_config(
    architecture: Architecture, classes: int, *, norm: str = "FrozenBN", freeze_at: int = 0
) -> CfgNode:
    """Detectron2's configuration of a C4 detector: its faster_rcnn_*_C4, grid-feats-vqa's baseline.

    The proposals at test are as few as bottom-up attention's (Anderson et al., 2018).
    """
    cfg = architecture.config(dilation=1, norm=norm, freeze_at=freeze_at)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 6000, PROPOSALS
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 14
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 2  # grid-feats-vqa
    return cfg


def new_architecture(backbone: str, width: float) -> Architecture:
    """The architecture of a backbone trained from scratch, or published by grid-feats-vqa."""
    return Architecture(
        backbone,
        width,
        pixel_std=(1.0, 1.0, 1.0) if backbone in ("r50", "x152") else STD_BGR,
        stride_in_1x1=backbone == "r50",
    )


def architecture_of(weights: Mapping[str, torch.Tensor], name: str) -> Architecture:
    """Tell the architecture from the shapes of a backbone's weights (Detectron2's key names).

    Raises:
        UserError: they are of no backbone that is known here.
    """
    try:
        stem = weights["stem.conv1.weight"].shape[0]
        conv2 = weights["res2.0.conv2.weight"].shape
        blocks = sum(f"res4.{i}.conv1.weight" in weights for i in range(64))
    except KeyError as error:
        raise UserError(f"{name} holds no ResNet backbone: it has no {error.args[0]}.") from error
    width = stem / 64
    for backbone, (depth, groups, per_group) in SHAPES.items():
        expected = (
            (round(64 * width), round(64 * width))
            if groups == 1
            else (round(groups * width) * per_group, per_group)
        )
        if RES4_BLOCKS[depth] == blocks and tuple(conv2[:2]) == expected:
            return new_architecture(backbone, width)
    raise UserError(
        f"{name} is of no backbone known here ({', '.join(SHAPES)}): it has {blocks} blocks in "
        f"res4 and res2.0.conv2 of shape {tuple(conv2)}."
    )


def load_strictly(backbone: nn.Module, weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Load a backbone's weights; every one it needs must be there, in shape, and no other.

    ``num_batches_tracked`` counts steps and is no weight; norms without running statistics are
    Caffe2's, which come with the statistics multiplied in: they get mean 0 and variance 1.

    Raises:
        UserError: a weight is missing, unknown or of another shape.
    """
    given = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    wanted = {k: v for k, v in backbone.state_dict().items() if not k.endswith("batches_tracked")}
    if not any(key.endswith("running_var") for key in given):
        for key, value in wanted.items():
            if key.endswith(("running_mean", "running_var")):
                given[key] = value.clone()
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    wrong = [k for k in sorted(wanted.keys() & given.keys()) if wanted[k].shape != given[k].shape]
    for what, keys in (("lacks", missing), ("has unknown", unknown), ("has misshapen", wrong)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(
                f"{name} does not fit this backbone: it {what} {', '.join(keys[:3])}{more}."
            )
    backbone.load_state_dict(given, strict=False)
