"""Faster, Mask and Cascade R-CNN on a pyramid, C4 or DC5, and RetinaNet by detectron2's rules.

(detectron2: modeling/meta_arch/rcnn.py and retinanet.py, modeling/roi_heads, modeling/backbone.)
"""

import ast
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from twostage.parity.reference.network import State, conv, fpn, linear, masks, norm, residual_stage, resnet
from twostage.parity.reference.steps import (
    Found,
    Observer,
    Rules,
    as_input,
    best,
    cascade,
    clipped,
    decode,
    dense,
    ignore,
    levels_of,
    pool,
    propose,
    report,
)

MEAN = (103.530, 116.280, 123.675)
STD_OF_RESNEXT = (57.375, 57.120, 58.395)
WEIGHTS = ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))
RPN = "proposal_generator.rpn_head"


def rules_of(state: State, settings: Mapping[str, Any] | None = None) -> Rules:
    """The conventions of a state dict, and of its configuration (a nested mapping) where it is given."""
    settings = settings or {}
    first = next(state[name] for name in state if name.endswith("res2.0.conv2.weight"))
    resnext = first.shape[0] != first.shape[1]
    msra = not resnext and any(name.endswith("res2.0.conv1.norm.running_mean") for name in state)
    bottlenecks = any(name.endswith("res2.0.conv3.weight") for name in state)
    rules = Rules(
        mean=MEAN,
        std=STD_OF_RESNEXT if resnext else (1, 1, 1),
        bgr=True,
        stride_in_1x1=msra and bottlenecks,
        size_outer=True,
        two_sided=False,
        mean_of_logits=False,
        level_eps=1e-8,
        clip_first=False,
        divisor=32 if any(".fpn_" in name for name in state) else 1,
        rpn_top=1000 if any(".fpn_" in name for name in state) else 6000,
    )
    model, given = settings.get("MODEL") or {}, settings.get("INPUT") or {}
    if settings:  # what a configuration leaves out is that of config/defaults.py
        rules = replace(
            rules,
            mean=_numbers(model.get("PIXEL_MEAN", MEAN)),
            std=_numbers(model.get("PIXEL_STD", (1, 1, 1))),
            stride_in_1x1=bottlenecks and (model.get("RESNETS") or {}).get("STRIDE_IN_1X1", True),
            bgr=given.get("FORMAT", "BGR") == "BGR",
        )
    return rules


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(ast.literal_eval(values) if isinstance(values, str) else values)


