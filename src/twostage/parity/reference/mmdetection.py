"""Faster, Mask and Cascade R-CNN and HTC on a pyramid, C4 or DC5, and RetinaNet by mmdetection's rules.

(mmdetection: mmdet/models, configs/_base_/models, configs/htc; mmcv/ops.)
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

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

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
WEIGHTS = [[1 / value for value in each] for each in STDS]
CONVS = 8  # more than any head has


def rules_of(state: State, settings: Mapping[str, Any] | None = None) -> Rules:
    """The conventions of a state dict, and of its configuration (nested dictionaries) where it is given.

    Models on C4 and DC5 are published in the style "caffe" alone.
    """
    settings = settings or {}
    model = settings.get("model") or {}
    pyramid = any(name.startswith("neck.") for name in state)
    htc = any(name.endswith("conv_res.conv.weight") for name in state)
    style = (model.get("backbone") or {}).get("style") or ("pytorch" if pyramid else "caffe")
    norms = model.get("data_preprocessor") or settings.get("img_norm_cfg") or {}
    caffe = style == "caffe"
    grouped = any(name.startswith("backbone.") and name.endswith("gn1.weight") for name in state)
    of_caffe2 = caffe or grouped  # images as the first networks of Caffe2 and Detectron have them
    second = state.get("backbone.layer1.0.conv2.weight")
    of_detectron = second is not None and second.shape[1] == 8  # ResNeXt with 32 groups of 8
    bgr = of_caffe2 or of_detectron
    std = (1, 1, 1) if of_caffe2 else STD[::-1] if bgr else STD
    rgb = norms.get("bgr_to_rgb", norms.get("to_rgb", not bgr))
    return Rules(
        mean=tuple(norms.get("mean") or (MEAN[::-1] if bgr else MEAN)),
        std=tuple(norms.get("std") or std),
        bgr=not rgb,
        stride_in_1x1=caffe,
        size_outer=False,
        two_sided=True,
        mean_of_logits=True,
        level_eps=1e-6 / 4,
        clip_first=True,
        rpn_top=1000 if pyramid else 6000,
        score=0.001 if htc else 0.05,
    )


def resized(image: UInt8[np.ndarray, "h w 3"], rules: Rules) -> UInt8[np.ndarray, "_ _ 3"]:
    """By OpenCV, in whole grey levels, sides to the nearest pixel."""
    import cv2  # with which evaluation comes, and prediction does not

    height, width = rules.shape(*image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def detect(
    state: State,
    small: UInt8[np.ndarray, "h w 3"],
    rules: Rules,
    observe: Observer = ignore,
    canvas: tuple[int, int] = (0, 0),
) -> Found:
    """What mmdetection finds in a resized image (RGB) on a canvas of at least that size.

    `observe` gets the values of each stage.
    """
    from torchvision.ops import roi_align

    size = (small.shape[0], small.shape[1])
    x = as_input(small, rules, canvas, next(iter(state.values())).dtype)
    observe("image", x)
    pyramid = any(name.startswith("neck.") for name in state)
    c4 = any(name.startswith("roi_head.shared_head.") for name in state)
    body = resnet(
        x,
        state,
        _name_of,
        stride_in_1x1=rules.stride_in_1x1,
        last=4 if c4 else 5,
        dilated=not pyramid and not c4,
    )
    if "bbox_head.retina_cls.weight" in state:
        return _retinanet(body[1:], state, size, rules, observe)
    if pyramid:
        lateral, output = ([f"neck.{kind}_convs.{k}.conv" for k in range(4)] for kind in ("lateral", "fpn"))
        maps = fpn(body, state, lateral, output, partial(_norm_in, state))
    else:
        maps = body[-1:]
    levels, strides, sizes = levels_of(maps)
    predictions = []
    for level in levels:
        hidden = conv(level, state, "rpn_head.rpn_conv", padding=1).relu()
        predictions.append((conv(hidden, state, "rpn_head.rpn_cls"), conv(hidden, state, "rpn_head.rpn_reg")))
    report(observe, levels, predictions)
    proposals = propose(predictions, strides, sizes, size, rules)
    observe("proposals.boxes", proposals)
    context = _semantic(levels, state) if "roi_head.semantic_head.conv_logits.weight" in state else None

    def regions(boxes: Tensor, side: int) -> Tensor:
        own = pool(maps, boxes, side, rules)
        if context is None:
            return own
        return own + adaptive_avg_pool2d(roi_align(context, [boxes], 14, 1 / 8, 0, aligned=True), side)

    def box_head(stage: str, pooled: Tensor) -> tuple[Tensor, Tensor]:
        head = f"roi_head.bbox_head{stage}"
        y = _vectors(pooled, state, head, rules)
        observe(f"{head}.fc_cls", y)
        return linear(y, state, f"{head}.fc_cls"), linear(y, state, f"{head}.fc_reg")

    if "roi_head.bbox_head.0.fc_cls.weight" in state:
        found = cascade(lambda b: regions(b, 7), proposals, lambda k, r: box_head(f".{k}", r), WEIGHTS, size, rules)
    else:
        logits, deltas = box_head("", regions(proposals, 14 if c4 else 7))
        every = decode(deltas.unflatten(1, (-1, 4)), proposals[:, None], WEIGHTS[0], rules)
        found = best(clipped(every, size), logits.softmax(1), rules)
    return _with_masks(found, regions(found.boxes, 14), state, rules)


def _with_masks(found: Found, pooled: Tensor, state: State, rules: Rules) -> Found:
    """The mean of the masks of all stages; in HTC each reads the features of the one before."""
    heads = sorted({name.rpartition(".conv_logits")[0] for name in state if ".mask_head" in name and "logits" in name})
    if not heads:
        return found
    if any(name.startswith("roi_head.shared_head.") for name in state):
        pooled = residual_stage(pooled, state, _shared_of, 5, 2, stride_in_1x1=rules.stride_in_1x1)
    before, probabilities = None, []
    for head in heads:
        y = pooled
        if before is not None and f"{head}.conv_res.conv.weight" in state:
            y = y + conv(before, state, f"{head}.conv_res.conv").relu()
        y = before = _convolved(y, state, f"{head}.convs")
        probabilities.append(masks(y, found.labels, state, f"{head}.upsample", f"{head}.conv_logits"))
    return found._replace(masks=torch.stack(probabilities).mean(0))


def _convolved(x: Tensor, state: State, name: str) -> Tensor:
    """After the convolutions of a head, with their normalisation."""
    for k in range(CONVS):
        if f"{name}.{k}.conv.weight" in state:
            x = norm(conv(x, state, f"{name}.{k}.conv", padding=1), state, _norm_in(state, f"{name}.{k}.conv")).relu()
    return x


def _vectors(regions: Tensor, state: State, head: str, rules: Rules) -> Tensor:
    """Of each region: by ResNet's last stage, or by convolutions and linear layers."""
    if any(name.startswith("roi_head.shared_head.") for name in state):
        return residual_stage(regions, state, _shared_of, 5, 2, stride_in_1x1=rules.stride_in_1x1).mean(dim=(2, 3))
    y = _convolved(regions, state, f"{head}.shared_convs").flatten(1)
    for k in range(2):
        if f"{head}.shared_fcs.{k}.weight" in state:
            y = linear(y, state, f"{head}.shared_fcs.{k}").relu()
    return y


