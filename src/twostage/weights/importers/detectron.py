"""Detectron's Faster R-CNN on ResNet, with a pyramid or C4, of Caffe2: the `blobs` of its files.

What differs from ours: batch normalisation is a scale and a shift; images are BGR, resized by OpenCV in floating point
and by one factor for both axes; the last pixel belongs to a box, in the RPN that of the canvas, to which proposals are
clipped, and in the second stage that of the original image; the sides of anchors are rounded in cells of a stride, and
centred there; the box regressor has rows for background.
(Detectron: core/test.py, core/config.py, modeling/, ops/generate_proposals.py, utils/boxes.py; configs/.)
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twostage.errors import DataError
from twostage.models.backbones.resnet import ResNetConfig
from twostage.models.configure import configure
from twostage.weights.importers.architecture import in_our_places, read_architecture
from twostage.weights.importers.imported import (
    Imported,
    change,
    refuse,
    renamed,
    require_anchors,
    setting,
    without_background,
)

PROJECT = "detectron"
COARSEST = 32  # of which the sides of a padded image are multiples, with a pyramid
MEAN = (122.7717, 115.9465, 102.9801)  # RGB

_FIELDS: Mapping[str, Any] = {
    "resize_by": "caffe",
    "rounding": "nearest",
    "mean": tuple(value / 255 for value in MEAN),
    "std": (1 / 255,) * 3,
    "norm_eps": 0.0,
    "edges": "inclusive",
    "anchor_rounding": "caffe",
    "anchor_offset": "half_stride",
    "anchor_stride": "fixed",
    "anchors_in_padding": False,
    "rpn_min_size": 1.0,  # `_filter_boxes`: a pixel at least, and the last one counts
    "min_box_size": 0.0,
    "roi_aligned": False,
    "roi_max_samples": None,
    "level_eps": 0.0,
    "level_size_eps": 1e-6,
}
_PARTS = {"w": "weight", "s": "weight", "b": "bias"}
_LAYERS = {"2a": "1", "2b": "2", "2c": "3"}
_NAMES = (
    (r"^conv1\.", "backbone.conv1."),
    (r"^res_conv1_bn\.", "backbone.bn1."),
    *((rf"^res{stage}_(\d+)_branch", rf"backbone.layer{stage - 1}.\1.branch") for stage in range(2, 6)),
    *((rf"\.branch{theirs}_bn\.", f".bn{ours}.") for theirs, ours in _LAYERS.items()),
    *((rf"\.branch{theirs}\.", f".conv{ours}.") for theirs, ours in _LAYERS.items()),
    (r"\.branch1_bn\.", ".downsample.1."),
    (r"\.branch1\.", ".downsample.0."),
    *((rf"^fpn_inner_res{level}_\d+_sum(_lateral)?\.", f"backbone.laterals.{level - 2}.0.") for level in range(2, 6)),
    *((rf"^fpn_res{level}_\d+_sum\.", f"backbone.outputs.{level - 2}.0.") for level in range(2, 6)),
    (r"^conv_rpn(_fpn2)?\.", "rpn.convs.0."),
    (r"^rpn_cls_logits(_fpn2)?\.", "rpn.objectness."),
    (r"^rpn_bbox_pred(_fpn2)?\.", "rpn.deltas."),
    (r"^fc([67])\.", r"box.body.fc\1."),
    (r"^cls_score\.", "box.classes."),
    (r"^bbox_pred\.", "box.deltas."),
)
_OTHERS = {
    r"^(_\[mask\]_|mask_fcn|conv5_mask)": "Mask R-CNN",
    r"^(kps_|conv_fcn)": "Keypoint R-CNN",
    r"^retnet_": "RetinaNet",
    r"_gn_s$": "a network with GroupNorm",
}
_SETTINGS = {
    "size": "TEST.SCALE",
    "max_size": "TEST.MAX_SIZE",
    "score_threshold": "TEST.SCORE_THRESH",
    "nms": "TEST.NMS",
    "max_det": "TEST.DETECTIONS_PER_IM",
    "rpn_nms": "TEST.RPN_NMS_THRESH",
    "rpn_top_test": "TEST.RPN_PRE_NMS_TOP_N",
    "rpn_keep_test": "TEST.RPN_POST_NMS_TOP_N",
    "roi.size": "FAST_RCNN.ROI_XFORM_RESOLUTION",
    "roi_sampling_ratio": "FAST_RCNN.ROI_XFORM_SAMPLING_RATIO",
    "box_delta_weights": "MODEL.BBOX_REG_WEIGHTS",
    "stride_in_1x1": "RESNETS.STRIDE_1X1",
    "level_canonical_size": "FPN.ROI_CANONICAL_SCALE",
}
# Settings that would find something else, and what they are there.
_OTHERWISE = {
    "TEST.SOFT_NMS.ENABLED": False,
    "TEST.BBOX_VOTE.ENABLED": False,
    "TEST.BBOX_AUG.ENABLED": False,
    "TEST.BBOX_REG": True,
    "FPN.ROI_CANONICAL_LEVEL": 4,
    "FPN.COARSEST_STRIDE": 32,
    "FPN.RPN_MAX_LEVEL": 6,
    "FAST_RCNN.ROI_XFORM_METHOD": "RoIAlign",
}


def is_detectron(state: Mapping[str, Tensor]) -> bool:
    """Whether a file's blobs have these names."""
    return "conv1_w" in state and any(re.search(r"_branch2a(_bn|_gn)_s$", name) for name in state)


