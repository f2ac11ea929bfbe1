"""mmdetection's weights give the detections of a reference that follows mmdetection's own rules."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from foreign_states import mmdetection_c4_shapes, mmdetection_retinanet_shapes, mmdetection_shapes
from reference_detectors import balancing, make_state, require_same
from torch import Tensor

from twostage.data.scenes import HARD, make_scene
from twostage.errors import DataError
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


@pytest.mark.parametrize("dilated", [False, True], ids=["c4", "dc5"])
def test_one_map(small: np.ndarray, *, dilated: bool) -> None:
    """Published in the style "caffe": BGR, the stride in the first 1 x 1, and a canvas of whole strides of 32."""
    factors = {"conv1": 0.02, "rpn_cls": 0.1, "rpn_reg": 0.03, "fc_cls": 1.5, "fc_reg": 0.05}
    state = make_state(mmdetection_c4_shapes(dilated=dilated), torch.float32, {"backbone.conv1": 0.01, **factors})
    for name in ("rpn_cls", "rpn_reg", "fc_cls", "fc_reg"):
        assert any(name in key for key in state)
    expected = detect(state, small, rules_of(state), balancing(state))
    model, name = built(state)
    assert name == f"faster_rcnn_resnet50_{'dc5' if dilated else 'c4'}"
    require_same(model, small, expected, torch.float32)


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def settings(**model: Any) -> dict[str, Any]:
    return {"model": {"type": "FasterRCNN", **model}}


@pytest.mark.parametrize(("rgb", "style"), [(True, "caffe"), (False, "pytorch"), (False, "caffe"), (True, "pytorch")])
def test_the_order_of_channels_is_the_settings(rgb: bool, style: str) -> None:
    state = zeros(mmdetection_shapes())
    state["backbone.conv1.weight"][:, 0] = 1
    norm = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "bgr_to_rgb": rgb}
    found = from_mmdetection(state, settings(data_preprocessor=norm, backbone={"depth": 50, "style": style}))
    red = 0 if rgb else 2  # where the channel that enters first is in RGB
    assert found.tensors["backbone.body.conv1.weight"][0, :, 0, 0].tolist() == [float(k == red) for k in range(3)]
    assert found.config.image.mean[red] == pytest.approx(1 / 255)
    assert found.config.image.std[red] == pytest.approx(4 / 255)
    assert found.config.backbone.stride_in_1x1 == (style == "caffe")  # type: ignore[union-attr]


def test_values_of_settings() -> None:
    test = {"rcnn": {"nms": {"type": "soft_nms", "method": "gaussian", "sigma": 0.7, "class_agnostic": True}}}
    coder = {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.5, 0.5, 0.25, 0.25]}
    config = from_mmdetection(
        zeros(mmdetection_shapes()),
        settings(
            test_cfg=test,
            rpn_head={
                "bbox_coder": coder,
                "anchor_generator": {"strides": [[4, 4], [8, 8], [16, 16], [32, 32], [64, 64]]},
            },
            roi_head={"bbox_roi_extractor": {"finest_scale": 28}},
        ),
    ).config
    assert config.image.divisor == 32
    post = config.postprocess
    assert (post.soft_nms, post.soft_nms_sigma, post.soft_nms_min_score) == ("gaussian", 0.7, 1e-3)
    assert post.nms_across_classes
    assert config.rpn.delta_weights == (2, 2, 4, 4)  # type: ignore[union-attr]
    assert config.roi.canonical_size == 112  # type: ignore[union-attr]


def test_values_of_retinanets_settings() -> None:
    coder = {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]}
    given = {"type": "RetinaNet", "bbox_head": {"bbox_coder": coder}, "neck": {"relu_before_extra_convs": True}}
    config = from_mmdetection(zeros(mmdetection_retinanet_shapes()), {"model": given}).config
    assert config.retinanet.delta_weights == pytest.approx((10, 10, 5, 5))  # type: ignore[union-attr]
    assert config.neck.extra == "p6p7_of_body"  # type: ignore[union-attr]


def test_group_norm_in_the_backbone() -> None:
    shapes = mmdetection_shapes()
    names = {name: re.sub(r"\.bn(\d)\.", r".gn\1.", name).replace("downsample.1.", "downsample.1.") for name in shapes}
    state = {
        names[name]: torch.zeros(shapes[name]) for name in shapes if "running" not in name and "tracked" not in name
    }
    found = from_mmdetection(state)
    assert found.config.backbone.norm.kind == "group"  # type: ignore[union-attr]
    assert found.config.image.std == (1 / 255,) * 3
    assert found.config.proposals.keep_train == 1000  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"backbone": {"groups": 32}}, "groups of the backbone 32, the weights show 1"),
        ({"roi_head": {"bbox_head": {"num_classes": 80}}}, "num_classes 80, the weights show 5"),
        ({"neck": {"type": "PAFPN"}}, "'PAFPN', which twostage does not compute: it has 'FPN'"),
        ({"roi_head": {"bbox_roi_extractor": {"roi_layer": {"type": "RoIPool"}}}}, "'RoIPool', which"),
        ({"rpn_head": {"bbox_coder": {"type": "LegacyDeltaXYWHBBoxCoder"}}}, "'LegacyDeltaXYWHBBoxCoder', which"),
    ],
)
def test_settings_that_compute_otherwise(model: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_mmdetection(zeros(mmdetection_shapes()), settings(**model))
