"""From a configuration to a model: the one constructor of every detector.

Parts are made in the order in which an image meets them, so that a seed gives the same weights.
"""

from dataclasses import replace
from functools import partial
from typing import cast, overload

from torch import nn

from twostage.data.stuff import STRIDE
from twostage.errors import UsageError
from twostage.models.backbones.fpn import FPN, FPNConfig, extra_levels
from twostage.models.backbones.mobilenet import MobileNetV3Config, MobileNetV3Large
from twostage.models.backbones.norm import norm_layer
from twostage.models.backbones.provided import ProvidedBackbone, ProvidedConfig
from twostage.models.backbones.pyramids import PyramidConfig, pyramid
from twostage.models.backbones.resnet import ResNetConfig, resnet
from twostage.models.backbones.tiny import TinyConfig, tiny
from twostage.models.backbones.vgg import VGG16, VGG16Config
from twostage.models.backbones.zf import ZF
from twostage.models.config import BackboneConfig, DetectorConfig, OneStageConfig, StagewiseConfig, TwoStageConfig
from twostage.models.heads.bodies import Res5Head, TwoMLPHead, body
from twostage.models.heads.box import BoxHead, BoxHeadConfig, StageConfig
from twostage.models.heads.cascade import Cascade, stage_configs
from twostage.models.heads.hybrid_task_cascade import HybridTaskCascade, SemanticRegions
from twostage.models.heads.mask import BoxAndMaskHead, MaskConfig, MaskHead, own_pooler, shared_res5
from twostage.models.heads.retinanet import RetinaNetHead
from twostage.models.heads.semantic import SemanticBranch
from twostage.models.one_stage import OneStage
from twostage.models.proposals.anchors import AnchorConfig
from twostage.models.proposals.rpn import RPN
from twostage.models.rcnn import WarpConfig, WarpedRegions, WholeImage
from twostage.models.regions.pooling import AlignedRegions, RoIAlignConfig, RoIPoolConfig, pooler
from twostage.models.sppnet import ImageScales, PyramidRegions
from twostage.models.stagewise import SVMHead
from twostage.models.two_stage import TwoStage

Model = TwoStage | OneStage


@overload
def build(
    config: TwoStageConfig | StagewiseConfig, num_classes: int, backbone: nn.Module | None = None
) -> TwoStage: ...


@overload
def build(config: OneStageConfig, num_classes: int, backbone: nn.Module | None = None) -> OneStage: ...


def build(config: DetectorConfig, num_classes: int, backbone: nn.Module | None = None) -> Model:
    """The detector of a configuration for so many classes, with random weights.

    `backbone` takes the place of the configuration's: any module that maps images to feature maps, with attributes
    `channels` and `strides` (see `backbones.provided`); the neck stays as configured. Raises UsageError where components
    contradict each other.
    """
    if backbone is not None:
        wrapped = backbone if isinstance(backbone, ProvidedBackbone) else ProvidedBackbone(backbone)
        config = replace(config, backbone=wrapped.config)
        return _assemble(config, num_classes, wrapped)
    if isinstance(config.backbone, ProvidedConfig):
        raise UsageError(
            f"This model has a backbone of its user's own, {config.backbone.name}: give the module again by backbone=."
        )
    return _assemble(config, num_classes, None)


def _assemble(config: DetectorConfig, num_classes: int, provided: nn.Module | None) -> Model:
    if isinstance(config, StagewiseConfig):
        return _stagewise(config, num_classes, _body(config.backbone, provided))
    anchors = config.anchors
    levels = 1 if anchors is None else len(anchors.sizes)
    net = _backbone(config.backbone, config.neck, levels, provided)
    channels, strides = net.channels[0], net.strides  # type: ignore[union-attr, index]
    if isinstance(config, OneStageConfig):
        head = RetinaNetHead(config.retinanet, config.anchors, channels, strides, num_classes)
        return OneStage(config, num_classes, backbone=net, head=head)
    rpn = None
    if config.rpn is not None:
        if config.rpn.proposal_gradient and isinstance(config.roi, RoIPoolConfig):
            raise UsageError(
                "proposal_gradient needs roi=align: RoIPool rounds corners to whole cells, and has no gradient for them."
            )
        assert anchors is not None
        if isinstance(config.neck, PyramidConfig) and config.neck.kind == "single":
            anchors = _on_one_level(anchors)
        rpn = RPN(config.rpn, anchors, config.proposals, channels, strides)
    region_strides = getattr(net, "region_strides", strides)
    return TwoStage(
        config, num_classes, backbone=net, rpn=rpn, head=_head(config, channels, region_strides, num_classes)
    )