def resized(image: UInt8[np.ndarray, "h w 3"], rules: Rules) -> UInt8[np.ndarray, "_ _ 3"]:
    """By Pillow, in whole grey levels, sides to the nearest pixel."""
    height, width = rules.shape(*image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def detect(
    state: State,
    small: UInt8[np.ndarray, "h w 3"],
    rules: Rules,
    observe: Observer = ignore,
    canvas: tuple[int, int] = (0, 0),
) -> Found:
    """What detectron2 finds in a resized image (RGB) on a canvas of at least that size.

    `observe` gets the values of each stage.
    """
    size = (small.shape[0], small.shape[1])
    x = as_input(small, rules, canvas, next(iter(state.values())).dtype)
    observe("image", x)
    if "head.cls_score.weight" in state:
        return _retinanet(x, state, size, rules, observe)
    pyramid = any(".fpn_" in name for name in state)
    c4 = "roi_heads.res5.0.conv1.weight" in state
    names = _names("backbone.bottom_up." if pyramid else "backbone.")
    body = resnet(
        x, state, names, stride_in_1x1=rules.stride_in_1x1, last=4 if c4 else 5, dilated=not pyramid and not c4
    )
    if pyramid:
        lateral, output = ([f"backbone.fpn_{kind}{k}" for k in (2, 3, 4, 5)] for kind in ("lateral", "output"))
        maps = fpn(body, state, lateral, output)
    else:
        maps = body[-1:]
    levels, strides, sizes = levels_of(maps)
    predictions = [_rpn(level, state) for level in levels]
    report(observe, levels, predictions)
    proposals = propose(predictions, strides, sizes, size, rules)
    observe("proposals.boxes", proposals)

    def box_head(stage: str, regions: Tensor) -> tuple[Tensor, Tensor]:
        y = _vectors(regions, state, f"roi_heads.box_head{stage}", rules)
        predictor = f"roi_heads.box_predictor{stage}"
        observe(f"{predictor}.cls_score", y)
        return linear(y, state, f"{predictor}.cls_score"), linear(y, state, f"{predictor}.bbox_pred")

    if "roi_heads.box_head.0.fc1.weight" in state:
        found = cascade(
            lambda boxes: pool(maps, boxes, 7, rules),
            proposals,
            lambda k, r: box_head(f".{k}", r),
            WEIGHTS,
            size,
            rules,
        )
    else:
        logits, deltas = box_head("", pool(maps, proposals, 14 if c4 else 7, rules))
        every = decode(deltas.unflatten(1, (-1, 4)), proposals[:, None], WEIGHTS[0], rules)
        found = best(clipped(every, size), logits.softmax(1), rules)
    if "roi_heads.mask_head.deconv.weight" not in state:
        return found
    y = pool(maps, found.boxes, 14, rules)
    if c4:
        y = residual_stage(y, state, _names("roi_heads."), 5, 2, stride_in_1x1=rules.stride_in_1x1)
    for k in range(1, 9):
        if f"roi_heads.mask_head.mask_fcn{k}.weight" in state:
            name = f"roi_heads.mask_head.mask_fcn{k}"
            y = norm(conv(y, state, name, padding=1), state, f"{name}.norm").relu()
    last = ("roi_heads.mask_head.deconv", "roi_heads.mask_head.predictor")
    return found._replace(masks=masks(y, found.labels, state, *last))


def _names(prefix: str) -> Any:
    """detectron2's names of a body's parts (see `resnet`)."""

    def name_of(part: str) -> str:
        """Of `stem`, `2.0.conv1` and so on."""
        if part.startswith("stem"):
            return f"{prefix}stem.conv1" + (".norm" if part == "stem_norm" else "")
        stage, block, layer = part.split(".")
        at = f"{prefix}res{stage}.{block}"
        if layer.startswith("short"):
            return f"{at}.shortcut" + (".norm" if layer == "short_norm" else "")
        return f"{at}.conv{layer[-1]}" + (".norm" if layer.startswith("norm") else "")

    return name_of


def _rpn(x: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """Logits and deltas of one map."""
    convs = [f"{RPN}.conv"] if f"{RPN}.conv.weight" in state else [f"{RPN}.conv.conv{k}" for k in range(9)]
    for name in convs:
        if f"{name}.weight" in state:
            x = conv(x, state, name, padding=1).relu()
    return conv(x, state, f"{RPN}.objectness_logits"), conv(x, state, f"{RPN}.anchor_deltas")


def _vectors(regions: Tensor, state: State, head: str, rules: Rules) -> Tensor:
    """Of each region: by ResNet's last stage, or by convolutions and linear layers."""
    if "roi_heads.res5.0.conv1.weight" in state:
        names = _names("roi_heads.")
        return residual_stage(regions, state, names, 5, 2, stride_in_1x1=rules.stride_in_1x1).mean(dim=(2, 3))
    for k in range(1, 9):
        name = f"{head}.conv{k}"
        if f"{name}.weight" in state:
            regions = norm(conv(regions, state, name, padding=1), state, f"{name}.norm").relu()
    y = regions.flatten(1)
    for k in (1, 2):
        if f"{head}.fc{k}.weight" in state:
            y = linear(y, state, f"{head}.fc{k}").relu()
    return y


def _retinanet(x: Tensor, state: State, size: tuple[int, int], rules: Rules, observe: Observer) -> Found:
    stages = resnet(x, state, _names("backbone.bottom_up."), stride_in_1x1=rules.stride_in_1x1)[1:]
    lateral, output = ([f"backbone.fpn_{kind}{k}" for k in (3, 4, 5)] for kind in ("lateral", "output"))
    maps = fpn(stages, state, lateral, output)
    sixth = conv(stages[-1], state, "backbone.top_block.p6", stride=2, padding=1)
    seventh = conv(sixth.relu(), state, "backbone.top_block.p7", stride=2, padding=1)
    levels, predictions = [*maps, sixth, seventh], []
    for level in levels:
        scores, deltas = level, level
        for k in range(0, 8, 2):
            scores = conv(scores, state, f"head.cls_subnet.{k}", padding=1).relu()
            deltas = conv(deltas, state, f"head.bbox_subnet.{k}", padding=1).relu()
        predictions.append(
            (conv(scores, state, "head.cls_score", padding=1), conv(deltas, state, "head.bbox_pred", padding=1))
        )
    report(observe, levels, predictions)
    return dense(predictions, size, rules)
