"""mmdetection's weights give the detections of a reference that follows mmdetection's own rules."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from foreign_states import mmdetection_retinanet_shapes, mmdetection_shapes
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
from torch.nn.functional import adaptive_avg_pool2d, interpolate, pad
from torchvision.ops import roi_align

from twostage.data.scenes import HARD, make_scene
from twostage.models.build import Model, build
from twostage.models.configure import configure
from twostage.weights.fit import Unfilled, load_all
from twostage.weights.importers.mmdetection import from_mmdetection

RULES = Rules(stride_in_1x1=False, size_outer=False, two_sided=True, mean_of_logits=True, level_eps=1e-6 / 4)
SIZE = 160
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def state_of(found: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    factors = {"rpn_cls": 0.1, "rpn_reg": 0.03, "fc_cls": 1.5, "fc_reg": 0.05}
    return make_state(found, dtype, factors)


def name_of(part: str) -> str:
    if part.startswith("stem"):
        return "backbone.bn1" if part == "stem_norm" else "backbone.conv1"
    stage, block, layer = part.split(".")
    own = {"short": "downsample.0", "short_norm": "downsample.1"}.get(layer, layer.replace("norm", "bn"))
    return f"backbone.layer{int(stage) - 1}.{block}.{own}"


def resized(photo: np.ndarray) -> np.ndarray:
    """As mmdetection does: by OpenCV, in whole grey levels, sides to the nearest pixel."""
    factor = min(SIZE / min(photo.shape[:2]), 1333 / max(photo.shape[:2]))
    height, width = (int(side * factor + 0.5) for side in photo.shape[:2])
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_LINEAR)


def as_input(small: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Normalised RGB, on a canvas of whole strides."""
    mean, std = (torch.tensor(values, dtype=dtype) for values in (MEAN, STD))
    height, width = small.shape[:2]
    x = (torch.tensor(small, dtype=dtype) - mean) / std
    return pad(x.permute(2, 0, 1), (0, -width % 32, 0, -height % 32))[None]


def detect(state: dict[str, Tensor], small: np.ndarray, *, balanced: bool = False) -> Found:
    """What mmdetection finds in a resized image; `balanced`: of weights that are changed so that all classes occur."""
    dtype, size = state["rpn_head.rpn_conv.weight"].dtype, (small.shape[0], small.shape[1])
    x = as_input(small, dtype)
    lateral, output = ([f"neck.{kind}_convs.{k}.conv" for k in range(4)] for kind in ("lateral", "fpn"))
    maps = fpn(resnet(x, state, name_of, RULES), state, lateral, output)
    levels = [*maps, maps[-1][:, :, ::2, ::2]]
    hidden = [conv(level, state, "rpn_head.rpn_conv", padding=1).relu() for level in levels]
    proposals = propose(
        levels, [(conv(h, state, "rpn_head.rpn_cls"), conv(h, state, "rpn_head.rpn_reg")) for h in hidden], size, RULES
    )
    context = semantic(levels, state) if "roi_head.semantic_head.conv_logits.weight" in state else None

    def regions(boxes: Tensor, side: int) -> Tensor:
        own = pool(maps, boxes, side, RULES)
        if context is None:
            return own
        return own + adaptive_avg_pool2d(roi_align(context, [boxes], 14, 1 / 8, 0, aligned=True), side)

    def box_head(stage: str, pooled: Tensor) -> tuple[Tensor, Tensor]:
        head = f"roi_head.bbox_head{stage}"
        y = linear(pooled.flatten(1), state, f"{head}.shared_fcs.0").relu()
        y = linear(y, state, f"{head}.shared_fcs.1").relu()
        if balanced:
            balance(state, f"{head}.fc_cls", y)
        return linear(y, state, f"{head}.fc_cls"), linear(y, state, f"{head}.fc_reg")

    stds = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
    weights = [[1 / value for value in each] for each in stds]
    if "roi_head.bbox_head.0.fc_cls.weight" in state:
        score = 0.001 if "roi_head.mask_head.1.conv_res.conv.weight" in state else RULES.score
        rules = Rules(**{**vars(RULES), "score": score})
        found = cascade(lambda b: regions(b, 7), proposals, lambda k, r: box_head(f".{k}", r), weights, size, rules)
    else:
        logits, deltas = box_head("", regions(proposals, 7))
        every = decode(deltas.unflatten(1, (-1, 4)), proposals[:, None], weights[0], RULES)
        found = best(clipped(every, size), logits.softmax(1), RULES.score)
    heads = sorted({name.rpartition(".conv_logits")[0] for name in state if ".mask_head" in name and "logits" in name})
    if not heads:
        return found
    pooled, before, probabilities = regions(found.boxes, 14), None, []
    for head in heads:
        y = pooled
        if before is not None and f"{head}.conv_res.conv.weight" in state:
            y = y + conv(before, state, f"{head}.conv_res.conv").relu()
        for k in range(4):
            y = conv(y, state, f"{head}.convs.{k}.conv", padding=1).relu()
        before = y
        probabilities.append(masks(y, found.labels, state, [], f"{head}.upsample", f"{head}.conv_logits"))
    return found._replace(masks=torch.stack(probabilities).mean(0))


