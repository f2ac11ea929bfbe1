"""Mask R-CNN: a mask of every detection (He et al. 2017)."""

from dataclasses import replace
from typing import Any

from torch import nn

from twostage.errors import UsageError
from twostage.models.backbones import resnet
from twostage.models.backbones.norm import norm_layer
from twostage.models.fields import Fields
from twostage.models.heads.bodies import Stage5
from twostage.models.heads.box import BoxHead
from twostage.models.heads.mask import BoxesAndMasks, MaskHead, shared
from twostage.models.two_stage import TwoStage
from twostage.models.zoo.defaults import C4, MODERN, TINY_MASKS, V2
from twostage.models.zoo.parts import (
    four_convs,
    mask_head,
    on_normalised_resnet,
    on_resnet,
    on_tiny,
    pooling,
    require_top_down,
    rpn,
    two_layers,
)

# torchvision's way to lay a mask over the picture, for its weights.
_MODERN = replace(MODERN, mask_paste="rounded")
_C4 = replace(C4, mask_convs=0)
_V2 = replace(V2, mask_paste="rounded")


def mask_rcnn_resnet50_c4(num_classes: int, **fields: Any) -> TwoStage:
    """Mask R-CNN on ResNet-50's stage 4; stage 5 serves boxes and masks alike."""
    chosen = require_top_down(_C4.changed(fields))
    for name in ("mask_convs", "mask_size"):
        if getattr(chosen, name) != getattr(_C4, name):
            raise UsageError(f"{name} is of masks with regions of their own; here stage 5 serves both: leave it out")
    norm = norm_layer(chosen.norm, chosen.norm_eps)
    body = resnet.resnet50(norm, first=3, stages=3)
    box = BoxHead(chosen, pooling(chosen, body.strides), Stage5(norm), Stage5.channels, num_classes)
    # Its regions are those of the box head.
    mask = MaskHead(chosen, nn.Identity(), Stage5.channels, num_classes)
    return TwoStage(
        chosen,
        num_classes,
        backbone=body,
        rpn=rpn(chosen, body.channels[0], body.strides),
        head=BoxesAndMasks(box, mask, shared),
    )


def mask_rcnn_resnet18_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Mask R-CNN with ResNet-18 and a feature pyramid."""
    return on_resnet(_MODERN.changed(fields), num_classes, resnet.resnet18, _boxes_and_masks)


def mask_rcnn_resnet50_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Mask R-CNN with ResNet-50 and a feature pyramid; torchvision's `maskrcnn_resnet50_fpn`."""
    return on_resnet(_MODERN.changed(fields), num_classes, resnet.resnet50, _boxes_and_masks)


def mask_rcnn_resnet101_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Mask R-CNN with ResNet-101 and a feature pyramid."""
    return on_resnet(_MODERN.changed(fields), num_classes, resnet.resnet101, _boxes_and_masks)


def mask_rcnn_resnet50_fpn_v2(num_classes: int, **fields: Any) -> TwoStage:
    """Mask R-CNN with normalised pyramid and heads; torchvision's `maskrcnn_resnet50_fpn_v2`."""
    return on_normalised_resnet(_V2.changed(fields), num_classes, _normalised)


def mask_rcnn_tiny_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Mask R-CNN with the small net that learns from scratch in minutes on two processor cores."""
    return on_tiny(TINY_MASKS.changed(fields), num_classes, _boxes_and_masks)


def _boxes_and_masks(fields: Fields, channels: int, strides: tuple[int, ...], num_classes: int) -> nn.Module:
    return BoxesAndMasks(
        two_layers(fields, channels, strides, num_classes), mask_head(fields, channels, strides, num_classes)
    )


def _normalised(fields: Fields, channels: int, strides: tuple[int, ...], num_classes: int) -> nn.Module:
    norm = norm_layer(fields.norm, fields.norm_eps)
    return BoxesAndMasks(
        four_convs(fields, channels, strides, num_classes), mask_head(fields, channels, strides, num_classes, norm)
    )
