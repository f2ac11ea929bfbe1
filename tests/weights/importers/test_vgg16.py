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
from twostage.errors import DataError
from twostage.models.build import Model, build
from twostage.models.configure import configure
from twostage.parity.reference import py_faster_rcnn, simple_faster_rcnn
from twostage.weights.fit import Unfilled, load_all
from twostage.weights.importers.imported import Imported
from twostage.weights.importers.py_faster_rcnn import from_py_faster_rcnn
from twostage.weights.importers.simple_faster_rcnn import from_simple_faster_rcnn

SIZE, WIDTH, TOP = 203, 64, 600  # pixels, units of the head, anchors before suppression: fewer than there are
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


def built(found: Imported, dtype: torch.dtype) -> Model:
    """In float64 the rows of the box regressor, multiplied by 10, are not rounded either."""
    config = configure(found.config, {"size": SIZE, "max_size": 1000, "rpn_top_test": TOP})
    with Unfilled():
        model = build(config, found.num_classes).to(dtype)
    load_all(model, found.tensors, "these")
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_finds_the_same(kind: str, dtype: torch.dtype, photo: np.ndarray) -> None:
    project, read, shapes, settings = KINDS[kind]
    first = {"extractor.0": 0.005} if settings else {}  # pixels from -123 to 132
    state: dict[str, Tensor] = make_state(shapes, dtype, first | FACTORS)
    numbers = replace(project.numbers_of(state, settings), size=SIZE, rpn_top=TOP)
    small, shape = project.resized(photo, numbers), photo.shape[:2]
    project.detect(state, small, shape, numbers, balancing(state))
    expected = project.detect(state, small, shape, numbers)
    require_same(built(read(state, settings), dtype), small, expected, dtype, shape)


def test_the_network_of_caffe_has_its_mean_in_the_order_of_rgb() -> None:
    """data/dataset.py, `caffe_normalize`: blue, which enters first, has red's mean."""
    state = make_state(simple_faster_rcnn_shapes(WIDTH), torch.float32, {})
    config = from_simple_faster_rcnn(state, CAFFE).config
    assert [255 * value for value in config.image.mean] == pytest.approx([102.9801, 115.9465, 122.7717])


def test_weights_without_their_options_are_taken_for_torchvisions_aloud(caplog: pytest.LogCaptureFixture) -> None:
    state = make_state(simple_faster_rcnn_shapes(WIDTH), torch.float32, {})
    assert from_simple_faster_rcnn(state).config.image.mean == (0.485, 0.456, 0.406)
    assert "No caffe_pretrain lies in these weights" in caplog.text
    caplog.clear()
    from_simple_faster_rcnn(state, {"caffe_pretrain": False})
    assert not caplog.text


def test_the_box_regressor_learns_targets_of_py_faster_rcnns_deviation() -> None:
    """lib/fast_rcnn/train.py multiplies the deviations 0.1, 0.1, 0.2, 0.2 into the weights that it saves."""
    state = make_state(py_faster_rcnn_shapes("ZF", WIDTH), torch.float32, {})
    found = from_py_faster_rcnn(state)
    config: Any = found.config
    assert config.stage.delta_weights == (10, 10, 5, 5)
    learned = state["bbox_pred.bias"][4:] / torch.tensor([0.1, 0.1, 0.2, 0.2]).repeat(5)
    torch.testing.assert_close(found.tensors["head.deltas.bias"], learned)


SETTINGS = {
    "EXP_DIR": "faster_rcnn_end2end",
    "TEST": {
        "SCALES": "(480,)",
        "MAX_SIZE": 900,
        "NMS": 0.4,
        "RPN_POST_NMS_TOP_N": 77,
        "RPN_MIN_SIZE": 4,
        "HAS_RPN": True,
    },
    "PIXEL_MEANS": [[[1.0, 2.0, 3.0]]],
}


def test_settings_of_an_experiment() -> None:
    state = make_state(py_faster_rcnn_shapes("ZF", WIDTH), torch.float32, {})
    found = from_py_faster_rcnn(state, SETTINGS)
    config: Any = found.config
    assert (config.image.size, config.image.max_size, config.postprocess.nms) == (480, 900, 0.4)
    assert (config.proposals.keep_test, config.rpn.min_size) == (77, 4)
    assert [255 * value for value in config.image.mean] == pytest.approx([3, 2, 1])
    assert {"size", "nms", "mean"} <= found.given
    assert found.model == "faster_rcnn_zf"


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"rpn_cls_score.weight": None}, {}, "no RPN: they are Fast R-CNN's"),
        ({"rpn_bbox_pred.bias": torch.zeros(40)}, {}, "10 anchors at a position; py-faster-rcnn's models have 9 or 12"),
        ({"fc6_L.weight": torch.zeros(1)}, {}, "truncated layers"),
        ({"conv4.weight": torch.zeros(512, 256, 3, 3)}, {}, "conv4.weight of VGG_CNN_M_1024"),
        ({}, {"TEST": {"SCALES": [480, 600]}}, "one size of an image"),
        ({}, {"TEST": {"SCALES": 600}}, "SCALES is 600: one size"),
        ({}, {"TEST": {"SVM": True}}, "scores of SVMs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_detector_of_ours_is_refused(change: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    state = make_state(py_faster_rcnn_shapes("ZF", WIDTH), torch.float32, {}) | change
    with pytest.raises(DataError, match=message):
        from_py_faster_rcnn({name: tensor for name, tensor in state.items() if tensor is not None}, settings)


def test_another_network_of_simple_faster_rcnn_is_refused() -> None:
    state = make_state(simple_faster_rcnn_shapes(WIDTH), torch.float32, {}) | {"extractor.layer1.0.x": torch.zeros(1)}
    with pytest.raises(DataError, match=r"extractor\.layer1\.0\.x belongs to a network other than VGG16"):
        from_simple_faster_rcnn(state)
