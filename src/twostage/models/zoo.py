"""The named detectors: each a plain function that puts parts together. Every field of `Fields` is a keyword."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from twostage.errors import UsageError, nearest
from twostage.models.backbones import resnet
from twostage.models.backbones.fpn import FPN
from twostage.models.backbones.mobilenet import MobileNetV3Large
from twostage.models.backbones.norm import Norm, norm_layer
from twostage.models.backbones.pyramids import ImagePyramid, Levels, pyramid
from twostage.models.backbones.tiny import Tiny
from twostage.models.backbones.vgg import VGG16
from twostage.models.backbones.zf import ZF
from twostage.models.fields import FAST, PAPER, Fields
from twostage.models.heads.box import BoxHead, ConvsAndLayer, Stage5, TwoLayers
from twostage.models.proposals.rpn import RPN
from twostage.models.regions.pooling import AlignedRegions, PooledRegions
from twostage.models.two_stage import TwoStage

MODERN = Fields()
C4 = replace(
    MODERN,
    divisor=1,
    anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),),
    anchor_rounding="none",
    anchor_stride="fixed",
    rpn_top_train=12000,
    rpn_top_test=6000,
    roi_size=14,
    roi_sampling_ratio=0,
    roi_aligned=True,
)
V2 = replace(MODERN, norm="batch", rpn_convs=2, head_convs=4)
MOBILE = replace(MODERN, anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),) * 3, rpn_score_threshold=0.05)
MOBILE_320 = replace(MOBILE, size=320, max_size=640, rpn_top_test=150, rpn_keep_test=150)
TINY = replace(
    MODERN,
    size=320,
    max_size=640,
    norm="batch",
    anchor_sizes=((16.0,), (32.0,), (64.0,), (128.0,)),
    anchor_rounding="none",
    anchor_stride="fixed",
    rpn_top_train=500,
    rpn_top_test=300,
    rpn_keep_train=300,
    rpn_keep_test=300,
    rpn_batch=128,
    roi_aligned=True,
    region_batch=128,
    region_positive_fraction=0.5,
    head_channels=256,
    class_agnostic=True,
    # Worth 1.2 points of AP on the cells of the blood-cells validation split, which touch. With `nms` 0.5, what scores
    # 0.5 or more is what hard NMS keeps.
    soft_nms="linear",
    recipe="scratch",
)
TINY_SINGLE = replace(
    TINY,
    anchor_sizes=((16.0, 32.0, 64.0, 128.0),),
    rpn_top_train=2000,
    rpn_top_test=1000,
    roi="pool",
    # As the papers: a quarter of the regions positive, a box for every class.
    region_positive_fraction=0.25,
    class_agnostic=False,
)


def faster_rcnn_vgg16(num_classes: int, **fields: Any) -> TwoStage:
    """Faster R-CNN as in its paper: VGG16, RoIPool, fc6 and fc7 of 4096 (Ren et al. 2015)."""
    chosen = PAPER.changed(fields)
    return _single_map(chosen, num_classes, VGG16())


def faster_rcnn_zf(num_classes: int, **fields: Any) -> TwoStage:
    """Faster R-CNN as in its paper, with the five-layer net of Zeiler and Fergus and RoIs of 6 x 6."""
    chosen = replace(PAPER, roi_size=6, rpn_channels=256, recipe="paper_zf").changed(fields)
    return _single_map(chosen, num_classes, ZF())


def fast_rcnn_vgg16(num_classes: int, **fields: Any) -> TwoStage:
    """Fast R-CNN as in its paper, with VGG16 and selective search's proposals (Girshick 2015)."""
    return _single_map(FAST.changed(fields), num_classes, VGG16())


def fast_rcnn_zf(num_classes: int, **fields: Any) -> TwoStage:
    """Fast R-CNN with the five-layer net of Zeiler and Fergus, on selective search's proposals."""
    return _single_map(replace(FAST, roi_size=6, recipe="paper_fast_zf").changed(fields), num_classes, ZF())


