"""detectron2's weights give the detections of a reference that follows detectron2's own rules."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from foreign_states import K, detectron2_retinanet_shapes, detectron2_shapes
from reference_detectors import balancing, make_state, require_same
from torch import Tensor

from twostage import Detections, Detector
from twostage.data.scenes import HARD, make_scene
from twostage.models.build import Model, build
from twostage.models.configure import configure
from twostage.parity.reference.detectron2 import detect, resized, rules_of
from twostage.parity.reference.steps import Rules
from twostage.weights.fit import Unfilled, load_all
from twostage.weights.importers.detectron2 import from_detectron2

SIZE = 160


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
