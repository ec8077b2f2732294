"""Regions of photos, found and described as by bottom-up attention (Anderson et al., 2018).

A C4 Faster R-CNN: res4 is the map, the RPN on it proposes boxes, res5 describes each on its 14 x 14
RoIAlign, and the mean over its output is the feature. A region is a proposal, which is where its
feature was taken; NMS for each class decides which are kept.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList
from torch import Tensor, nn
from torchvision.ops import box_iou

from gridvlp.errors import UserError
from gridvlp.extract.backbone import PROPOSALS, c4_config, load_strictly
from gridvlp.extract.encoder import Pixels, Weights, fold_norms, refuse_tf32
from gridvlp.run.devices import choose_device, choose_precision

# Detectron2's, and so that of grid-feats-vqa's regions; Anderson et al.'s own code has 0.3
NMS_THRESHOLD = 0.5
BOXES_AT_ONCE = 50  # 14 x 14 x 1024 float32 each
# of a side, in pixels, by how many anchors the RPN has at a place (three ratios of sides each)
ANCHOR_SIZES = {15: [32, 64, 128, 256, 512], 12: [64, 128, 256, 512]}
# parts of published detectors that regions do not need
UNUSED = ("roi_heads.attribute", "roi_heads.mask_head", "pixel_", "proposal_generator.anchor_gen")


class RegionEncoder(nn.Module):
    """Photos to regions, with norms folded and the fast arithmetic of ``FrozenEncoder``.

    Scores, deltas and boxes are computed in float32.

    Args:
        weights: of the whole detector, by Detectron2's key names.
        count: the most regions of a photo.
        precision: as for ``FrozenEncoder``.
        proposals: of which they are chosen. Describing these is nearly all of the work; of fewer
            than 300 (bottom-up attention's) fewer regions outlive NMS.

    Raises:
        UserError: the weights are not those of a C4 detector.
    """

    def __init__(
        self, weights: Weights, count: int, precision: str = "auto", proposals: int = PROPOSALS
    ) -> None:
        super().__init__()
        self.device = choose_device()
        self.dtype = choose_precision(precision, self.device)
        refuse_tf32(self.dtype)
        self.channels, self.count = weights.architecture.channels, count
        self.proposals = proposals
        self.pixels = Pixels(weights.architecture)
        state = {k: v for k, v in weights.state.items() if not k.startswith(UNUSED)}
        cfg = _config_of(state, weights)
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = self.proposals
        self.model: Any = build_model(cfg)
        load_strictly(self.model, state, weights.name)
        fold_norms(self.model)
        self.requires_grad_(False).eval()
        self.model.to(self.device, self.dtype, memory_format=torch.channels_last)
        head, predictor = self.model.proposal_generator.rpn_head, self.model.roi_heads.box_predictor
        for layer in (head.objectness_logits, head.anchor_deltas, predictor.cls_score):
            layer.float().register_forward_pre_hook(lambda _, given: (given[0].float(),))
        self.model.proposal_generator.anchor_generator.float()
        self.pixels.to(self.device)

    @torch.inference_mode()
    def forward(self, pixels_BHW3: Tensor) -> list[dict[str, Tensor]]:
        """Find and describe the regions of photos of one size.

        Args:
            pixels_BHW3: (B, H, W, 3), uint8, RGB.

        Returns:
            For each photo, best first, of N regions, at least one: grid_map (C, 1, N) float32;
            boxes_N4 float32 x1, y1, x2, y2 as fractions of the photo's sides; classes_N int64;
            scores_N float32.
        """
        pixels_B3HW = self.pixels(pixels_BHW3.to(self.device), self.dtype)
        height, width = pixels_B3HW.shape[2:]
        images = ImageList(pixels_B3HW, [(height, width)] * len(pixels_B3HW))
        features = self.model.backbone(pixels_B3HW)
        proposals, _ = self.model.proposal_generator(images, features)
        sides_4 = torch.tensor([width, height, width, height], device=self.device).float()
        found = []
        for map_CHW, proposed in zip(features["res4"].float(), proposals, strict=True):
            boxes_R4 = proposed.proposal_boxes.tensor
            if not len(boxes_R4):  # the RPN's were all empty: the photo itself
                boxes_R4 = sides_4[None] * torch.tensor([0.0, 0, 1, 1], device=self.device)
            features_RC = self._describe(map_CHW, boxes_R4)
            logits_RK = self.model.roi_heads.box_predictor.cls_score(features_RC)
            scores_RK = logits_RK.softmax(dim=1)[:, :-1]  # the last class is the background
            places_N, classes_N = best_regions(boxes_R4, scores_RK, self.count)
            found.append(
                {
                    "grid_map": features_RC[places_N].T[:, None],
                    "boxes_N4": (boxes_R4[places_N] / sides_4).clamp(0, 1),
                    "classes_N": classes_N,
                    "scores_N": scores_RK[places_N, classes_N],
                }
            )
        return found

    def _describe(self, map_CHW: Tensor, boxes_R4: Tensor) -> Tensor:
        """The features (R, C) of boxes, float32."""
        heads, parts = self.model.roi_heads, []
        contiguous_1CHW = map_CHW[None].contiguous()
        for boxes_N4 in boxes_R4.split(BOXES_AT_ONCE):
            pooled = heads.pooler([contiguous_1CHW], [Boxes(boxes_N4)])
            pooled = pooled.to(self.dtype, memory_format=torch.channels_last)
            parts.append(heads.res5(pooled).float().mean(dim=(2, 3)))
        return torch.cat(parts)


def best_regions(boxes_R4: Tensor, scores_RK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The boxes with the highest score that survives NMS in its class (Anderson et al., 2018).

    Args:
        boxes_R4: proposals.
        scores_RK: of K classes.
        count: the most to choose.

    Returns:
        places_N, best first, and classes_N: N is at least 1 and at most ``count``.
    """
    classes = scores_RK.shape[1]
    overlaps_RR = (box_iou(boxes_R4, boxes_R4) > NMS_THRESHOLD).cpu().numpy()
    # as bits of integers: pairs are many, and looked at in the order of their score
    overlapping = [sum(1 << int(j) for j in np.flatnonzero(row)) for row in overlaps_RR]
    order = scores_RK.flatten().argsort(descending=True, stable=True).cpu().numpy()
    kept: dict[int, int] = defaultdict(int)
    chosen: dict[int, int] = {}
    for first in range(0, len(order), 4096):
        for place, category in zip(
            *(part.tolist() for part in np.divmod(order[first : first + 4096], classes)),
            strict=True,
        ):
            if overlapping[place] & kept[category]:
                continue
            kept[category] |= 1 << place
            chosen.setdefault(place, category)
            if len(chosen) == min(count, len(boxes_R4)):
                break
        else:
            continue
        break
    places_N, classes_N = torch.tensor(list(chosen.items()), device=boxes_R4.device).unbind(1)
    return places_N, classes_N


def _config_of(state: dict[str, Tensor], weights: Weights) -> CfgNode:
    """The configuration that a detector's weights fit."""
    try:
        classes = state["roi_heads.box_predictor.cls_score.weight"].shape[0] - 1
        deltas = state["roi_heads.box_predictor.bbox_pred.weight"].shape[0]
        hidden = state["proposal_generator.rpn_head.conv.weight"].shape[0]
        anchors = state["proposal_generator.rpn_head.objectness_logits.weight"].shape[0]
        _ = state["roi_heads.res5.0.conv1.weight"]
    except KeyError as error:
        raise UserError(
            f"{weights.name} is no C4 detector: it has no {error.args[0]}. Regions need a Faster "
            "R-CNN whose box head is res5 (Detectron2's faster_rcnn_*_C4, or `gridvlp "
            "train-extractor --regions`); an encoder of grids has none."
        ) from error
    if anchors not in ANCHOR_SIZES:
        raise UserError(
            f"{weights.name} has {anchors} anchors at a place; known are "
            f"{' and '.join(map(str, ANCHOR_SIZES))}."
        )
    cfg = c4_config(weights.architecture, classes)
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = deltas == 4
    cfg.MODEL.RPN.CONV_DIMS = [hidden]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [ANCHOR_SIZES[anchors]]
    cfg.MODEL.DEVICE = "cpu"  # where it is folded; then it is moved
    return cfg
