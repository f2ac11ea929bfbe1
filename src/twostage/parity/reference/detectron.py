"""Faster R-CNN on a pyramid or C4 by Detectron's rules, where the last pixel belongs to a box.

(Detectron: core/test.py, modeling/FPN.py and ResNet.py, ops/generate_proposals.py, utils/boxes.py and blob.py.)
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from twostage.parity.reference.network import State, conv, fpn, linear, residual_stage, resnet
from twostage.parity.reference.py_faster_rcnn import resized, scale_of
from twostage.parity.reference.steps import CLAMP, SIZES, Found, Observer, ignore, report
from twostage.parity.reference.vgg import Numbers, as_input, best

__all__ = ["detect", "numbers_of", "resized"]

COARSEST = 32  # of which the sides of a canvas are multiples, with a pyramid
_BRANCHES = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "norm1": "2a_bn", "norm2": "2b_bn", "norm3": "2c_bn"}


def numbers_of(state: State, settings: Mapping[str, Any] | None = None) -> Numbers:
    """Its pixel mean (core/config.py), and its baselines' thresholds; the least side is in pixels of the network's."""
    mean = np.ravel((settings or {}).get("PIXEL_MEANS") or (102.9801, 115.9465, 122.7717))[::-1].tolist()
    return Numbers(tuple(mean), (1.0, 1.0, 1.0), 800, 1333, 1000, 1000, 0.7, 1.0, 0.05, 0.5, 100)


def detect(
    state: State,
    small: Float[np.ndarray, "h w 3"],
    shape: tuple[int, int],
    numbers: Numbers,
    observe: Observer = ignore,
    canvas: Sequence[int] | None = None,
) -> Found:
    """Detections in a resized image (RGB), on the pixels of the image of that height and width, half-open as ours."""
    dtype = next(iter(state.values())).dtype
    layers = _layers(state)
    pyramid = "fpn_res2_2_sum.weight" in layers
    stride_in_1x1 = layers["res2_0_branch2b.weight"].shape[1] == layers["res2_0_branch2b.weight"].shape[0]
    multiple = COARSEST if pyramid else 1
    own, shared = (
        [-(-side // multiple) * multiple for side in each[:2]] for each in (small.shape, canvas or small.shape)
    )
    x = as_input(small, numbers, shared, dtype).flip(1)
    observe("image", x)
    maps = resnet(x, layers, _names, stride_in_1x1=stride_in_1x1, last=5 if pyramid else 4)
    if pyramid:
        of = [next(name for name in layers if name.startswith(f"fpn_res{k}_")).split(".")[0] for k in (2, 3, 4, 5)]
        inner = [name.replace("fpn_", "fpn_inner_") + ("_lateral" if name != of[-1] else "") for name in of]
        maps = fpn(maps, layers, inner, of, "{} has none".format)
        levels, strides, sizes = [*maps, maps[-1][:, :, ::2, ::2]], [4, 8, 16, 32, 64], [[s] for s in SIZES]
    else:
        maps = maps[-1:]
        levels, strides, sizes = maps, [16], [list(SIZES)]
    end = "_fpn2" if pyramid else ""
    predictions = []
    for level in levels:
        y = conv(level, layers, f"conv_rpn{end}", padding=1).relu()
        predictions.append((conv(y, layers, f"rpn_cls_logits{end}"), conv(y, layers, f"rpn_bbox_pred{end}")))
    report(observe, levels, predictions)
    rois = _propose(predictions, strides, sizes, own, numbers)
    last = torch.tensor([0, 0, 1, 1], dtype=dtype)
    observe("proposals.boxes", rois + last)
    if pyramid:
        y = _pooled(maps, rois).flatten(1)
        for name in ("fc6", "fc7"):
            y = linear(y, layers, name).relu()
    else:
        from torchvision.ops import roi_align

        y = roi_align(maps[0], [rois], 14, 1 / 16, sampling_ratio=0)
        y = residual_stage(y, layers, _names, 5, 2, stride_in_1x1=stride_in_1x1).mean(dim=(2, 3))
    observe("cls_score", y)
    probabilities, deltas = linear(y, layers, "cls_score").softmax(1), linear(y, layers, "bbox_pred")
    scale, count = scale_of(shape, numbers), probabilities.shape[1]
    weights = torch.tensor([10, 10, 5, 5], dtype=dtype)
    boxes = _moved((rois / scale).repeat_interleave(count, 0), deltas.reshape(-1, 4) / weights)
    found = best(_clipped(boxes, shape).unflatten(0, (len(rois), -1)), probabilities, numbers, 1.0)
    return found._replace(boxes=found.boxes + last)


def _layers(state: State) -> dict[str, Tensor]:
    """Weights and biases by layer; a scale and a shift are a batch normalisation of mean 0 and deviation 1."""
    layers = {}
    for name, value in state.items():
        layer, _, part = name.rpartition("_")
        layers[f"{layer}.{'bias' if part == 'b' else 'weight'}"] = value
        if part == "s":
            layers[f"{layer}.running_mean"] = torch.zeros_like(value)
            layers[f"{layer}.running_var"] = torch.ones_like(value) - 1e-5  # eps is added to it
    return layers


def _names(part: str) -> str:
    """Its names of a body's parts (see `network.resnet`)."""
    if part.startswith("stem"):
        return "res_conv1_bn" if part == "stem_norm" else "conv1"
    stage, block, layer = part.split(".")
    if layer.startswith("short"):
        return f"res{stage}_{block}_branch1" + ("_bn" if layer == "short_norm" else "")
    return f"res{stage}_{block}_branch{_BRANCHES[layer]}"


