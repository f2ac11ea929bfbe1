"""Fast R-CNN: proposals from elsewhere (Girshick 2015)."""

from dataclasses import replace
from typing import Any

from twostage.models.backbones.norm import norm_layer
from twostage.models.backbones.vgg import VGG16
from twostage.models.backbones.zf import ZF
from twostage.models.fields import FAST
from twostage.models.two_stage import TwoStage
from twostage.models.zoo.defaults import TINY_SINGLE
from twostage.models.zoo.parts import single_map, tiny_single


def fast_rcnn_vgg16(num_classes: int, **fields: Any) -> TwoStage:
    """Fast R-CNN as in its paper, with VGG16 and selective search's proposals (Girshick 2015)."""
    return single_map(FAST.changed(fields), num_classes, VGG16())


def fast_rcnn_zf(num_classes: int, **fields: Any) -> TwoStage:
    """Fast R-CNN with the five-layer net of Zeiler and Fergus, on selective search's proposals."""
    return single_map(replace(FAST, roi_size=6, recipe="paper_fast_zf").changed(fields), num_classes, ZF())


def fast_rcnn_tiny(num_classes: int, **fields: Any) -> TwoStage:
    """Fast R-CNN with the small net of a single map, on selective search's proposals."""
    chosen = replace(TINY_SINGLE, proposals="selective_search", region_background_iou=(0.1, 0.5)).changed(fields)
    return single_map(chosen, num_classes, tiny_single(norm_layer(chosen.norm, chosen.norm_eps)))