def faster_rcnn_resnet50_c4(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-50 up to stage 4 for the map, stage 5 on every region (He et al. 2016, appendix A)."""
    chosen = _require_top_down(C4.changed(fields))
    norm = norm_layer(chosen.norm, chosen.norm_eps)
    body = resnet.resnet50(norm, first=3, stages=3)
    return TwoStage(
        chosen,
        num_classes,
        backbone=body,
        rpn=_rpn(chosen, body.channels[0], body.strides),
        regions=_regions(chosen, body.strides),
        head=BoxHead(chosen, Stage5(norm), Stage5.channels, num_classes),
    )


def faster_rcnn_resnet18_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-18 with a feature pyramid (Lin et al. 2017)."""
    return _resnet_fpn(MODERN.changed(fields), num_classes, resnet.resnet18)


def faster_rcnn_resnet34_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-34 with a feature pyramid (Lin et al. 2017)."""
    return _resnet_fpn(MODERN.changed(fields), num_classes, resnet.resnet34)


def faster_rcnn_resnet50_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-50 with a feature pyramid (Lin et al. 2017); torchvision's `fasterrcnn_resnet50_fpn`."""
    return _resnet_fpn(MODERN.changed(fields), num_classes, resnet.resnet50)


def faster_rcnn_resnet101_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-101 with a feature pyramid (Lin et al. 2017)."""
    return _resnet_fpn(MODERN.changed(fields), num_classes, resnet.resnet101)


def faster_rcnn_resnet50_fpn_v2(num_classes: int, **fields: Any) -> TwoStage:
    """ResNet-50 with normalised pyramid and a head of four convolutions (Li et al. 2021); torchvision's `_v2`."""
    chosen = _require_top_down(V2.changed(fields))
    norm = norm_layer(chosen.norm, chosen.norm_eps)
    backbone = FPN(resnet.resnet50(norm), 256, norm)
    body = ConvsAndLayer(256, chosen.roi_size, chosen.head_convs, chosen.head_channels, norm)
    return _pyramid(chosen, num_classes, backbone, BoxHead(chosen, body, chosen.head_channels, num_classes))


def faster_rcnn_mobilenet_v3_large_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """MobileNetV3-Large with a two-level pyramid; torchvision's model of that name."""
    return _mobilenet(MOBILE.changed(fields), num_classes)


def faster_rcnn_mobilenet_v3_large_320_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """The same for images of 320 pixels and 150 proposals: the quickest of the pretrained ones."""
    return _mobilenet(MOBILE_320.changed(fields), num_classes)


def faster_rcnn_tiny_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """A small net of our own that learns from scratch in minutes on two processor cores."""
    chosen = _with_levels(TINY.changed(fields))
    norm = norm_layer(chosen.norm, chosen.norm_eps)
    backbone = pyramid(
        chosen.pyramid,
        lambda: Tiny(norm),
        lambda: tiny_single(norm),
        64,
        extra=False,
        levels=len(chosen.anchor_sizes),
    )
    return _pyramid(chosen, num_classes, backbone, _two_layers(chosen, 64, num_classes))


def faster_rcnn_tiny(num_classes: int, **fields: Any) -> TwoStage:
    """The small net with a single map of stride 16, as the detectors before pyramids have it."""
    chosen = TINY_SINGLE.changed(fields)
    return _single_map(chosen, num_classes, tiny_single(norm_layer(chosen.norm, chosen.norm_eps)))


def fast_rcnn_tiny(num_classes: int, **fields: Any) -> TwoStage:
    """Fast R-CNN with the small net of a single map, on selective search's proposals."""
    chosen = replace(TINY_SINGLE, proposals="selective_search", region_background_iou=(0.1, 0.5)).changed(fields)
    return _single_map(chosen, num_classes, tiny_single(norm_layer(chosen.norm, chosen.norm_eps)))


ZOO: dict[str, Callable[..., TwoStage]] = {
    function.__name__: function
    for function in (
        faster_rcnn_vgg16,
        faster_rcnn_zf,
        fast_rcnn_vgg16,
        fast_rcnn_zf,
        faster_rcnn_resnet50_c4,
        faster_rcnn_resnet18_fpn,
        faster_rcnn_resnet34_fpn,
        faster_rcnn_resnet50_fpn,
        faster_rcnn_resnet101_fpn,
        faster_rcnn_resnet50_fpn_v2,
        faster_rcnn_mobilenet_v3_large_fpn,
        faster_rcnn_mobilenet_v3_large_320_fpn,
        faster_rcnn_tiny_fpn,
        faster_rcnn_tiny,
        fast_rcnn_tiny,
    )
}


def build(name: str, num_classes: int, **fields: Any) -> TwoStage:
    """The detector of that name for so many classes, with some fields changed.

    Raises UsageError for an unknown name; the nearest is shown.
    """
    require_model(name)
    return ZOO[name](num_classes, **fields)


def require_model(name: str) -> None:
    """Raises UsageError for what is no detector of the zoo; the nearest is shown."""
    if name not in ZOO:
        raise UsageError(f"There is no model {name!r}. {nearest(name, ZOO)}")


def _single_map(fields: Fields, num_classes: int, backbone: VGG16 | ZF | Tiny) -> TwoStage:
    _require_top_down(fields)
    channels = backbone.channels[0]
    return TwoStage(
        fields,
        num_classes,
        backbone=backbone,
        rpn=_rpn(fields, channels, backbone.strides),
        regions=_regions(fields, backbone.strides),
        head=_two_layers(fields, channels, num_classes),
    )


def _require_top_down(fields: Fields) -> Fields:
    """Raises UsageError where another pyramid is asked of a model that has none to choose."""
    if fields.pyramid != "top_down":
        raise UsageError(f"pyramid is {fields.pyramid!r}, which this model has not: choose a ResNet's or tiny's *_fpn.")
    return fields


def _rpn(fields: Fields, channels: int, strides: tuple[int, ...]) -> RPN | None:
    """The network that proposes, where proposals do not come from elsewhere."""
    return RPN(fields, channels, strides) if fields.proposals == "network" else None


def _regions(fields: Fields, strides: tuple[int, ...]) -> nn.Module:
    """The pooling of the field `roi`. Raises UsageError where it cannot do what other fields ask."""
    if fields.roi == "align":
        return AlignedRegions(fields, strides)
    if len(strides) > 1:
        raise UsageError(f"roi is 'pool', which reads a single map; this model has {len(strides)}: choose roi=align.")
    if fields.proposal_gradient:
        raise UsageError("proposal_gradient needs roi=align: RoIPool's corners are whole cells, and have no gradient.")
    return PooledRegions(fields, strides[0])


def tiny_single(norm: Norm) -> Tiny:
    """The small net up to its map of stride 16."""
    return Tiny(norm, (32, 64, 128), (1, 1, 1), first=2)


def _with_levels(fields: Fields) -> Fields:
    """The same, but a single map has the anchors of all levels."""
    if fields.pyramid != "single":
        return fields
    return replace(fields, anchor_sizes=(tuple(size for sizes in fields.anchor_sizes for size in sizes),))


def _resnet_fpn(fields: Fields, num_classes: int, body: Callable[..., resnet.ResNet]) -> TwoStage:
    fields = _with_levels(fields)
    norm = norm_layer(fields.norm, fields.norm_eps)
    backbone = pyramid(
        fields.pyramid,
        lambda: body(norm),
        lambda: body(norm, first=3, stages=3),
        256,
        extra=True,
        levels=len(fields.anchor_sizes),
    )
    return _pyramid(fields, num_classes, backbone, _two_layers(fields, 256, num_classes))


def _mobilenet(fields: Fields, num_classes: int) -> TwoStage:
    _require_top_down(fields)
    backbone = FPN(MobileNetV3Large(norm_layer(fields.norm, fields.norm_eps)), 256)
    return _pyramid(fields, num_classes, backbone, _two_layers(fields, 256, num_classes))


def _pyramid(fields: Fields, num_classes: int, backbone: FPN | Levels | ImagePyramid, head: BoxHead) -> TwoStage:
    """The proposal network reads every level, the regions all but the extra one."""
    return TwoStage(
        fields,
        num_classes,
        backbone=backbone,
        rpn=_rpn(fields, backbone.channels[0], backbone.strides),
        regions=_regions(fields, backbone.strides[:-1] if backbone.extra else backbone.strides),
        head=head,
    )


def _two_layers(fields: Fields, channels: int, num_classes: int) -> BoxHead:
    body = TwoLayers(channels, fields.roi_size, fields.head_channels, fields.dropout, fields.head_ranks)
    return BoxHead(fields, body, fields.head_channels, num_classes)
