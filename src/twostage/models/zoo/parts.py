"""How the parts of a detector are put together: what all families share. A family adds its head."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from twostage.errors import UsageError
from twostage.models.backbones import resnet
from twostage.models.backbones.fpn import FPN, EverySecond
from twostage.models.backbones.norm import Norm, norm_layer
from twostage.models.backbones.pyramids import ImagePyramid, Levels, pyramid
from twostage.models.backbones.tiny import Tiny
from twostage.models.backbones.vgg import VGG16
from twostage.models.backbones.zf import ZF
from twostage.models.fields import Fields
from twostage.models.heads.bodies import ConvsAndLayer, TwoLayers
from twostage.models.heads.box import BoxHead
from twostage.models.heads.mask import MaskHead
from twostage.models.proposals.rpn import RPN
from twostage.models.regions.pooling import AlignedRegions, PooledRegions
from twostage.models.two_stage import TwoStage

Pyramid = FPN | Levels | ImagePyramid
MakeHead = Callable[[Fields, int, tuple[int, ...], int], nn.Module]
"""From fields, the channels and strides of the maps that regions read, and K, to a second stage."""


def single_map(fields: Fields, num_classes: int, backbone: VGG16 | ZF | Tiny) -> TwoStage:
    """A detector on one map: fc6 and fc7 behind its pooled regions."""
    require_top_down(fields)
    channels = backbone.channels[0]
    return TwoStage(
        fields,
        num_classes,
        backbone=backbone,
        rpn=rpn(fields, channels, backbone.strides),
        head=two_layers(fields, channels, backbone.strides, num_classes),
    )


def on_pyramid(fields: Fields, num_classes: int, backbone: Pyramid, head: MakeHead) -> TwoStage:
    """A detector on several levels: the proposal network reads every one, the regions those of the body."""
    return TwoStage(
        fields,
        num_classes,
        backbone=backbone,
        rpn=rpn(fields, backbone.channels[0], backbone.strides),
        head=head(fields, backbone.channels[0], backbone.region_strides, num_classes),
    )


def on_resnet(fields: Fields, num_classes: int, body: Callable[..., resnet.ResNet], head: MakeHead) -> TwoStage:
    """A detector on a ResNet's pyramid of 256 channels, with an extra level for the proposal network."""
    fields = with_levels(fields)
    norm = norm_layer(fields.norm, fields.norm_eps)
    backbone = pyramid(
        fields.pyramid,
        lambda: body(norm),
        lambda: body(norm, first=3, stages=3),
        256,
        extra=True,
        levels=len(fields.anchor_sizes),
    )
    return on_pyramid(fields, num_classes, backbone, head)


def on_normalised_resnet(fields: Fields, num_classes: int, head: MakeHead) -> TwoStage:
    """A detector on ResNet-50's pyramid with normalised layers, as torchvision's `_v2`."""
    require_top_down(fields)
    norm = norm_layer(fields.norm, fields.norm_eps)
    return on_pyramid(fields, num_classes, FPN(resnet.resnet50(norm), 256, norm, extra=EverySecond()), head)


def on_tiny(fields: Fields, num_classes: int, head: MakeHead) -> TwoStage:
    """A detector on the small net's pyramid of 64 channels."""
    fields = with_levels(fields)
    norm = norm_layer(fields.norm, fields.norm_eps)
    backbone = pyramid(
        fields.pyramid,
        lambda: Tiny(norm),
        lambda: tiny_single(norm),
        64,
        extra=False,
        levels=len(fields.anchor_sizes),
    )
    return on_pyramid(fields, num_classes, backbone, head)


def tiny_single(norm: Norm) -> Tiny:
    """The small net up to its map of stride 16."""
    return Tiny(norm, (32, 64, 128), (1, 1, 1), first=2)


def two_layers(fields: Fields, channels: int, strides: tuple[int, ...], num_classes: int) -> BoxHead:
    """Fast R-CNN's head: fc6 and fc7 behind the pooled regions. Raises UsageError where convolutions are asked for."""
    if fields.head_convs:
        raise UsageError(f"head_convs is {fields.head_convs}: only *_fpn_v2 have them in the head, leave it out")
    body = TwoLayers(channels, fields.roi_size, fields.head_channels, fields.dropout, fields.head_ranks)
    return BoxHead(fields, pooling(fields, strides), body, fields.head_channels, num_classes)


def four_convs(fields: Fields, channels: int, strides: tuple[int, ...], num_classes: int) -> BoxHead:
    """A head of convolutions and one layer."""
    norm = norm_layer(fields.norm, fields.norm_eps)
    body = ConvsAndLayer(channels, fields.roi_size, fields.head_convs, fields.head_channels, norm)
    return BoxHead(fields, pooling(fields, strides), body, fields.head_channels, num_classes)


def mask_head(
    fields: Fields, channels: int, strides: tuple[int, ...], num_classes: int, norm: Norm | None = None
) -> MaskHead:
    """A mask head with a pooling of its own, finer than the boxes'."""
    return MaskHead(fields, AlignedRegions(fields, strides, fields.mask_size), channels, num_classes, norm)


def rpn(fields: Fields, channels: int, strides: tuple[int, ...]) -> RPN | None:
    """The network that proposes, where proposals do not come from elsewhere."""
    return RPN(fields, channels, strides) if fields.proposals == "network" else None


def pooling(fields: Fields, strides: tuple[int, ...]) -> nn.Module:
    """The pooling of the field `roi`. Raises UsageError where it cannot do what other fields ask."""
    if fields.roi == "align":
        return AlignedRegions(fields, strides)
    if len(strides) > 1:
        raise UsageError(f"roi is 'pool', which reads a single map; this model has {len(strides)}: choose roi=align.")
    if fields.proposal_gradient:
        raise UsageError("proposal_gradient needs roi=align: RoIPool's corners are whole cells, and have no gradient.")
    return PooledRegions(fields, strides[0])


def require_top_down(fields: Fields) -> Fields:
    """Raises UsageError where another pyramid is asked of a model that has none to choose."""
    if fields.pyramid != "top_down":
        raise UsageError(f"pyramid is {fields.pyramid!r}, which this model has not: choose a ResNet's or tiny's *_fpn.")
    return fields


def with_levels(fields: Fields) -> Fields:
    """The same, but a single map has the anchors of all levels."""
    if fields.pyramid != "single":
        return fields
    return replace(fields, anchor_sizes=(tuple(size for sizes in fields.anchor_sizes for size in sizes),))
