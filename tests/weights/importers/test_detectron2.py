"""detectron2's weights give the detections of a reference that follows detectron2's own rules."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from foreign_states import K, detectron2_c4_shapes, detectron2_retinanet_shapes, detectron2_shapes, with_bias
from reference_detectors import balancing, make_state, require_same
from torch import Tensor

from twostage import Detections, Detector
from twostage.data.scenes import HARD, make_scene
from twostage.errors import DataError
from twostage.models.build import Model, build
from twostage.models.configure import configure
from twostage.parity.reference.detectron2 import detect, resized, rules_of
from twostage.parity.reference.steps import Rules
from twostage.weights.fit import Unfilled, load_all
from twostage.weights.importers.detectron2 import from_detectron2

SIZE = 160
BGR_MEAN = (103.530, 116.280, 123.675)


def state_of(found: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    factors = {"stem.conv1": 0.01, "objectness_logits": 0.1, "anchor_deltas": 0.03, "cls_score": 1.5, "bbox_pred": 0.05}
    return make_state(found, dtype, factors)


def rules(state: dict[str, Tensor]) -> Rules:
    return replace(rules_of(state), size=SIZE)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Neither square nor a multiple of the stride."""
    return np.ascontiguousarray(make_scene(0, 1, 2, style=HARD).image[:150])


def built(state: dict[str, Tensor], settings: dict[str, Any] | None = None) -> tuple[Model, str]:
    imported = from_detectron2(state, settings)
    config = configure(imported.config, {"size": SIZE, "max_size": 1333})
    with Unfilled():
        model = build(config, imported.num_classes)
    load_all(model, imported.tensors, "these")
    return model.eval(), imported.model


