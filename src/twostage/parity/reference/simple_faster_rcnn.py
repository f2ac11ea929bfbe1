"""Faster R-CNN on VGG16 by simple-faster-rcnn-pytorch's rules, whose boxes are in the order y, x.

(simple-faster-rcnn-pytorch: model/faster_rcnn.py and faster_rcnn_vgg16.py, model/utils/, data/dataset.py.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from twostage.parity.reference.network import State, conv
from twostage.parity.reference.steps import Found, Observer, ignore
from twostage.parity.reference.vgg import STRIDE, Numbers, as_input, best, head, interpolated, positions, vgg16

BLOCKS = [[f"extractor.{k}" for k in block] for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))]


def numbers_of(state: State, settings: Mapping[str, Any] | None = None) -> Numbers:
    """Pixel mean and deviation: of torchvision's networks, or of Caffe's, where the mean of blue is red's."""
    if (settings or {}).get("caffe_pretrain"):
        return Numbers(mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0))
    return Numbers(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


def resized(image: UInt8[np.ndarray, "h w 3"], numbers: Numbers) -> Float[np.ndarray, "_ _ 3"]:
    """By `skimage.transform.resize` with `mode="reflect"`."""
    shape = image.shape[:2]
    scale = min(numbers.size / min(shape), numbers.max_size / max(shape))
    new = [int(np.round(side * scale)) for side in shape]
    return interpolated(image, new, [a / b for a, b in zip(shape, new, strict=True)], mirrored=True)


def detect(
    state: State,
    small: Float[np.ndarray, "h w 3"],
    shape: tuple[int, int],
    numbers: Numbers,
    observe: Observer = ignore,
    canvas: Sequence[int] | None = None,
) -> Found:
    """Detections in a resized image (RGB), on the pixels of the image of that height and width."""
    dtype = next(iter(state.values())).dtype
    x = as_input(small, numbers, canvas or small.shape[:2], dtype)
    if numbers.std == (1.0, 1.0, 1.0):  # a network of Caffe's reads BGR
        x = x.flip(1)
    observe("image", x)
    x = vgg16(x, state, BLOCKS, ceil_mode=False)
    scale = small.shape[1] / shape[1]
    y = conv(x, state, "rpn.conv1", padding=1).relu()
    scores, moves = conv(y, state, "rpn.score"), conv(y, state, "rpn.loc")
    background, objects = scores[:, ::2], scores[:, 1::2]
    for stage, values in (("maps", x), ("objectness", objects - background), ("deltas", moves)):
        observe(f"{stage}.level0", values)
    rois = _propose(scores, moves, small.shape[:2], scale, numbers)
    observe("proposals.boxes", rois)
    fc7 = next(k for k in (2, 3) if f"head.classifier.{k}.weight" in state)
    names = ("head.classifier.0", f"head.classifier.{fc7}", "head.score", "head.cls_loc")
    probabilities, moves = head(x, rois[:, [1, 0, 3, 2]], state, names, 7, observe)
    moves = moves.reshape(-1, 4) * torch.tensor([0.1, 0.1, 0.2, 0.2], dtype=dtype)
    boxes = _moved((rois / scale).repeat_interleave(probabilities.shape[1], 0), moves)
    boxes = _clipped(boxes, shape)[:, [1, 0, 3, 2]].unflatten(0, (len(rois), -1))
    return best(boxes, probabilities, numbers, 0.0)


def _propose(scores: Tensor, moves: Tensor, size: Sequence[int], scale: float, numbers: Numbers) -> Tensor:
    """Boxes (y1, x1, y2, x2) on the resized image: moved, clipped, none too small, the best, suppressed, the best."""
    from torchvision.ops import nms

    sides = torch.tensor(
        [[s * r**0.5, s * r**-0.5] for r in (0.5, 1.0, 2.0) for s in (128, 256, 512)], dtype=torch.float64
    )
    centre = torch.full_like(sides, STRIDE / 2)
    cell = torch.cat([centre - sides / 2, centre + sides / 2], dim=1)
    y, x = torch.meshgrid(*(torch.arange(side) * STRIDE for side in scores.shape[2:]), indexing="ij")
    corner = torch.stack([y, x, y, x], dim=-1).flatten(0, 1)[:, None]
    anchors = (corner + cell.float().to(scores.dtype)).flatten(0, 1)  # a constant, in float32 everywhere
    # Background and object side by side for each anchor.
    score = scores[0].permute(1, 2, 0).reshape(-1, 2).softmax(1)[:, 1]
    boxes = _clipped(_moved(anchors, moves[0].permute(1, 2, 0).reshape(-1, 4)), size)
    on_image = positions(size, scores).repeat_interleave(len(cell))
    large = ((boxes[:, 2:] - boxes[:, :2]) >= numbers.min_size * scale).all(1)
    keep = (large & on_image).nonzero()[:, 0]
    keep = keep[score[keep].argsort(descending=True, stable=True)[: numbers.rpn_top]]
    return boxes[keep][nms(boxes[keep], score[keep], numbers.rpn_nms)[: numbers.rpn_keep]]


def _moved(boxes: Tensor, moves: Tensor) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + sides / 2 + moves[:, :2] * sides
    half = moves[:, 2:].exp() * sides / 2
    return torch.cat([centre - half, centre + half], dim=1)


def _clipped(boxes: Tensor, size: Sequence[int]) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), torch.tensor(tuple(size) * 2, dtype=boxes.dtype))
