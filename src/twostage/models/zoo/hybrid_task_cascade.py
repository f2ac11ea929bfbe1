"""Hybrid Task Cascade: box and mask heads interleaved, and a semantic branch (Chen et al. 2019)."""

from dataclasses import replace
from typing import Any

from torch import nn

from twostage.data.stuff import STRIDE
from twostage.errors import UsageError
from twostage.models.backbones import resnet
from twostage.models.fields import Fields
from twostage.models.heads.cascade import stage_fields
from twostage.models.heads.hybrid_task_cascade import HybridTaskCascade, WithContext
from twostage.models.heads.semantic import SemanticBranch
from twostage.models.regions.pooling import AlignedRegions
from twostage.models.two_stage import TwoStage
from twostage.models.zoo.defaults import MODERN, TINY_MASKS
from twostage.models.zoo.parts import mask_head, on_resnet, on_tiny, two_layers

_MODERN = replace(MODERN, class_agnostic=True, semantic_classes="data")
_TINY = replace(TINY_MASKS, semantic_classes="data")


def hybrid_task_cascade_resnet18_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Hybrid Task Cascade with ResNet-18 and a feature pyramid."""
    return on_resnet(_MODERN.changed(fields), num_classes, resnet.resnet18, _htc)


def hybrid_task_cascade_resnet50_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Hybrid Task Cascade with ResNet-50 and a feature pyramid, the paper's."""
    return on_resnet(_MODERN.changed(fields), num_classes, resnet.resnet50, _htc)


def hybrid_task_cascade_resnet101_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Hybrid Task Cascade with ResNet-101 and a feature pyramid."""
    return on_resnet(_MODERN.changed(fields), num_classes, resnet.resnet101, _htc)


def hybrid_task_cascade_tiny_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Hybrid Task Cascade with the small net that learns from scratch in minutes on two processor cores."""
    return on_tiny(_TINY.changed(fields), num_classes, _htc)


def _htc(fields: Fields, channels: int, strides: tuple[int, ...], num_classes: int) -> nn.Module:
    classes = fields.semantic_classes
    stages = stage_fields(fields)
    boxes = [two_layers(own, channels, strides, num_classes) for own in stages]
    masks = [mask_head(own, channels, strides, num_classes) for own in stages]
    if not isinstance(classes, int) or not classes:  # "data", and no data to say how many
        return HybridTaskCascade(fields, boxes, masks, None)
    if STRIDE not in strides:
        raise UsageError(
            f"The semantic branch needs a map of stride {STRIDE}: leave pyramid out, or semantic_classes=0."
        )
    for head in boxes:
        head.regions = WithContext(head.regions, AlignedRegions(fields, (STRIDE,), fields.roi_size))
    for mask in masks:
        mask.regions = WithContext(mask.regions, AlignedRegions(fields, (STRIDE,), fields.mask_size))
    return HybridTaskCascade(fields, boxes, masks, SemanticBranch(channels, strides, classes, fields.semantic_convs))
