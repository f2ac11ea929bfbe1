"""What is computed from the layers' outputs: anchors, boxes, proposals, regions, detections."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import pad

CLAMP = math.log(1000 / 16)
RATIOS = (0.5, 1.0, 2.0)
SIZES = (32, 64, 128, 256, 512)

Observer = Callable[[str, Tensor], None]


def ignore(_stage: str, _values: Tensor) -> None:
    """An observer that keeps nothing."""


class Found(NamedTuple):
    """Detections on the pixels of the resized image; masks are probabilities on a grid of each box."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Rules:
    """By what a project's detectors compute; the numbers are those of tests.

    `mean` and `std` are of pixels from 0 to 255 in the order in which the channels enter, `bgr` or RGB. Anchors are
    sorted by size first (`size_outer`) or by ratio; deltas of a side are cut at both ends (`two_sided`) or above;
    a cascade averages logits or probabilities; `level_eps` is added to a box's size in canonical sizes; RetinaNet's
    boxes are clipped before they are suppressed (`clip_first`) or after.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool
    stride_in_1x1: bool
    size_outer: bool
    two_sided: bool
    mean_of_logits: bool
    level_eps: float
    clip_first: bool
    size: int = 800
    max_size: int = 1333
    divisor: int = 32
    rpn_top: int = 1000
    rpn_keep: int = 1000
    rpn_nms: float = 0.7
    score: float = 0.05
    nms: float = 0.5
    most: int = 100

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a resized image."""
        factor = min(self.size / min(height, width), self.max_size / max(height, width))
        return int(height * factor + 0.5), int(width * factor + 0.5)


def as_input(small: UInt8[np.ndarray, "h w 3"], rules: Rules, canvas: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A resized image (RGB) normalised, on a canvas of at least that size and of whole strides."""
    mean, std = (torch.tensor(values, dtype=dtype) for values in (rules.mean, rules.std))
    pixels = torch.tensor(small[:, :, ::-1].copy() if rules.bgr else small, dtype=dtype)
    x = ((pixels - mean) / std).permute(2, 0, 1)
    height, width = (max(pair) for pair in zip(canvas, small.shape, strict=False))
    below, right = height - small.shape[0] + -height % rules.divisor, width - small.shape[1] + -width % rules.divisor
    return pad(x, (0, right, 0, below))[None]


def levels_of(maps: Sequence[Tensor]) -> tuple[list[Tensor], list[int], list[Sequence[float]]]:
    """The maps that the RPN reads, their strides and anchor sizes: of a pyramid with P6, or a single one."""
    if len(maps) == 1:
        return [*maps], [16], [SIZES]
    return [*maps, maps[-1][:, :, ::2, ::2]], [4, 8, 16, 32, 64], [[size] for size in SIZES]


def report(observe: Observer, levels: Sequence[Tensor], predictions: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Hands the maps, logits and deltas of every level to an observer."""
    logits, deltas = zip(*predictions, strict=True)
    for stage, values in (("maps", levels), ("objectness", logits), ("deltas", deltas)):
        for k, each in enumerate(values):
            observe(f"{stage}.level{k}", each)


def anchors(height: int, width: int, stride: int, sizes: Sequence[float], rules: Rules, like: Tensor) -> Tensor:
    """At every position of a map, centred on its top left corner."""
    order = [(s, r) for s in sizes for r in RATIOS] if rules.size_outer else [(s, r) for r in RATIOS for s in sizes]
    sides = torch.tensor([(s / math.sqrt(r), s * math.sqrt(r)) for s, r in order], dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    centre = torch.stack([x, y], dim=-1).to(like.dtype)[:, :, None]
    half = (sides / 2).float().to(like.dtype)  # a constant, in float32 everywhere
    return torch.cat([centre - half, centre + half], dim=-1).flatten(0, 2)


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float], rules: Rules) -> Tensor:
    """Boxes moved and scaled by deltas (Girshick et al. 2014, appendix C)."""
    dx, dy, dw, dh = (deltas / torch.tensor(weights, dtype=deltas.dtype)).unbind(-1)
    low = -CLAMP if rules.two_sided else None
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    x = boxes[..., 0] + width / 2 + dx * width
    y = boxes[..., 1] + height / 2 + dy * height
    half_w, half_h = width * dw.clamp(low, CLAMP).exp() / 2, height * dh.clamp(low, CLAMP).exp() / 2
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of each box inside an image of that height and width."""
    height, width = size
    limit = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def rows(x: Tensor, each: int) -> Tensor:
    """A layer's output as rows, `each` values for every anchor."""
    return x[0].permute(1, 2, 0).reshape(-1, each)