def _stagewise(config: StagewiseConfig, num_classes: int, body: nn.Module) -> TwoStage:
    """R-CNN or SPPnet; both read the last map of the network."""
    channels, stride = cast(tuple[int, ...], body.channels)[-1], cast(tuple[int, ...], body.strides)[-1]
    backbone: nn.Module
    regions: nn.Module
    if isinstance(config.regions, WarpConfig):
        backbone, regions, bins = WholeImage(), WarpedRegions(config.regions, body), config.regions.bins**2
    else:
        backbone, regions = ImageScales(body, config.regions.sizes), PyramidRegions(config.regions, stride)
        bins = sum(side * side for side in config.regions.pyramid)
    layers = TwoMLPHead(channels * bins, 1, config.head.body.channels, config.head.body.dropout, config.head.body.ranks)
    classes = nn.Linear(config.head.body.channels, num_classes + 1)
    head = SVMHead(config.head.scores, regions, layers, classes)
    return TwoStage(config, num_classes, backbone=backbone, rpn=None, head=head)


def _backbone(
    config: BackboneConfig, neck: FPNConfig | PyramidConfig | None, levels: int, provided: nn.Module | None
) -> nn.Module:
    """The network with its neck; `levels` is the number of sizes of an image pyramid."""
    whole = partial(_body, config, provided)
    if neck is None:
        return whole()
    if isinstance(neck, PyramidConfig):
        return pyramid(neck, whole, partial(_body, _single(config), provided), levels=levels)
    norm = None if neck.norm is None else norm_layer(neck.norm)
    return FPN(whole(), neck.channels, norm, extra=extra_levels(neck.extra, neck.channels))


def _body(config: BackboneConfig, provided: nn.Module | None) -> nn.Module:
    if provided is not None:
        return provided
    if isinstance(config, ResNetConfig):
        return resnet(config)
    if isinstance(config, TinyConfig):
        return tiny(config)
    if isinstance(config, MobileNetV3Config):
        return MobileNetV3Large(norm_layer(config.norm))
    return VGG16() if isinstance(config, VGG16Config) else ZF()


def _single(config: BackboneConfig) -> BackboneConfig:
    """The same network up to its map of stride 16 alone."""
    if isinstance(config, ResNetConfig):
        return replace(config, first=3, last=3)
    return replace(config, single=True) if isinstance(config, TinyConfig) else config


def _on_one_level(config: AnchorConfig) -> AnchorConfig:
    """The anchors of all levels on a single map."""
    return replace(config, sizes=(tuple(size for sizes in config.sizes for size in sizes),))


def _head(config: TwoStageConfig, channels: int, strides: tuple[int, ...], num_classes: int) -> nn.Module:
    box_of = partial(_box_head, config.roi, channels=channels, strides=strides, num_classes=num_classes)
    mask_of = partial(_mask_head, box_head=config.box_head, channels=channels, strides=strides, num_classes=num_classes)
    if config.cascade is None:
        assert config.stage is not None
        box = box_of(config.box_head, config.stage)
        if config.mask is None:
            return box
        return BoxAndMaskHead(box, mask_of(config.mask), own_pooler if config.mask.tower else shared_res5)
    stages = stage_configs(config.cascade, config.box_head)
    boxes = [box_of(*stage) for stage in stages]
    masks = [] if config.mask is None else [mask_of(config.mask) for _ in stages]
    if config.htc is None:
        return Cascade(config.cascade, boxes, masks)
    assert config.mask is not None
    assert config.mask.tower is not None
    semantic = config.semantic if config.semantic is not None and config.semantic.has_branch else None
    branch = None if semantic is None else _semantic(config, boxes, masks, channels, strides)
    weight = 0.0 if semantic is None else semantic.loss_weight
    return HybridTaskCascade(config.htc, config.cascade, boxes, masks, branch, semantic_loss_weight=weight)


def _semantic(
    config: TwoStageConfig, boxes: list[BoxHead], masks: list[MaskHead], channels: int, strides: tuple[int, ...]
) -> SemanticBranch:
    """The semantic branch, whose embedding is added to the regions of every box and mask head."""
    assert config.semantic is not None
    assert config.mask is not None
    assert config.mask.tower is not None
    branch = SemanticBranch(config.semantic, channels, strides)
    roi = config.roi if isinstance(config.roi, RoIAlignConfig) else replace(config.mask.tower.roi, size=config.roi.size)
    for box in boxes:
        box.regions = SemanticRegions(box.regions, AlignedRegions(roi, (STRIDE,)))
    for mask in masks:
        mask.regions = SemanticRegions(mask.regions, AlignedRegions(config.mask.tower.roi, (STRIDE,)))
    return branch


def _box_head(
    roi: RoIAlignConfig | RoIPoolConfig,
    config: BoxHeadConfig,
    stage: StageConfig,
    *,
    channels: int,
    strides: tuple[int, ...],
    num_classes: int,
) -> BoxHead:
    layers, width = body(config.body, channels, roi.size)
    return BoxHead(config, stage, pooler(roi, strides), layers, width, num_classes)


def _mask_head(
    config: MaskConfig, *, box_head: BoxHeadConfig, channels: int, strides: tuple[int, ...], num_classes: int
) -> MaskHead:
    """A mask head with regions of its own, or on the box head's res5 features."""
    regions = nn.Identity() if config.tower is None else AlignedRegions(config.tower.roi, strides)
    return MaskHead(
        config,
        regions,
        Res5Head.channels if config.tower is None else channels,
        num_classes,
        region_batch=box_head.region_batch,
        positive_fraction=box_head.region_positive_fraction,
    )
