"""From a configuration to a model: the one constructor of every detector.

Parts are made in the order of the forward pass, but for the C4 mask head: their random initial weights depend on it.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any, TypeVar, cast, overload

import torch
from torch import nn

from twostage.data.stuff import STRIDE
from twostage.errors import UsageError
from twostage.models.backbones.backbone import Backbone, BackboneConfig
from twostage.models.backbones.fpn import FPNConfig, PyramidConfig, feature_pyramid, pyramid
from twostage.models.backbones.provided import ProvidedBackbone, ProvidedConfig
from twostage.models.backbones.timm import TimmConfig
from twostage.models.config import DetectorConfig, OneStageConfig, StagewiseConfig, TwoStageConfig
from twostage.models.configure import with_timm
from twostage.models.heads.bodies import Res5Config
from twostage.models.heads.box import Head
from twostage.models.heads.cascade import Cascade, stage_configs
from twostage.models.heads.hybrid_task_cascade import HybridTaskCascade, SemanticRegions
from twostage.models.heads.mask import BoxAndMaskHead
from twostage.models.heads.retinanet import RetinaNetHead
from twostage.models.heads.semantic import SemanticBranch
from twostage.models.image import IMAGENET_MEAN, IMAGENET_STD
from twostage.models.one_stage import OneStage
from twostage.models.proposals.anchors import AnchorConfig, Anchors
from twostage.models.proposals.rpn import RPN
from twostage.models.rcnn import WarpConfig, WarpedRegions, WholeImage
from twostage.models.regions.pooling import AlignedRegions, RoIAlignConfig, RoIPoolConfig
from twostage.models.sppnet import ImageScales, PyramidRegions
from twostage.models.stagewise import SVMHead
from twostage.models.two_stage import TwoStage

Model = TwoStage | OneStage
C = TypeVar("C", bound=DetectorConfig)


@overload
def build(
    config: TwoStageConfig | StagewiseConfig, num_classes: int, backbone: nn.Module | None = None
) -> TwoStage: ...


@overload
def build(config: OneStageConfig, num_classes: int, backbone: nn.Module | None = None) -> OneStage: ...


def build(config: DetectorConfig, num_classes: int, backbone: nn.Module | None = None) -> Model:
    """The detector of a configuration for so many classes, with random weights.

    A copy of `backbone` takes the place of the configuration's: any module that maps images to feature maps, with
    attributes `channels` and `strides` (see `backbones.provided`); the neck stays as configured. Raises UsageError
    where components contradict each other.
    """
    config = with_backbone(config, backbone)
    if isinstance(config.backbone, TimmConfig):
        neck = getattr(config, "neck", None)
        if neck is None or (isinstance(neck, PyramidConfig) and neck.kind in ("single", "image")):
            raise UsageError(
                f"backbone: timm's {config.backbone.name} has several maps, and this model has no pyramid for them. "
                "Choose a *_fpn model."
            )
    provided = None if backbone is None else ProvidedBackbone(_copy(backbone))
    if provided is not None and len(provided.channels) > 1 and getattr(config, "neck", None) is None:
        raise UsageError(
            f"backbone: {type(backbone).__name__} returns {len(provided.channels)} maps; this model has no pyramid: "
            "it needs a backbone with a single map. Choose a *_fpn model, or one map."
        )
    if isinstance(config, StagewiseConfig):
        return _stagewise(config, num_classes, provided or config.backbone.build())
    if isinstance(config, TwoStageConfig):
        _require_consistent(config)
    anchors = config.anchors
    levels = 1 if anchors is None else len(anchors.sizes)
    net = _backbone(config.backbone, config.neck, levels, provided)
    channels, strides = cast(Backbone, net).channels[0], cast(Backbone, net).strides
    if isinstance(config, OneStageConfig):
        dense = RetinaNetHead(config.retinanet, config.anchors, channels, strides, num_classes)
        return OneStage(config, num_classes, backbone=net, head=dense)
    region_strides = getattr(net, "region_strides", strides)
    if config.mask is not None and config.mask.tower is None:
        # The order of the first version: a seed gives the weights that it gave then.
        head = _head(config, channels, region_strides, num_classes)
        rpn = _rpn(config, channels, strides)
    else:
        rpn = _rpn(config, channels, strides)
        head = _head(config, channels, region_strides, num_classes)
    return TwoStage(config, num_classes, backbone=net, rpn=rpn, head=head)


def _copy(module: nn.Module) -> nn.Module:
    """A deep copy; that of a `torch.fx.GraphModule` (`create_feature_extractor`) lacks the attributes set on it."""
    copy = deepcopy(module)
    for name in ("channels", "strides"):
        if hasattr(module, name) and not hasattr(copy, name):
            setattr(copy, name, getattr(module, name))
    return copy


def with_backbone(config: C, backbone: nn.Module | str | None) -> C:
    """The configuration with what is saved of a user's module as its backbone, or `timm:NAME`; without one as it is.

    A module in the place of a network of ours has images with ImageNet's mean and deviation, as torchvision's networks.
    """
    if isinstance(backbone, str):
        return with_timm(config, backbone)
    if backbone is None:
        return config
    own = ProvidedBackbone(backbone).config
    if isinstance(config.backbone, ProvidedConfig):
        return replace(config, backbone=own)
    image = replace(config.image, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return replace(config, backbone=own, image=image)  # type: ignore[arg-type]


def backbone_of(config: TwoStageConfig | OneStageConfig) -> nn.Module:
    """The backbone and its neck, with random weights, for the strides and shapes of its maps."""
    levels = 1 if config.anchors is None else len(config.anchors.sizes)
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
        return _backbone(config.backbone, config.neck, levels, None)


def anchors_of(config: TwoStageConfig | OneStageConfig, strides: tuple[int, ...]) -> Anchors:
    """The anchors of a configuration that has them, on maps of these strides.

    Raises UsageError where the sizes are not of so many levels.
    """
    return Anchors(_anchor_config(config), strides)


def _require_consistent(config: TwoStageConfig) -> None:
    """Raises UsageError where components contradict each other, or need one that is not there."""
    rpn, tower = config.rpn, config.mask.tower if config.mask is not None else None
    low, high = (0.0, 1.0) if config.stage is None else config.stage.background_iou
    faults = {
        "rpn and anchors belong together: give both or neither.": (rpn is None) != (config.anchors is None),
        "proposals.source is 'network', and there is no rpn.": rpn is None and config.proposals.source == "network",
        "give a stage, for a single box head, or a cascade of them.": (config.stage is None)
        == (config.cascade is None),
        "htc needs a cascade, and a mask head with a tower.": config.htc is not None
        and (config.cascade is None or tower is None),
        "htc needs cascade.masks=every: it connects the mask heads of all stages.": config.htc is not None
        and config.cascade is not None
        and config.cascade.masks != "every",
        "semantic needs htc.": config.semantic is not None and config.htc is None,
        "box_head.edges needs a single box head without masks, but for half_open.": config.box_head.edges != "half_open"
        and (config.cascade is not None or config.mask is not None),
        "a mask head without a tower needs box_head.body of Res5Config.": config.mask is not None
        and tower is None
        and not isinstance(config.box_head.body, Res5Config),
        f"region_background_iou is ({low:g}, {high:g}): give the lower IoU first; no region would be background.": (
            low >= high
        ),
        "proposal_gradient needs roi=align: RoIPool rounds corners to whole cells and has no gradient for them.": (
            rpn is not None and rpn.proposal_gradient and isinstance(config.roi, RoIPoolConfig)
        ),
    }
    for message, present in faults.items():
        if present:
            raise UsageError(message)


def _stagewise(config: StagewiseConfig, num_classes: int, body: nn.Module) -> TwoStage:
    """R-CNN or SPPnet; both read the last map of the network."""
    channels, stride = cast(Backbone, body).channels[-1], cast(Backbone, body).strides[-1]
    backbone: nn.Module
    regions: nn.Module
    if isinstance(config.regions, WarpConfig):
        size, context = config.regions.size, config.regions.context
        if 2 * context >= size:
            raise UsageError(
                f"regions.context is {context} on each side of windows of {size} pixels (regions.size), which leaves "
                "none for the box: give less than half of the size."
            )
        backbone, regions, bins = WholeImage(), WarpedRegions(config.regions, body), config.regions.bins**2
    else:
        backbone, regions = ImageScales(body, config.regions.sizes), PyramidRegions(config.regions, stride)
        bins = sum(side * side for side in config.regions.pyramid)
    layers, width = config.head.body.build(channels * bins, 1)
    head = SVMHead(config.head.scores, regions, layers, nn.Linear(width, num_classes + 1))
    return TwoStage(config, num_classes, backbone=backbone, rpn=None, head=head)


def _backbone(
    config: BackboneConfig, neck: FPNConfig | PyramidConfig | None, levels: int, provided: nn.Module | None
) -> nn.Module:
    """The network with its neck; `levels` is the number of sizes of an image pyramid."""
    whole, single = config.build, config.with_single_map().build
    if provided is not None:
        whole = single = lambda: provided
    if neck is None:
        return whole()
    if isinstance(neck, PyramidConfig):
        return pyramid(neck, whole, single, levels=levels)
    return feature_pyramid(neck, whole())


def _rpn(config: TwoStageConfig, channels: int, strides: tuple[int, ...]) -> RPN | None:
    if config.rpn is None:
        return None
    return RPN(config.rpn, _anchor_config(config), config.proposals, channels, strides)


def _anchor_config(config: TwoStageConfig | OneStageConfig) -> AnchorConfig:
    anchors = config.anchors
    assert anchors is not None
    if isinstance(config.neck, PyramidConfig) and config.neck.kind == "single":
        # The anchors of all levels on a single map.
        anchors = replace(anchors, sizes=(tuple(size for sizes in anchors.sizes for size in sizes),))
    return anchors


def _head(config: TwoStageConfig, channels: int, strides: tuple[int, ...], num_classes: int) -> Head:
    shape: dict[str, Any] = {"channels": channels, "strides": strides, "num_classes": num_classes}
    if config.cascade is None:
        assert config.stage is not None
        box = config.box_head.build(config.stage, config.roi, **shape)
        if config.mask is None:
            return box
        return BoxAndMaskHead(box, config.mask.build(config.box_head, **shape))
    stages = stage_configs(config.cascade, config.box_head)
    boxes = [head.build(stage, config.roi, **shape) for head, stage in stages]
    count = 0 if config.mask is None else 1 if config.cascade.masks == "first" else len(stages)
    masks = [config.mask.build(config.box_head, **shape) for _ in range(count)]  # type: ignore[union-attr]
    if config.htc is None:
        return Cascade(config.cascade, boxes, masks)
    assert config.mask is not None
    assert config.mask.tower is not None
    branch = None
    if config.semantic is not None and config.semantic.has_branch:
        branch = SemanticBranch(config.semantic, channels, strides)
        # Its embedding is added to the regions of every box and mask head.
        mask_roi = config.mask.tower.roi
        roi = config.roi if isinstance(config.roi, RoIAlignConfig) else replace(mask_roi, size=config.roi.size)
        if config.semantic.averaged:
            roi = mask_roi
        for box in boxes:
            box.regions = SemanticRegions(box.regions, AlignedRegions(roi, (STRIDE,)))
        for mask in masks:
            mask.regions = SemanticRegions(mask.regions, AlignedRegions(mask_roi, (STRIDE,)))
    return HybridTaskCascade(config.htc, config.cascade, boxes, masks, branch)
