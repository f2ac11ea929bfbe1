"""Detectors as detectron2 and mmdetection document them, in plain torch and torchvision's operators.

An oracle for the importers: it reads a state dict by the project's own names, and computes with nothing of ours. One
image at a time, every step written out; what differs between the projects is a `Rules`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, nms, roi_align

from twostage.data.batch import Batch
from twostage.models.build import Model

State = Mapping[str, Tensor]
CLAMP = math.log(1000 / 16)


class Found(NamedTuple):
    """Detections on the pixels of the resized image."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Rules:
    """Where the stride of a bottleneck is, how anchors are sorted, how boxes are decoded and scores averaged."""

    stride_in_1x1: bool
    size_outer: bool
    two_sided: bool
    mean_of_logits: bool
    level_eps: float  # added to the size in canonical sizes
    score: float = 0.05


def norm(x: Tensor, state: State, name: str) -> Tensor:
    return F.batch_norm(
        x, state[f"{name}.running_mean"], state[f"{name}.running_var"], state[f"{name}.weight"], state[f"{name}.bias"]
    )


def resnet(x: Tensor, state: State, name_of: Callable[[str], str], rules: Rules) -> list[Tensor]:
    """The maps of four stages; `name_of` gives the project's name of `stem`, `2.0.conv1`, `2.0.norm1`, `2.0.short`."""
    x = F.conv2d(x, state[f"{name_of('stem')}.weight"], stride=2, padding=3)
    x = F.max_pool2d(norm(x, state, name_of("stem_norm")).relu(), 3, 2, 1)
    maps = []
    for stage, depth in zip(range(2, 6), (3, 4, 6, 3), strict=True):
        for block in range(depth):
            stride = 2 if stage > 2 and block == 0 else 1
            first, second = (stride, 1) if rules.stride_in_1x1 else (1, stride)
            at = f"{stage}.{block}"
            y = F.conv2d(x, state[f"{name_of(at + '.conv1')}.weight"], stride=first)
            y = norm(y, state, name_of(f"{at}.norm1")).relu()
            y = F.conv2d(y, state[f"{name_of(at + '.conv2')}.weight"], stride=second, padding=1)
            y = norm(y, state, name_of(f"{at}.norm2")).relu()
            y = norm(F.conv2d(y, state[f"{name_of(at + '.conv3')}.weight"]), state, name_of(f"{at}.norm3"))
            if block == 0:
                x = F.conv2d(x, state[f"{name_of(at + '.short')}.weight"], stride=stride)
                x = norm(x, state, name_of(f"{at}.short_norm"))
            x = (x + y).relu()
        maps.append(x)
    return maps


def conv(x: Tensor, state: State, name: str, **how: int) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **how)


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def fpn(maps: Sequence[Tensor], state: State, lateral: Sequence[str], output: Sequence[str]) -> list[Tensor]:
    tops = [conv(maps[-1], state, lateral[-1])]
    for x, name in zip(maps[-2::-1], lateral[-2::-1], strict=True):
        tops.append(conv(x, state, name) + F.interpolate(tops[-1], size=x.shape[2:], mode="nearest"))
    return [conv(x, state, name, padding=1) for x, name in zip(tops[::-1], output, strict=True)]


def anchors(height: int, width: int, stride: int, sizes: Sequence[float], rules: Rules, like: Tensor) -> Tensor:
    ratios = (0.5, 1.0, 2.0)
    order = [(s, r) for s in sizes for r in ratios] if rules.size_outer else [(s, r) for r in ratios for s in sizes]
    sides = torch.tensor([(s / math.sqrt(r), s * math.sqrt(r)) for s, r in order], dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    centre = torch.stack([x, y], dim=-1).to(like.dtype)[:, :, None]
    half = (sides / 2).float().to(like.dtype)  # a constant, in float32 everywhere
    return torch.cat([centre - half, centre + half], dim=-1).flatten(0, 2)


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float], rules: Rules) -> Tensor:
    dx, dy, dw, dh = (deltas / torch.tensor(weights, dtype=deltas.dtype)).unbind(-1)
    low = -CLAMP if rules.two_sided else None
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    x = boxes[..., 0] + width / 2 + dx * width
    y = boxes[..., 1] + height / 2 + dy * height
    half_w, half_h = width * dw.clamp(low, CLAMP).exp() / 2, height * dh.clamp(low, CLAMP).exp() / 2
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    limit = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def rows(x: Tensor, each: int) -> Tensor:
    """A prediction map as one row of `each` numbers for every anchor."""
    return x[0].permute(1, 2, 0).reshape(-1, each)