def propose(
    predictions: Sequence[tuple[Tensor, Tensor]],
    strides: Sequence[int],
    sizes: Sequence[Sequence[float]],
    size: tuple[int, int],
    rules: Rules,
) -> Tensor:
    """The best of each level before suppression, and of all levels after it; predictions are logits and deltas."""
    from torchvision.ops import batched_nms

    boxes, scores, of = [], [], []
    for level, (logits, deltas) in enumerate(predictions):
        grid = anchors(logits.shape[2], logits.shape[3], strides[level], sizes[level], rules, logits)
        score, best = rows(logits, 1)[:, 0].sort(descending=True, stable=True)
        score, best = score[: rules.rpn_top], best[: rules.rpn_top]
        box = clipped(decode(rows(deltas, 4)[best], grid[best], (1, 1, 1, 1), rules), size)
        valid = ((box[:, 2:] - box[:, :2]) > 0).all(dim=1)
        boxes.append(box[valid])
        scores.append(score[valid])
        of.append(torch.full_like(score[valid], level))
    box, score, level_of = torch.cat(boxes), torch.cat(scores), torch.cat(of)
    return box[batched_nms(box, score, level_of, rules.rpn_nms)[: rules.rpn_keep]]


def pool(maps: Sequence[Tensor], boxes: Tensor, size: int, rules: Rules) -> Tensor:
    """RoIAlign with as many points as a bin has pixels; of a pyramid, from the level of the box's size (FPN, eq. 1)."""
    from torchvision.ops import roi_align

    if len(maps) == 1:
        return roi_align(maps[0], [boxes], size, 1 / 16, sampling_ratio=0, aligned=True)
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = (4 + torch.log2(side / 224 + rules.level_eps)).floor().clamp(2, 5)
    pooled = maps[0].new_zeros(len(boxes), maps[0].shape[1], size, size)
    for k, x in enumerate(maps):
        own = (level == k + 2).nonzero()[:, 0]
        pooled[own] = roi_align(x, [boxes[own]], size, 1 / (4 << k), sampling_ratio=0, aligned=True)
    return pooled


def best(boxes: Tensor, scores: Tensor, rules: Rules) -> Found:
    """The best after suppression within each class: boxes, scores, classes from 0. Background is last."""
    from torchvision.ops import nms

    row, label = (scores[:, :-1] > rules.score).nonzero().unbind(1)
    box, value = boxes[row, label if boxes.shape[1] > 1 else 0], scores[row, label]
    keep = [own[nms(box[own], value[own], rules.nms)] for k in label.unique() for own in [(label == k).nonzero()[:, 0]]]
    index = torch.cat([*keep, label[:0]])
    index = index[value[index].argsort(descending=True)][: rules.most]
    return Found(box[index], value[index], label[index])


def dense(predictions: Sequence[tuple[Tensor, Tensor]], size: tuple[int, int], rules: Rules) -> Found:
    """RetinaNet: of each level the best pairs of an anchor and a class, and the best of all after suppression."""
    from torchvision.ops import batched_nms

    boxes, scores, labels = [], [], []
    for level, (logits, deltas) in enumerate(predictions):
        sizes = [(32 << level) * 2 ** (k / 3) for k in range(3)]
        grid = anchors(logits.shape[2], logits.shape[3], 8 << level, sizes, rules, logits)
        each = logits.shape[1] // 9
        score, place = rows(logits, each).sigmoid().flatten().sort(descending=True, stable=True)
        score, place = score[: rules.rpn_top], place[: rules.rpn_top]
        score, place = score[score > rules.score], place[score > rules.score]
        box = decode(rows(deltas, 4)[place // each], grid[place // each], (1, 1, 1, 1), rules)
        boxes.append(clipped(box, size) if rules.clip_first else box)
        scores.append(score)
        labels.append(place % each)
    box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    keep = batched_nms(box, score, label, rules.nms)[: rules.most]
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
    return best(boxes[:, None], mean, rules)