def from_detectron(state: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> Imported:
    """The detector of a file's blobs, with the settings that lie in it.

    Raises DataError for one of another kind.
    """
    refuse(state, PROJECT, _OTHERS)
    if "cls_score_w" not in state:
        raise DataError(
            "The blobs have no cls_score_w: they are a backbone's or an RPN's, which are not converted. To begin a "
            "training from ImageNet, take --weights resnet50-imagenet."
        )
    blobs = {
        f"{name[:-2]}.{_PARTS[name[-1]]}" if name[-2:] in ("_w", "_s", "_b") else name: tensor
        for name, tensor in state.items()
    }
    blobs = {name: tensor for name, tensor in blobs.items() if not name.startswith(("pred.", "fc1000."))}
    tensors = renamed(blobs, _NAMES)
    if "backbone.outputs.0.0.weight" in tensors:
        tensors = renamed(tensors, [(r"^backbone\.(conv1|bn1|layer)", r"backbone.body.\1")])
    else:
        tensors = renamed(tensors, [(r"^backbone\.layer4\.", "box.body.layer4.")])
    for name in [name for name in tensors if re.search(r"(\.|^)(bn\d|downsample\.1)\.weight$", name)]:
        place, channels = name.removesuffix("weight"), len(tensors[name])
        tensors |= {f"{place}running_mean": torch.zeros(channels), f"{place}running_var": torch.ones(channels)}
    change(tensors, r"box\.deltas\.(weight|bias)", without_background)
    model, config, num_classes = read_architecture(tensors)
    assert isinstance(config.backbone, ResNetConfig)
    pyramid = config.neck is not None  # type: ignore[union-attr]
    given = _given(settings or {})
    fields = {**_FIELDS, "stride_in_1x1": config.backbone.groups == 1, "roi_sampling_ratio": 2 if pyramid else 0}
    fields |= {"rpn_clip_multiple": COARSEST} if pyramid else {"rpn_top_test": 6000}
    config = configure(config, {**fields, **given})
    require_anchors(tensors, config)
    change(tensors, r"backbone\.(body\.)?conv1\.weight", lambda weight: weight.flip(1))
    return Imported(model, config, in_our_places(tensors, config), num_classes, frozenset(given))


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the settings show. Raises DataError for one that would find something else here."""
    for path, own in _OTHERWISE.items():
        if (value := setting(settings, path)) not in (None, own):
            raise DataError(f"{path} is {value}: only {own} is converted.")
    if (setting(settings, "TEST.RPN_MIN_SIZE") or 0) > 1:
        raise DataError(f"TEST.RPN_MIN_SIZE is {setting(settings, 'TEST.RPN_MIN_SIZE')}: only 0 and 1 are converted.")
    given: dict[str, Any] = {}
    for field, path in _SETTINGS.items():
        if (value := setting(settings, path)) is not None:
            given[field] = tuple(value) if isinstance(value, list) else value
    scales = setting(settings, "TEST.SCALES")  # the older name
    if isinstance(scales, list | tuple) and len(scales) == 1:
        given.setdefault("size", scales[0])
    if isinstance(mean := settings.get("PIXEL_MEANS"), list):
        given["mean"] = tuple(value / 255 for value in reversed(np.ravel(mean).tolist()))
    pyramid = bool(setting(settings, "FPN.FPN_ON"))
    if (ratios := setting(settings, "FPN.RPN_ASPECT_RATIOS" if pyramid else "RPN.ASPECT_RATIOS")) is not None:
        given["anchor_ratios"] = tuple(ratios)
    if pyramid and (start := setting(settings, "FPN.RPN_ANCHOR_START_SIZE")) is not None:
        given["anchor_sizes"] = tuple((float(start << level),) for level in range(5))
    if not pyramid and (sizes := setting(settings, "RPN.SIZES")) is not None:
        given["anchor_sizes"] = (tuple(float(size) for size in sizes),)
    return given