def propose(
    levels: Sequence[Tensor], predictions: Sequence[tuple[Tensor, Tensor]], size: tuple[int, int], rules: Rules
) -> Tensor:
    """The best 1000 of each level before suppression at 0.7, and of all levels after it."""
    boxes, scores, of = [], [], []
    for level, (x, (logits, deltas)) in enumerate(zip(levels, predictions, strict=True)):
        grid = anchors(x.shape[2], x.shape[3], 4 << level, [32 << level], rules, x)
        score, best = rows(logits, 1)[:, 0].sort(descending=True, stable=True)
        score, best = score[:1000], best[:1000]
        box = clipped(decode(rows(deltas, 4)[best], grid[best], (1, 1, 1, 1), rules), size)
        valid = ((box[:, 2:] - box[:, :2]) > 0).all(dim=1)
        boxes.append(box[valid])
        scores.append(score[valid])
        of.append(torch.full_like(score[valid], level))
    box, score, level_of = torch.cat(boxes), torch.cat(scores), torch.cat(of)
    return box[batched_nms(box, score, level_of, 0.7)[:1000]]


def pool(maps: Sequence[Tensor], boxes: Tensor, size: int, rules: Rules) -> Tensor:
    """RoIAlign with as many points as a bin has pixels, from the level of the box's size (FPN, equation 1)."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = (4 + torch.log2(side / 224 + rules.level_eps)).floor().clamp(2, 5)
    pooled = maps[0].new_zeros(len(boxes), maps[0].shape[1], size, size)
    for k, x in enumerate(maps):
        own = (level == k + 2).nonzero()[:, 0]
        pooled[own] = roi_align(x, [boxes[own]], size, 1 / (4 << k), sampling_ratio=0, aligned=True)
    return pooled


def best(boxes: Tensor, scores: Tensor, score: float) -> Found:
    """The best 100 after suppression at 0.5 within each class: boxes, scores, classes from 0. Background is last."""
    row, label = (scores[:, :-1] > score).nonzero().unbind(1)
    box, value = boxes[row, label if boxes.shape[1] > 1 else 0], scores[row, label]
    keep = torch.cat(
        [own[nms(box[own], value[own], 0.5)] for k in label.unique() for own in [(label == k).nonzero()[:, 0]]]
    )
    keep = keep[value[keep].argsort(descending=True)][:100]
    return Found(box[keep], value[keep], label[keep])


def dense(
    levels: Sequence[Tensor],
    predictions: Sequence[tuple[Tensor, Tensor]],
    size: tuple[int, int],
    rules: Rules,
    *,
    clip_first: bool,
) -> Found:
    """RetinaNet: of each level the best 1000 pairs of an anchor and a class, and 100 of all after suppression."""
    boxes, scores, labels = [], [], []
    for level, (x, (logits, deltas)) in enumerate(zip(levels, predictions, strict=True)):
        sizes = [(32 << level) * 2 ** (k / 3) for k in range(3)]
        grid = anchors(x.shape[2], x.shape[3], 8 << level, sizes, rules, x)
        each = logits.shape[1] // 9
        score, place = rows(logits, each).sigmoid().flatten().sort(descending=True, stable=True)
        score, place = score[:1000][score[:1000] > rules.score], place[:1000][score[:1000] > rules.score]
        box = decode(rows(deltas, 4)[place // each], grid[place // each], (1, 1, 1, 1), rules)
        boxes.append(clipped(box, size) if clip_first else box)
        scores.append(score)
        labels.append(place % each)
    box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    keep = batched_nms(box, score, label, 0.5)[:100]
    return Found(clipped(box[keep], size), score[keep], label[keep])


def cascade(
    regions: Callable[[Tensor], Tensor],
    boxes: Tensor,
    head: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    weights: Sequence[Sequence[float]],
    size: tuple[int, int],
    rules: Rules,
) -> Found:
    """Three heads, each on the boxes of the one before; `head` gives a stage's logits and class-agnostic deltas."""
    every = []
    for stage, each in enumerate(weights):
        logits, deltas = head(stage, regions(boxes))
        every.append(logits)
        boxes = clipped(decode(deltas, boxes, each, rules), size)
    stacked = torch.stack(every)
    mean = stacked.mean(0).softmax(1) if rules.mean_of_logits else stacked.softmax(2).mean(0)
    return best(boxes[:, None], mean, rules.score)


