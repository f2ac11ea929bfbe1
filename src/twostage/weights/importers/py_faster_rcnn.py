"""py-faster-rcnn's Faster R-CNN on VGG16 and ZF, of Caffe.

What differs from ours: images are BGR, resized by OpenCV in floating point and by one factor for both axes, and only
their mean is subtracted; the last pixel belongs to a box, in the RPN that of the resized image and in the second stage
that of the original one; the sides of anchors are rounded; the RPN scores background for all anchors of a position,
then objects; deltas have no upper limit; proposals smaller than 16 pixels of the original image are dropped before the
best are taken; the box regressor has rows for background, and its targets' deviation in its weights.
(py-faster-rcnn: lib/fast_rcnn/test.py, bbox_transform.py, config.py and train.py, lib/rpn/, models/.)
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twostage.errors import DataError
from twostage.models.configure import configure
from twostage.models.zoo import named
from twostage.weights.fit import channel_last
from twostage.weights.importers.imported import (
    UNLIMITED,
    Imported,
    change,
    refuse,
    renamed,
    require_anchors,
    setting,
    without_background,
)

PROJECT = "py-faster-rcnn"
MEAN = (122.7717, 115.9465, 102.9801)  # RGB
WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # one over the deviations of the targets (lib/fast_rcnn/config.py)
SIZES = {9: (128.0, 256.0, 512.0), 12: (64.0, 128.0, 256.0, 512.0)}  # of models/pascal_voc and models/coco

_FIELDS: Mapping[str, Any] = {
    "resize_by": "caffe",
    "rounding": "nearest",
    "mean": tuple(value / 255 for value in MEAN),
    "std": (1 / 255,) * 3,
    "edges": "caffe",
    "anchor_rounding": "caffe",
    "anchor_offset": 8.0,
    "delta_clamp": UNLIMITED,
    "rpn_min_size_of": "original",
    "rpn_min_size_first": True,
    "min_box_size": 0.0,
}
_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # places of the convolutions
_OF_VGG16 = [f"conv{block}_{k}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for k in range(1, count + 1)]
_ZF = (0, 4, 8, 10, 12)
_HEAD = (
    (r"^rpn_(conv1|conv/3x3)\.", "rpn.convs.0."),
    (r"^rpn_cls_score\.", "rpn.objectness."),
    (r"^rpn_bbox_pred\.", "rpn.deltas."),
    (r"^fc([67])\.", r"head.body.fc\1."),
    (r"^cls_score\.", "head.classes."),
    (r"^bbox_pred\.", "head.deltas."),
)
_OTHERS = {r"^fc[67]_[LU]\.|^fc[67]\.L\.": "a head of truncated layers"}
_SETTINGS = {
    "nms": "TEST.NMS",
    "max_size": "TEST.MAX_SIZE",
    "rpn_nms": "TEST.RPN_NMS_THRESH",
    "rpn_top_test": "TEST.RPN_PRE_NMS_TOP_N",
    "rpn_keep_test": "TEST.RPN_POST_NMS_TOP_N",
    "rpn_min_size": "TEST.RPN_MIN_SIZE",
}


def is_py_faster_rcnn(state: Mapping[str, Tensor]) -> bool:
    """Whether the layers of a caffemodel have these names."""
    return "cls_score.weight" in state and any(re.match(r"conv1(_1)?\.weight", name) for name in state)


def from_py_faster_rcnn(state: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> Imported:
    """The detector of a caffemodel's layers, with the settings of its experiment (experiments/cfgs).

    Raises DataError for one of another kind.
    """
    refuse(state, PROJECT, _OTHERS)
    if "rpn_cls_score.weight" not in state:
        raise DataError("The weights have no RPN: they are Fast R-CNN's, which needs proposals from elsewhere.")
    if "conv4.weight" in state and len(state["conv4.weight"]) == 512:
        raise DataError(f"conv4.weight of VGG_CNN_M_1024 is in the file: {PROJECT}'s third network is not one of ours.")
    model, convs = ("faster_rcnn_vgg16", _VGG16) if "conv1_1.weight" in state else ("faster_rcnn_zf", _ZF)
    layers = _OF_VGG16 if model == "faster_rcnn_vgg16" else [f"conv{k}" for k in range(1, 6)]
    body = [(rf"^{layer}\.", f"backbone.features.{place}.") for layer, place in zip(layers, convs, strict=True)]
    tensors = renamed(state, (*body, *_HEAD))
    given = _given(settings or {})
    shown = {"anchor_sizes": (_sizes(tensors),), "head_channels": len(tensors["head.body.fc6.bias"])}
    config = configure(named(model), {**_FIELDS, **shown, **given})
    require_anchors(tensors, config)  # type: ignore[arg-type]
    change(tensors, r"backbone\.features\.0\.weight", lambda weight: weight.flip(1))
    change(
        tensors,
        r"rpn\.objectness\.(weight|bias)",
        lambda rows: rows.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1),
    )
    change(tensors, r"head\.deltas\.(weight|bias)", lambda rows: _as_learned(without_background(rows)))
    change(tensors, r"head\.body\.fc6\.weight", partial(channel_last, channels=tensors["rpn.convs.0.weight"].shape[1]))
    return Imported(model, config, tensors, len(tensors["head.classes.bias"]) - 1, frozenset(given))  # type: ignore[arg-type]


def _as_learned(rows: Tensor) -> Tensor:
    """The rows for targets of the deviation that they were learned with, which lib/fast_rcnn/train.py multiplied in."""
    factors = torch.tensor(WEIGHTS, dtype=rows.dtype).repeat(len(rows) // 4)
    return rows * factors.reshape(-1, *(1,) * (rows.ndim - 1))


def _sizes(tensors: Mapping[str, Tensor]) -> tuple[float, ...]:
    """The anchor sizes of so many anchors. Raises DataError for a number that no published model has."""
    anchors = len(tensors["rpn.deltas.bias"]) // 4
    if anchors not in SIZES:
        raise DataError(f"The weights have {anchors} anchors at a position; py-faster-rcnn's models have 9 or 12.")
    return SIZES[anchors]


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a file of settings shows. Raises DataError for several sizes of an image, and for SVMs."""
    given = {field: value for field, path in _SETTINGS.items() if (value := setting(settings, path)) is not None}
    scales = setting(settings, "TEST.SCALES")
    if scales is not None:
        if not isinstance(scales, list | tuple) or len(scales) != 1:
            raise DataError(f"TEST.SCALES is {scales}: one size of an image is converted, as (600,).")
        (given["size"],) = scales
    if setting(settings, "TEST.SVM"):
        raise DataError("TEST.SVM is set: scores of SVMs in the place of softmax are not done here.")
    mean = settings.get("PIXEL_MEANS")
    if isinstance(mean, list):
        given["mean"] = tuple(value / 255 for value in reversed(np.ravel(mean).tolist()))
    return given
