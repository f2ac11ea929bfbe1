"""RetinaNet: a yardstick of one stage (Lin et al. 2017, "Focal Loss").

With the small net it stands on the very pyramid of the two stages, with ResNets on levels of stride 8 to 128.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twostage.errors import UsageError
from twostage.models.backbones import resnet
from twostage.models.backbones.fpn import FPN, TwoConvs
from twostage.models.backbones.norm import norm_layer
from twostage.models.backbones.tiny import Tiny
from twostage.models.fields import Fields
from twostage.models.heads.suppress import Suppress
from twostage.models.proposals.dense import DenseNetwork
from twostage.models.two_stage import TwoStage
from twostage.models.zoo.defaults import MODERN, TINY
from twostage.models.zoo.parts import require_top_down

_OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # three sizes in each (section 4)
_MODERN = replace(
    MODERN,
    anchor_sizes=tuple(tuple(size * step for step in _OCTAVE) for size in (32.0, 64.0, 128.0, 256.0, 512.0)),
    anchor_rounding="none",
    anchor_stride="fixed",
    rpn_positive_iou=0.5,
    rpn_negative_iou=0.4,
    rpn_top_test=1000,
    recipe="finetune_dense",
)
_TINY = replace(
    TINY,
    anchor_sizes=tuple(tuple(size * step for step in _OCTAVE) for size in (16.0, 32.0, 64.0, 128.0)),
    rpn_positive_iou=0.5,
    rpn_negative_iou=0.4,
    rpn_top_test=300,
    dense_convs=2,
    # From random weights: without it half the AP after three minutes on hard scenes.
    dense_norm="group",
)
# But for those that say how large a second stage is.
_OF_TWO_STAGES = (
    *("rpn_channels", "rpn_convs", "rpn_objectness", "objectness_loss", "rpn_positive_fraction"),
    *("rpn_nms", "rpn_score_threshold", "rpn_min_size"),
    *("region_positive_fraction", "region_positive_iou", "region_background_iou", "region_sampling"),
    *("proposal_gradient", "roi", "dropout", "class_agnostic", "box_delta_weights"),
    *("box_loss", "box_beta", "box_lambda", "class_loss", "class_weights", "label_smoothing"),
)


def retinanet_resnet18_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """RetinaNet with ResNet-18 and a feature pyramid from stride 8 on."""
    return _on_resnet(fields, num_classes, resnet.resnet18)


def retinanet_resnet50_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """RetinaNet with ResNet-50 and a feature pyramid from stride 8 on."""
    return _on_resnet(fields, num_classes, resnet.resnet50)


def retinanet_resnet101_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """RetinaNet with ResNet-101 and a feature pyramid from stride 8 on."""
    return _on_resnet(fields, num_classes, resnet.resnet101)


def retinanet_tiny_fpn(num_classes: int, **fields: Any) -> TwoStage:
    """RetinaNet with the small net, on the very pyramid of `faster_rcnn_tiny_fpn`."""
    chosen = _of_one_stage(_TINY, fields)
    return _dense(chosen, num_classes, FPN(Tiny(norm_layer(chosen.norm, chosen.norm_eps)), 64))


def _on_resnet(fields: dict[str, Any], num_classes: int, body: Callable[..., resnet.ResNet]) -> TwoStage:
    chosen = _of_one_stage(_MODERN, fields)
    pyramid = FPN(body(norm_layer(chosen.norm, chosen.norm_eps), first=2), 256, extra=TwoConvs(256))
    return _dense(chosen, num_classes, pyramid)


def _of_one_stage(plain: Fields, changes: dict[str, Any]) -> Fields:
    """The fields with changes. Raises UsageError for one that only two stages have."""
    chosen = require_top_down(plain.changed(changes))
    for name in _OF_TWO_STAGES:
        if getattr(chosen, name) != getattr(plain, name):
            raise UsageError(f"{name} is of two stages, and RetinaNet has one: leave it out, or choose another model")
    return chosen


def _dense(fields: Fields, num_classes: int, backbone: FPN) -> TwoStage:
    if fields.proposals != "network":
        raise UsageError(f"proposals is {fields.proposals!r}: a detector of one stage takes none from elsewhere")
    return TwoStage(
        fields,
        num_classes,
        backbone=backbone,
        rpn=DenseNetwork(fields, backbone.channels[0], backbone.strides, num_classes),
        head=Suppress(num_classes),
    )