def balance(state: dict[str, Tensor], name: str, features: Tensor) -> None:
    """Changes the bias of a layer such that no class wins everywhere: its mean logits become equal."""
    bias = state[f"{name}.bias"] - linear(features, state, name).mean(dim=0)
    state[f"{name}.bias"] = bias.float().to(bias.dtype)


def masks(x: Tensor, labels: Tensor, state: State, convs: Sequence[str], up: str, last: str) -> Tensor:
    """The probabilities of each region's mask for its class."""
    for name in convs:
        x = conv(x, state, name, padding=1).relu()
    x = F.conv_transpose2d(x, state[f"{up}.weight"], state[f"{up}.bias"], stride=2).relu()
    return conv(x, state, last)[torch.arange(len(labels)), labels].sigmoid()


def make_state(
    shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, factors: Mapping[str, float]
) -> dict[str, Tensor]:
    """Random weights with which a network neither dies nor explodes, and whose detections differ in class and score.

    `factors` scale the weights of layers by the end of their names.
    """
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) > 1:
            value *= (2 / math.prod(shape[1:])) ** 0.5
        elif "running_var" in name:
            value = 0.5 + value.abs() / 4
        elif name.endswith(("norm.weight", "norm3.weight")) or ("bn" in name and name.endswith("weight")):
            value = (0.25 if "3." in name[-14:] else 0.8) + value / 20
        else:
            value *= 0.05
        value *= next((factor for part, factor in factors.items() if name.endswith(f"{part}.weight")), 1)
        state[name] = value.float().to(dtype)  # a model is loaded in float32
    return state


def on_canvas(small: np.ndarray, dtype: torch.dtype) -> Batch:
    """A resized image alone, padded to a multiple of 32."""
    height, width = small.shape[:2]
    image = torch.tensor(small, dtype=dtype).permute(2, 0, 1) / 255
    batch = Batch(image[None], torch.tensor([[height, width]]))
    return batch.on_canvas(-(-height // 32) * 32, -(-width // 32) * 32)


def require_same(model: Model, small: np.ndarray, expected: Found, dtype: torch.dtype) -> None:
    """That a model finds the same objects in a resized image: one to one, whatever the order of equal scores."""
    model = model.to(dtype)
    model.normalize.pixel_mean, model.normalize.pixel_std = (
        torch.tensor(values, dtype=dtype)[:, None, None] for values in (model.config.image.mean, model.config.image.std)
    )
    with torch.no_grad():
        found = model(on_canvas(small, dtype))
    count = len(expected.boxes)
    assert found.valid.sum() == count > 10
    assert len(expected.labels.unique()) > 2
    labels = found.labels[0, :count]
    distance = (found.boxes[0, :count, None] - expected.boxes).abs().amax(2)
    near, partner = distance.where(labels[:, None] == expected.labels, torch.inf).min(dim=1)
    assert sorted(partner.tolist()) == list(range(count))
    pixels, scores = {torch.float32: (1e-2, 1e-4), torch.float64: (1e-9, 1e-9)}[dtype]
    assert near.max() <= pixels
    torch.testing.assert_close(found.scores[0, :count], expected.scores[partner], atol=scores, rtol=0)
    if expected.masks is not None:
        torch.testing.assert_close(found.masks[0, :count], expected.masks[partner], atol=10 * scores, rtol=0)
