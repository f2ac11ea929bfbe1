"""Weights of py-faster-rcnn and simple-faster-rcnn give the detections of references that follow their own rules."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from foreign_states import py_faster_rcnn_shapes, simple_faster_rcnn_shapes
from reference_detectors import balancing, make_state, require_same
from torch import Tensor

from twostage.data.scenes import HARD, make_scene
from twostage.models.build import Model, build
from twostage.models.configure import configure
from twostage.parity.reference import py_faster_rcnn, simple_faster_rcnn
from twostage.weights.fit import Unfilled, load_all
from twostage.weights.importers.imported import Imported
from twostage.weights.importers.py_faster_rcnn import from_py_faster_rcnn
from twostage.weights.importers.simple_faster_rcnn import from_simple_faster_rcnn

SIZE, WIDTH = 203, 64
CAFFE = {"caffe_pretrain": True}
FACTORS = {
    "rpn_cls_score": 0.3,
    "rpn.score": 0.3,
    "rpn_bbox_pred": 0.1,
    "rpn.loc": 0.1,
    "cls_score": 3,
    "head.score": 3,
}
FACTORS |= {"bbox_pred": 0.1, "cls_loc": 0.5, "conv1_1": 0.02, "rpn.conv1": 1, "rpn_conv1": 1, "conv1": 0.02}
KINDS: dict[str, Any] = {
    "VGG16": (py_faster_rcnn, from_py_faster_rcnn, py_faster_rcnn_shapes("VGG16", WIDTH), {}),
    "VGG16 for COCO": (py_faster_rcnn, from_py_faster_rcnn, py_faster_rcnn_shapes("VGG16", WIDTH, 12), {}),
    "ZF": (py_faster_rcnn, from_py_faster_rcnn, py_faster_rcnn_shapes("ZF", WIDTH), {}),
    "simple": (simple_faster_rcnn, from_simple_faster_rcnn, simple_faster_rcnn_shapes(WIDTH), {}),
    "simple with dropout": (
        simple_faster_rcnn,
        from_simple_faster_rcnn,
        simple_faster_rcnn_shapes(WIDTH, dropout=True),
        {},
    ),
    "simple of Caffe": (simple_faster_rcnn, from_simple_faster_rcnn, simple_faster_rcnn_shapes(WIDTH), CAFFE),
}


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Neither square nor a multiple of the stride."""
    return np.ascontiguousarray(make_scene(0, 1, 2, style=HARD).image[:150])


def built(found: Imported) -> Model:
    config = configure(found.config, {"size": SIZE, "max_size": 1000})
    with Unfilled():
        model = build(config, found.num_classes)
    load_all(model, found.tensors, "these")
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_finds_the_same(kind: str, dtype: torch.dtype, photo: np.ndarray) -> None:
    project, read, shapes, settings = KINDS[kind]
    first = {"extractor.0": 0.005} if settings else {}  # pixels from -123 to 132
    state: dict[str, Tensor] = make_state(shapes, dtype, first | FACTORS)
    numbers = replace(project.numbers_of(state, settings), size=SIZE)
    small, shape = project.resized(photo, numbers), photo.shape[:2]
    project.detect(state, small, shape, numbers, balancing(state))
    expected = project.detect(state, small, shape, numbers)
    require_same(built(read(state, settings)), small, expected, dtype, shape)
