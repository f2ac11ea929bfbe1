"""Cascade R-CNN and Cascade Mask R-CNN: boxes refined three times (Cai and Vasconcelos 2018)."""

from dataclasses import replace
from typing import Any

from torch import nn

from twostage.models.backbones import resnet
from twostage.models.fields import Fields
from twostage.models.heads.cascade import Cascade, stage_fields
from twostage.models.two_stage import TwoStage
from twostage.models.zoo.defaults import MODERN, TINY, TINY_MASKS
from twostage.models.zoo.parts import mask_head, on_resnet, on_tiny, two_layers

_MODERN = replace(MODERN, class_agnostic=True)


def cascade_rcnn_resnet18_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Cascade R-CNN with ResNet-18 and a feature pyramid."""
    return on_resnet(_MODERN.changed(fields), num_classes, resnet.resnet18, _boxes)


def cascade_rcnn_resnet50_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Cascade R-CNN with ResNet-50 and a feature pyramid."""
    return on_resnet(_MODERN.changed(fields), num_classes, resnet.resnet50, _boxes)


def cascade_rcnn_resnet101_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Cascade R-CNN with ResNet-101 and a feature pyramid, the paper's."""
    return on_resnet(_MODERN.changed(fields), num_classes, resnet.resnet101, _boxes)


def cascade_rcnn_tiny_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Cascade R-CNN with the small net that learns from scratch in minutes on two processor cores."""
    return on_tiny(TINY.changed(fields), num_classes, _boxes)


def cascade_mask_rcnn_resnet18_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Cascade Mask R-CNN with ResNet-18 and a feature pyramid."""
    return on_resnet(_MODERN.changed(fields), num_classes, resnet.resnet18, _boxes_and_masks)


def cascade_mask_rcnn_resnet50_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Cascade Mask R-CNN with ResNet-50 and a feature pyramid."""
    return on_resnet(_MODERN.changed(fields), num_classes, resnet.resnet50, _boxes_and_masks)


def cascade_mask_rcnn_resnet101_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Cascade Mask R-CNN with ResNet-101 and a feature pyramid."""
    return on_resnet(_MODERN.changed(fields), num_classes, resnet.resnet101, _boxes_and_masks)


def cascade_mask_rcnn_tiny_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """Cascade Mask R-CNN with the small net."""
    return on_tiny(TINY_MASKS.changed(fields), num_classes, _boxes_and_masks)


def _boxes(fields: Fields, channels: int, strides: tuple[int, ...], num_classes: int) -> nn.Module:
    return Cascade(fields, [two_layers(own, channels, strides, num_classes) for own in stage_fields(fields)])


def _boxes_and_masks(fields: Fields, channels: int, strides: tuple[int, ...], num_classes: int) -> nn.Module:
    stages = stage_fields(fields)
    return Cascade(
        fields,
        [two_layers(own, channels, strides, num_classes) for own in stages],
        [mask_head(own, channels, strides, num_classes) for own in stages],
    )