def _propose(
    predictions: Sequence[tuple[Tensor, Tensor]],
    strides: Sequence[int],
    sizes: Sequence[Sequence[float]],
    canvas: Sequence[int],
    numbers: Numbers,
) -> Tensor:
    """Of every level the best, clipped to the padded image and suppressed; of all levels the best."""
    from torchvision.ops import nms

    boxes, scores = [], []
    for (logits, deltas), stride, of_level in zip(predictions, strides, sizes, strict=True):
        cell = torch.tensor(_anchors(stride, of_level), dtype=logits.dtype)
        y, x = torch.meshgrid(*(torch.arange(side) * stride for side in logits.shape[2:]), indexing="ij")
        anchors = (torch.stack([x, y, x, y], dim=-1).flatten(0, 1)[:, None] + cell).flatten(0, 1)
        here = (y.flatten() < canvas[0]) & (x.flatten() < canvas[1])
        score = logits[0].permute(1, 2, 0).flatten().masked_fill(~here.repeat_interleave(len(cell)), -torch.inf)
        score, order = score.sort(descending=True, stable=True)
        count = min(numbers.rpn_top, int((score > -torch.inf).sum()))
        score, order = score[:count], order[:count]
        box = _clipped(_moved(anchors[order], deltas[0].permute(1, 2, 0).reshape(-1, 4)[order]), canvas)
        large = ((box[:, 2:] - box[:, :2] + 1) >= numbers.min_size).all(1)
        box, score = box[large], score[large]
        keep = nms(box + torch.tensor([0, 0, 1, 1], dtype=box.dtype), score, numbers.rpn_nms)[: numbers.rpn_keep]
        boxes.append(box[keep])
        scores.append(score[keep])
    return torch.cat(boxes)[torch.cat(scores).sort(descending=True, stable=True).indices[: numbers.rpn_keep]]


def _anchors(stride: int, sizes: Sequence[float]) -> list[list[float]]:
    """Of a cell: its window from 0 to the last pixel at three ratios, its sides rounded, and then larger."""
    boxes, centre = [], (stride - 1) / 2
    for ratio in (0.5, 1.0, 2.0):
        width = np.round(math.sqrt(stride * stride / ratio))
        height = np.round(width * ratio)
        for size in sizes:
            w, h = width * size / stride - 1, height * size / stride - 1
            boxes.append([centre - w / 2, centre - h / 2, centre + w / 2, centre + h / 2])
    return boxes


def _pooled(maps: Sequence[Tensor], rois: Tensor) -> Tensor:
    """RoIAlign with two points a bin each way, from the level of a region's size."""
    from torchvision.ops import roi_align

    area = (rois[:, 2] - rois[:, 0] + 1) * (rois[:, 3] - rois[:, 1] + 1)
    level = (4 + torch.log2(area.sqrt() / 224 + 1e-6)).floor().clamp(2, 5)
    pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], 7, 7)
    for k, x in enumerate(maps):
        own = (level == k + 2).nonzero()[:, 0]
        pooled[own] = roi_align(x, [rois[own]], 7, 1 / (4 << k), sampling_ratio=2)
    return pooled


def _moved(boxes: Tensor, deltas: Tensor) -> Tensor:
    """A box's last pixel counts in its sides."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    centre = boxes[:, :2] + sides / 2 + deltas[:, :2] * sides
    half = deltas[:, 2:].clamp(max=CLAMP).exp() * sides / 2
    return torch.cat([centre - half, centre + half - 1], dim=1)


def _clipped(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """From the first pixel to the last."""
    last = torch.tensor([size[1], size[0]] * 2, dtype=boxes.dtype) - 1
    return torch.minimum(boxes, last).clamp(min=0)