KINDS = {
    "faster_rcnn_resnet50_fpn": {},
    "mask_rcnn_resnet50_fpn": {"mask": True},
    "cascade_mask_rcnn_resnet50_fpn": {"cascade": True, "mask": True},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_the_same_detections(photo: np.ndarray, name: str, dtype: torch.dtype) -> None:
    state = state_of(detectron2_shapes(**KINDS[name]), dtype)
    small = resized(photo, rules(state))
    expected = detect(state, small, rules(state), balancing(state))
    model, found_name = built(state)
    assert found_name == name
    require_same(model, small, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_retinanet(photo: np.ndarray, dtype: torch.dtype) -> None:
    factors = {"stem.conv1": 0.01, "bbox_pred": 0.1, "cls_score": 0.2}
    state = make_state(detectron2_retinanet_shapes(), dtype, factors)
    small = resized(photo, rules(state))
    model, name = built(state)
    assert name == "retinanet_resnet50_fpn"
    require_same(model, small, detect(state, small, rules(state)), dtype)


def test_a_photo_from_its_own_size(photo: np.ndarray) -> None:
    """Resizing and its inverse are detectron2's as well."""
    state = state_of(detectron2_shapes())
    small = resized(photo, rules(state))
    boxes = detect(state, small, rules(state), balancing(state)).boxes
    model, name = built(state)
    found = Detector(model, name, [str(k) for k in range(K)], device="cpu").predict(photo, conf=0.05)
    assert isinstance(found, Detections)
    theirs = boxes.numpy() * np.tile(np.array(photo.shape[1::-1]) / small.shape[1::-1], 2)
    assert np.abs(found.boxes[:, None] - theirs).max(2).min(1).max() <= 1e-2


@pytest.mark.parametrize("dilated", [False, True], ids=["c4", "dc5"])
def test_one_map(photo: np.ndarray, *, dilated: bool) -> None:
    state = state_of(detectron2_c4_shapes(dilated=dilated))
    small = resized(photo, rules(state))
    expected = detect(state, small, rules(state), balancing(state))
    model, name = built(state)
    assert name == f"faster_rcnn_resnet50_{'dc5' if dilated else 'c4'}"
    require_same(model, small, expected, torch.float32)


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def with_settings(text: str, state: dict[str, Tensor] | None = None) -> Any:
    return from_detectron2(zeros(detectron2_shapes()) if state is None else state, yaml.safe_load(text)).config


def test_what_settings_leave_out_is_detectron2s_default() -> None:
    config = with_settings("INPUT: {MIN_SIZE_TEST: 480}\nMODEL: {RPN: {NMS_THRESH: 0.6}}")
    assert (config.image.size, config.image.max_size) == (480, 1333)
    assert config.image.std == (1 / 255,) * 3
    assert config.backbone.stride_in_1x1
    assert config.rpn.nms == 0.6
    rgb = with_settings("INPUT: {FORMAT: RGB}").image.mean
    assert rgb == pytest.approx([value / 255 for value in BGR_MEAN])  # in the order in which channels enter


def test_layer_norm_has_the_tensors_of_group_norm() -> None:
    shapes = detectron2_shapes()
    shapes = {name: shape for name, shape in shapes.items() if ".fc2" not in name}
    shapes |= with_bias("roi_heads.box_head.fc1", 1024, 256 * 49)
    for k in range(1, 5):
        shapes[f"roi_heads.box_head.conv{k}.weight"] = (256, 256, 3, 3)
        shapes |= {f"roi_heads.box_head.conv{k}.norm.{part}": (256,) for part in ("weight", "bias")}
    assert with_settings("{}", zeros(shapes)).box_head.body.norm.kind == "group"
    norm = with_settings("MODEL: {ROI_BOX_HEAD: {NORM: LN}}", zeros(shapes)).box_head.body.norm
    assert (norm.kind, norm.eps) == ("layer", 1e-6)


def test_anchors_of_other_ratios() -> None:
    text = "MODEL: {ANCHOR_GENERATOR: {ASPECT_RATIOS: [[0.2, 0.5, 1, 2, 5]]}}"
    state = zeros(detectron2_shapes(anchors=5))
    state["proposal_generator.rpn_head.objectness_logits.bias"] = torch.arange(5.0)
    found = from_detectron2(state, yaml.safe_load(text))
    assert found.config.anchors is not None
    assert found.config.anchors.ratios == (0.2, 0.5, 1, 2, 5)
    assert found.tensors["rpn.objectness.bias"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="have 5 anchors at a position, and these settings 3 ratios of 1 sizes"):
        from_detectron2(state)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {RESNETS: {NUM_GROUPS: 32}}", "NUM_GROUPS 32, the weights show 1"),
        ("MODEL: {BACKBONE: {NAME: build_resnet_backbone}}", "show build_resnet_fpn_backbone"),
        ("MODEL: {ROI_HEADS: {NAME: CascadeROIHeads}}", "the weights show StandardROIHeads"),
        ("MODEL: {ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: true}}", "CLS_AGNOSTIC_BBOX_REG True, the weights show False"),
        ("MODEL: {ANCHOR_GENERATOR: {OFFSET: 0.5}}", "OFFSET 0.5, which twostage does not compute"),
        ("MODEL: {FPN: {FUSE_TYPE: avg}}", "FUSE_TYPE 'avg', which"),
        ("MODEL: {ROI_BOX_HEAD: {POOLER_TYPE: ROIPool}}", "POOLER_TYPE 'ROIPool', which"),
        ("MODEL: {ANCHOR_GENERATOR: {ASPECT_RATIOS: [[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]]}}", "have to be the same"),
        ("INPUT: {MIN_SIZE_TEST: '(800'}", "which is no list of values"),
    ],
)
def test_settings_that_compute_otherwise(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_settings(text)


def test_class_agnostic_masks() -> None:
    """Every class has the one mask that there is."""
    state = state_of(detectron2_shapes(mask=True))
    one, every = dict(state), dict(state)
    for name in ("roi_heads.mask_head.predictor.weight", "roi_heads.mask_head.predictor.bias"):
        one[name] = state[name][:1]
        every[name] = one[name].expand_as(state[name])
    found, expected = (from_detectron2(each).tensors for each in (one, every))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
