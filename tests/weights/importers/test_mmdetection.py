"""mmdetection's weights give the detections of a reference that follows mmdetection's own rules."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from foreign_states import mmdetection_retinanet_shapes, mmdetection_shapes
from reference_detectors import balancing, make_state, require_same
from torch import Tensor

from twostage.data.scenes import HARD, make_scene
from twostage.models.build import Model, build
from twostage.models.configure import configure
from twostage.parity.reference.mmdetection import detect, resized, rules_of
from twostage.weights.fit import Unfilled, load_all
from twostage.weights.importers.mmdetection import from_mmdetection

SIZE = 160


def state_of(found: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    factors = {"rpn_cls": 0.1, "rpn_reg": 0.03, "fc_cls": 1.5, "fc_reg": 0.05}
    return make_state(found, dtype, factors)


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    """Neither square nor a multiple of the stride."""
    photo = np.ascontiguousarray(make_scene(0, 1, 2, style=HARD).image[:150])
    return resized(photo, replace(rules_of({}), size=SIZE))


def built(state: dict[str, Tensor], settings: dict[str, Any] | None = None) -> tuple[Model, str]:
    imported = from_mmdetection(state, settings)
    config = configure(imported.config, {"size": SIZE, "max_size": 1333})
    with Unfilled():
        model = build(config, imported.num_classes)
    load_all(model, imported.tensors, "these")
    return model.eval(), imported.model


KINDS: dict[str, dict[str, Any]] = {
    "faster_rcnn_resnet50_fpn": {},
    "mask_rcnn_resnet50_fpn": {"mask": True},
    "cascade_rcnn_resnet50_fpn": {"stages": 3},
    "cascade_mask_rcnn_resnet50_fpn": {"stages": 3, "mask": True},
    "hybrid_task_cascade_resnet50_fpn": {"stages": 3, "mask": True, "htc": True, "semantic": True},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_the_same_detections(small: np.ndarray, name: str, dtype: torch.dtype) -> None:
    state = state_of(mmdetection_shapes(**KINDS[name]), dtype)
    expected = detect(state, small, rules_of(state), balancing(state))
    model, found_name = built(state)
    assert found_name == name
    require_same(model, small, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_retinanet(small: np.ndarray, dtype: torch.dtype) -> None:
    state = make_state(mmdetection_retinanet_shapes(), dtype, {"retina_reg": 0.1, "retina_cls": 0.2})
    model, name = built(state)
    assert name == "retinanet_resnet50_fpn"
    require_same(model, small, detect(state, small, rules_of(state)), dtype)
