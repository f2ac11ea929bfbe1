"""simple-faster-rcnn-pytorch's Faster R-CNN on VGG16.

What differs from ours: deltas and their rows are in the order y, x, height, width, and have no upper limit; the box
regressor has rows for background, which nothing reads; the poolings round down; anchors are centred in their cell of 16
pixels; proposals smaller than 16 pixels of the original image are dropped before the best are taken; images are resized
by scikit-image, and boxes come back by the factor of the width; the number of detections has no limit. With
`caffe_pretrain` images are BGR, and their mean is subtracted in the order of RGB.
(simple-faster-rcnn-pytorch: model/, data/dataset.py, utils/config.py.)
"""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

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
    without_background,
)

log = logging.getLogger("twostage.weights")

PROJECT = "simple-faster-rcnn"
MODEL = "faster_rcnn_vgg16"
MEAN_OF_CAFFE = (122.7717, 115.9465, 102.9801)  # of what enters first, second and third
FEATURES = 512  # channels of VGG16's map
PROPOSALS, CLASSES_ABOVE = 300, 19  # of an image; of a proposal with a probability above 0.05

_FIELDS: Mapping[str, Any] = {
    "backbone.pooling": "floor",
    "resize_by": "skimage",
    "rounding": "nearest",
    "anchor_offset": 8.0,
    "delta_clamp": UNLIMITED,
    "rpn_min_size_of": "original",
    "rpn_min_size_first": True,
    "max_det": PROPOSALS * CLASSES_ABOVE,
    "min_box_size": 0.0,
}
_NAMES = (
    (r"^extractor\.", "backbone.features."),
    (r"^rpn\.conv1\.", "rpn.convs.0."),
    (r"^rpn\.score\.", "rpn.objectness."),
    (r"^rpn\.loc\.", "rpn.deltas."),
    (r"^head\.classifier\.0\.", "head.body.fc6."),
    (r"^head\.classifier\.[23]\.", "head.body.fc7."),  # 3 with dropout between the layers
    (r"^head\.cls_loc\.", "head.deltas."),
    (r"^head\.score\.", "head.classes."),
)
_OTHERS = {r"^extractor\.(conv1|layer\d|\d+\.(conv|bn)\d)\.": "a network other than VGG16"}


def is_simple_faster_rcnn(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has these names."""
    return "head.cls_loc.weight" in state and any(name.startswith("extractor.") for name in state)


def from_simple_faster_rcnn(state: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> Imported:
    """The detector of a state dict, with the settings that its training left beside it.

    Raises DataError for one of another kind.
    """
    refuse(state, PROJECT, _OTHERS)
    tensors = renamed(state, _NAMES)
    given = _given(settings or {})
    if not given:
        log.warning(
            "No caffe_pretrain lies in these weights: a network of torchvision's images is assumed. If it is of "
            "Caffe's, as some published ones are, give --config with a YAML file that has `caffe_pretrain: true`."
        )
    config = configure(named(MODEL), {**_FIELDS, "head_channels": len(tensors["head.body.fc6.bias"]), **given})
    require_anchors(tensors, config)  # type: ignore[arg-type]
    if (settings or {}).get("caffe_pretrain"):
        change(tensors, r"backbone\.features\.0\.weight", lambda weight: weight.flip(1))
    change(tensors, r"head\.deltas\.(weight|bias)", without_background)
    change(tensors, r"(rpn|head)\.deltas\.(weight|bias)", _x_first)
    change(tensors, r"head\.body\.fc6\.weight", partial(channel_last, channels=FEATURES))
    return Imported(MODEL, config, tensors, len(tensors["head.classes.bias"]) - 1, frozenset(given))  # type: ignore[arg-type]


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the settings of a training show (utils/config.py)."""
    given: dict[str, Any] = {}
    if settings.get("caffe_pretrain"):
        given = {"mean": tuple(value / 255 for value in reversed(MEAN_OF_CAFFE)), "std": (1 / 255,) * 3}
    elif "caffe_pretrain" in settings:
        given = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return given


def _x_first(rows: Tensor) -> Tensor:
    return rows.unflatten(0, (-1, 4))[:, [1, 0, 3, 2]].flatten(0, 1)
