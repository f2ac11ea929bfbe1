"""detectron2's weights give the detections of a reference that follows detectron2's own rules."""

from typing import Any

import numpy as np
import pytest
import torch
from foreign_states import K, detectron2_retinanet_shapes, detectron2_shapes
from PIL import Image
from reference_detectors import (
    Found,
    Rules,
    balance,
    best,
    cascade,
    clipped,
    conv,
    decode,
    dense,
    fpn,
    linear,
    make_state,
    masks,
    pool,
    propose,
    require_same,
    resnet,
)
from torch import Tensor

from twostage import Detections, Detector
from twostage.data.scenes import HARD, make_scene
from twostage.models.build import Model, build
from twostage.models.configure import configure
from twostage.weights.fit import Unfilled, load_all
from twostage.weights.importers.detectron2 import from_detectron2

RULES = Rules(stride_in_1x1=True, size_outer=True, two_sided=False, mean_of_logits=False, level_eps=1e-8)
SIZE = 160
BGR_MEAN = (103.530, 116.280, 123.675)


def state_of(found: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    factors = {"stem.conv1": 0.01, "objectness_logits": 0.1, "anchor_deltas": 0.03, "cls_score": 1.5, "bbox_pred": 0.05}
    return make_state(found, dtype, factors)


def name_of(part: str) -> str:
    if part.startswith("stem"):
        return "backbone.bottom_up.stem.conv1" + (".norm" if part == "stem_norm" else "")
    stage, block, layer = part.split(".")
    at = f"backbone.bottom_up.res{stage}.{block}"
    if layer.startswith("short"):
        return f"{at}.shortcut" + (".norm" if layer == "short_norm" else "")
    return f"{at}.conv{layer[-1]}" + (".norm" if layer.startswith("norm") else "")


def resized(photo: np.ndarray) -> np.ndarray:
    """As detectron2 does: by Pillow, in whole grey levels, sides to the nearest pixel."""
    factor = min(SIZE / min(photo.shape[:2]), 1333 / max(photo.shape[:2]))
    height, width = (int(side * factor + 0.5) for side in photo.shape[:2])
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR))


def as_input(small: np.ndarray, dtype: torch.dtype) -> Tensor:
    """BGR without its mean, on a canvas of whole strides."""
    bgr = torch.tensor(small[:, :, ::-1].copy(), dtype=dtype) - torch.tensor(BGR_MEAN, dtype=dtype)
    height, width = small.shape[:2]
    return torch.nn.functional.pad(bgr.permute(2, 0, 1), (0, -width % 32, 0, -height % 32))[None]


def detect(state: dict[str, Tensor], small: np.ndarray, *, balanced: bool = False) -> Found:
    """What detectron2 finds in a resized image; `balanced`: of weights that are changed so that all classes occur."""
    dtype, size = state["proposal_generator.rpn_head.conv.weight"].dtype, (small.shape[0], small.shape[1])
    x = as_input(small, dtype)
    lateral, output = ([f"backbone.fpn_{kind}{k}" for k in (2, 3, 4, 5)] for kind in ("lateral", "output"))
    maps = fpn(resnet(x, state, name_of, RULES), state, lateral, output)
    levels = [*maps, maps[-1][:, :, ::2, ::2]]
    head = "proposal_generator.rpn_head"
    hidden = [conv(level, state, f"{head}.conv", padding=1).relu() for level in levels]
    predictions = [
        (conv(h, state, f"{head}.objectness_logits"), conv(h, state, f"{head}.anchor_deltas")) for h in hidden
    ]
    proposals = propose(levels, predictions, size, RULES)

    def box_head(stage: str, regions: Tensor) -> tuple[Tensor, Tensor]:
        y = linear(regions.flatten(1), state, f"roi_heads.box_head{stage}.fc1").relu()
        y = linear(y, state, f"roi_heads.box_head{stage}.fc2").relu()
        predictor = f"roi_heads.box_predictor{stage}"
        if balanced:
            balance(state, f"{predictor}.cls_score", y)
        return linear(y, state, f"{predictor}.cls_score"), linear(y, state, f"{predictor}.bbox_pred")

    def regions(boxes: Tensor) -> Tensor:
        return pool(maps, boxes, 7, RULES)

    if "roi_heads.box_head.0.fc1.weight" in state:
        weights = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
        found = cascade(regions, proposals, lambda k, r: box_head(f".{k}", r), weights, size, RULES)
    else:
        logits, deltas = box_head("", regions(proposals))
        every = decode(deltas.unflatten(1, (-1, 4)), proposals[:, None], (10, 10, 5, 5), RULES)
        found = best(clipped(every, size), logits.softmax(1), RULES.score)
    if "roi_heads.mask_head.deconv.weight" not in state:
        return found
    names = [f"roi_heads.mask_head.mask_fcn{k}" for k in range(1, 5)]
    last = ("roi_heads.mask_head.deconv", "roi_heads.mask_head.predictor")
    return found._replace(masks=masks(pool(maps, found.boxes, 14, RULES), found.labels, state, names, *last))


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
    state, small = state_of(detectron2_shapes(**KINDS[name]), dtype), resized(photo)
    expected = detect(state, small, balanced=True)
    model, found_name = built(state)
    assert found_name == name
    require_same(model, small, expected, dtype)


def detect_retinanet(state: dict[str, Tensor], small: np.ndarray) -> Found:
    dtype, size = state["head.cls_score.weight"].dtype, (small.shape[0], small.shape[1])
    stages = resnet(as_input(small, dtype), state, name_of, RULES)[1:]
    lateral, output = ([f"backbone.fpn_{kind}{k}" for k in (3, 4, 5)] for kind in ("lateral", "output"))
    maps = fpn(stages, state, lateral, output)
    sixth = conv(stages[-1], state, "backbone.top_block.p6", stride=2, padding=1)
    seventh = conv(sixth.relu(), state, "backbone.top_block.p7", stride=2, padding=1)
    levels, predictions = [*maps, sixth, seventh], []
    for x in levels:
        scores, deltas = x, x
        for k in range(0, 8, 2):
            scores = conv(scores, state, f"head.cls_subnet.{k}", padding=1).relu()
            deltas = conv(deltas, state, f"head.bbox_subnet.{k}", padding=1).relu()
        predictions.append(
            (conv(scores, state, "head.cls_score", padding=1), conv(deltas, state, "head.bbox_pred", padding=1))
        )
    return dense(levels, predictions, size, RULES, clip_first=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_retinanet(photo: np.ndarray, dtype: torch.dtype) -> None:
    factors = {"stem.conv1": 0.01, "bbox_pred": 0.1, "cls_score": 0.2}
    state, small = make_state(detectron2_retinanet_shapes(), dtype, factors), resized(photo)
    model, name = built(state)
    assert name == "retinanet_resnet50_fpn"
    require_same(model, small, detect_retinanet(state, small), dtype)


def test_a_photo_from_its_own_size(photo: np.ndarray) -> None:
    """Resizing and its inverse are detectron2's as well."""
    state, small = state_of(detectron2_shapes()), resized(photo)
    boxes = detect(state, small, balanced=True).boxes
    model, name = built(state)
    found = Detector(model, name, [str(k) for k in range(K)], device="cpu").predict(photo, conf=0.05)
    assert isinstance(found, Detections)
    theirs = boxes.numpy() * np.tile(np.array(photo.shape[1::-1]) / small.shape[1::-1], 2)
    assert np.abs(found.boxes[:, None] - theirs).max(2).min(1).max() <= 1e-2