def _name_of(part: str) -> str:
    """mmdetection's names of a body's parts (see `resnet`)."""
    if part.startswith("stem"):
        return "backbone.bn1" if part == "stem_norm" else "backbone.conv1"
    stage, block, layer = part.split(".")
    own = {"short": "downsample.0", "short_norm": "downsample.1"}.get(layer, layer.replace("norm", "bn"))
    return f"backbone.layer{int(stage) - 1}.{block}.{own}"


def _shared_of(part: str) -> str:
    """The same in the heads of C4."""
    return _name_of(part).replace("backbone.", "roi_head.shared_head.")


def _norm_in(state: State, name: str) -> str:
    """The normalisation of a layer, named by its kind."""
    name = name.removesuffix(".conv")
    return next((f"{name}.{kind}" for kind in ("gn", "bn") if f"{name}.{kind}.weight" in state), f"{name}.bn")


def _semantic(levels: list[Tensor], state: State) -> Tensor:
    """The embedding of the semantic branch, from all five levels at the size of the second."""
    head, shape = "roi_head.semantic_head", levels[1].shape[2:]
    x = torch.zeros_like(levels[1])
    for k, level in enumerate(levels):
        at = level if level.shape[2:] == shape else interpolate(level, shape, mode="bilinear", align_corners=True)
        x = x + conv(at, state, f"{head}.lateral_convs.{k}.conv").relu()
    for k in range(4):
        x = conv(x, state, f"{head}.convs.{k}.conv", padding=1).relu()
    return conv(x, state, f"{head}.conv_embedding.conv").relu()


def _retinanet(stages: list[Tensor], state: State, size: tuple[int, int], rules: Rules, observe: Observer) -> Found:
    lateral, output = ([f"neck.{kind}_convs.{k}.conv" for k in range(3)] for kind in ("lateral", "fpn"))
    levels = fpn(stages, state, lateral, output, partial(_norm_in, state))
    levels.append(conv(stages[-1], state, "neck.fpn_convs.3.conv", stride=2, padding=1))
    levels.append(conv(levels[-1], state, "neck.fpn_convs.4.conv", stride=2, padding=1))
    predictions = []
    for level in levels:
        scores, deltas = (_convolved(level, state, f"bbox_head.{kind}_convs") for kind in ("cls", "reg"))
        predictions.append(
            (
                conv(scores, state, "bbox_head.retina_cls", padding=1),
                conv(deltas, state, "bbox_head.retina_reg", padding=1),
            )
        )
    report(observe, levels, predictions)
    return dense(predictions, size, rules)