def semantic(levels: list[Tensor], state: dict[str, Tensor]) -> Tensor:
    """The embedding of the semantic branch, from all five levels at the size of the second."""
    head, shape = "roi_head.semantic_head", levels[1].shape[2:]
    x = torch.zeros_like(levels[1])
    for k, level in enumerate(levels):
        at = level if level.shape[2:] == shape else interpolate(level, shape, mode="bilinear", align_corners=True)
        x = x + conv(at, state, f"{head}.lateral_convs.{k}.conv").relu()
    for k in range(4):
        x = conv(x, state, f"{head}.convs.{k}.conv", padding=1).relu()
    return conv(x, state, f"{head}.conv_embedding.conv").relu()


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    """Neither square nor a multiple of the stride."""
    return resized(np.ascontiguousarray(make_scene(0, 1, 2, style=HARD).image[:150]))


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
    expected = detect(state, small, balanced=True)
    model, found_name = built(state)
    assert found_name == name
    require_same(model, small, expected, dtype)


def detect_retinanet(state: dict[str, Tensor], small: np.ndarray) -> Found:
    dtype, size = state["bbox_head.retina_cls.weight"].dtype, (small.shape[0], small.shape[1])
    stages = resnet(as_input(small, dtype), state, name_of, RULES)[1:]
    lateral, output = ([f"neck.{kind}_convs.{k}.conv" for k in range(3)] for kind in ("lateral", "fpn"))
    levels = fpn(stages, state, lateral, output)
    levels.append(conv(stages[-1], state, "neck.fpn_convs.3.conv", stride=2, padding=1))
    levels.append(conv(levels[-1], state, "neck.fpn_convs.4.conv", stride=2, padding=1))
    predictions = []
    for x in levels:
        scores, deltas = x, x
        for k in range(4):
            scores = conv(scores, state, f"bbox_head.cls_convs.{k}.conv", padding=1).relu()
            deltas = conv(deltas, state, f"bbox_head.reg_convs.{k}.conv", padding=1).relu()
        predictions.append(
            (
                conv(scores, state, "bbox_head.retina_cls", padding=1),
                conv(deltas, state, "bbox_head.retina_reg", padding=1),
            )
        )
    return dense(levels, predictions, size, RULES, clip_first=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_retinanet(small: np.ndarray, dtype: torch.dtype) -> None:
    state = make_state(mmdetection_retinanet_shapes(), dtype, {"retina_reg": 0.1, "retina_cls": 0.2})
    model, name = built(state)
    assert name == "retinanet_resnet50_fpn"
    require_same(model, small, detect_retinanet(state, small), dtype)
