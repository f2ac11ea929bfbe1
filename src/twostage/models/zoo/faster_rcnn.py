"""Faster R-CNN: a network proposes (Ren et al. 2015); with a feature pyramid on every level (Lin et al. 2017)."""

from dataclasses import replace
from typing import Any

from twostage.models.backbones import resnet
from twostage.models.backbones.fpn import FPN, EverySecond
from twostage.models.backbones.mobilenet import MobileNetV3Large
from twostage.models.backbones.norm import norm_layer
from twostage.models.backbones.vgg import VGG16
from twostage.models.backbones.zf import ZF
from twostage.models.fields import PAPER, Fields
from twostage.models.heads.bodies import Stage5
from twostage.models.heads.box import BoxHead
from twostage.models.two_stage import TwoStage
from twostage.models.zoo.defaults import C4, DC5, MOBILE, MOBILE_320, MODERN, TINY, TINY_SINGLE, V2
from twostage.models.zoo.parts import (
    four_convs,
    on_normalised_resnet,
    on_pyramid,
    on_resnet,
    on_tiny,
    pooling,
    require_top_down,
    rpn,
    single_map,
    tiny_single,
    two_layers,
)


def faster_rcnn_vgg16(num_classes: int, **fields: Any) -> TwoStage:
    """Faster R-CNN as in its paper: VGG16, RoIPool, fc6 and fc7 of 4096 (Ren et al. 2015)."""
    chosen = PAPER.changed(fields)
    return single_map(chosen, num_classes, VGG16())


def faster_rcnn_zf(num_classes: int, **fields: Any) -> TwoStage:
    """Faster R-CNN as in its paper, with the five-layer net of Zeiler and Fergus and RoIs of 6 x 6."""
    chosen = replace(PAPER, roi_size=6, rpn_channels=256, recipe="paper_zf").changed(fields)
    return single_map(chosen, num_classes, ZF())


def faster_rcnn_resnet50_c4(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-50 up to stage 4 for the map, stage 5 on every region (He et al. 2016, appendix A)."""
    chosen = require_top_down(C4.changed(fields))
    norm = norm_layer(chosen.norm, chosen.norm_eps)
    body = resnet.resnet50(norm, first=3, stages=3)
    return TwoStage(
        chosen,
        num_classes,
        backbone=body,
        rpn=rpn(chosen, body.channels[0], body.strides),
        head=BoxHead(chosen, pooling(chosen, body.strides), Stage5(norm), Stage5.channels, num_classes),
    )


def faster_rcnn_resnet50_dc5(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-50 with a dilated last stage for the map, fc6 and fc7 of 1024 (detectron2's "DC5")."""
    chosen = require_top_down(DC5.changed(fields))
    body = resnet.dilated(resnet.resnet50(norm_layer(chosen.norm, chosen.norm_eps), first=4))
    return TwoStage(
        chosen,
        num_classes,
        backbone=body,
        rpn=rpn(chosen, body.channels[0], body.strides),
        head=two_layers(chosen, body.channels[0], body.strides, num_classes),
    )


def faster_rcnn_resnet18_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-18 with a feature pyramid (Lin et al. 2017)."""
    return on_resnet(MODERN.changed(fields), num_classes, resnet.resnet18, two_layers)


def faster_rcnn_resnet34_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-34 with a feature pyramid (Lin et al. 2017)."""
    return on_resnet(MODERN.changed(fields), num_classes, resnet.resnet34, two_layers)


def faster_rcnn_resnet50_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-50 with a feature pyramid (Lin et al. 2017); torchvision's `fasterrcnn_resnet50_fpn`."""
    return on_resnet(MODERN.changed(fields), num_classes, resnet.resnet50, two_layers)


def faster_rcnn_resnet101_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-101 with a feature pyramid (Lin et al. 2017)."""
    return on_resnet(MODERN.changed(fields), num_classes, resnet.resnet101, two_layers)


def faster_rcnn_resnet50_fpn_v2(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-50 with normalised pyramid and a head of four convolutions (Li et al. 2021); torchvision's `_v2`."""
    return on_normalised_resnet(V2.changed(fields), num_classes, four_convs)


def faster_rcnn_mobilenet_v3_large_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """MobileNetV3-Large with a two-level pyramid; torchvision's model of that name."""
    return _mobilenet(MOBILE.changed(fields), num_classes)


def faster_rcnn_mobilenet_v3_large_320_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """The same for images of 320 pixels and 150 proposals: the quickest of the pretrained ones."""
    return _mobilenet(MOBILE_320.changed(fields), num_classes)


def faster_rcnn_tiny_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """A small net of our own that learns from scratch in minutes on two processor cores."""
    return on_tiny(TINY.changed(fields), num_classes, two_layers)


def faster_rcnn_tiny(num_classes: int, **fields: Any) -> TwoStage:
    """The small net with a single map of stride 16, as the detectors before pyramids have it."""
    chosen = TINY_SINGLE.changed(fields)
    return single_map(chosen, num_classes, tiny_single(norm_layer(chosen.norm, chosen.norm_eps)))


def _mobilenet(fields: Fields, num_classes: int) -> TwoStage:
    require_top_down(fields)
    backbone = FPN(MobileNetV3Large(norm_layer(fields.norm, fields.norm_eps)), 256, extra=EverySecond())
    return on_pyramid(fields, num_classes, backbone, two_layers)
