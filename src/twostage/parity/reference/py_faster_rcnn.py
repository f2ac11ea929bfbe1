"""Faster R-CNN on VGG16 and ZF by py-faster-rcnn's rules, where the last pixel belongs to a box.

(py-faster-rcnn: lib/fast_rcnn/test.py and bbox_transform.py, lib/rpn/proposal_layer.py and generate_anchors.py,
models/pascal_voc/*/faster_rcnn_end2end/test.prototxt; Caffe: src/caffe/layers/lrn_layer.cpp.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from twostage.parity.reference.network import State, conv
from twostage.parity.reference.steps import Found, Observer, ignore
from twostage.parity.reference.vgg import STRIDE, Numbers, as_input, best, head, interpolated, positions, vgg16

BLOCKS = [[f"conv{block}_{k}" for k in range(1, count + 1)] for block, count in enumerate((2, 2, 3, 3, 3), 1)]
HEAD = ("fc6", "fc7", "cls_score", "bbox_pred")


def numbers_of(state: State, settings: Mapping[str, Any] | None = None) -> Numbers:
    """Its pixel mean (lib/fast_rcnn/config.py)."""
    mean = np.array((settings or {}).get("PIXEL_MEANS", [[[102.9801, 115.9465, 122.7717]]])).flatten()
    return Numbers(mean=tuple(mean[::-1].tolist()), std=(1.0, 1.0, 1.0), most=100)


def scale_of(shape: Sequence[int], numbers: Numbers) -> float:
    """By which an image is resized: until its shorter side fits, unless the longer one would then be too long."""
    scale = numbers.size / min(shape)
    return numbers.max_size / max(shape) if np.round(scale * max(shape)) > numbers.max_size else scale


def resized(image: UInt8[np.ndarray, "h w 3"], numbers: Numbers) -> Float[np.ndarray, "_ _ 3"]:
    """By `cv2.resize` with a factor and no size, on floating point."""
    scale = scale_of(image.shape[:2], numbers)
    shape = [int(np.rint(side * scale)) for side in image.shape[:2]]
    return interpolated(image, shape, (1 / scale, 1 / scale), mirrored=False)


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
    # The network's first layer reads BGR.
    x = as_input(small, numbers, canvas or small.shape[:2], dtype).flip(1)
    observe("image", x)
    x = _zf(x, state) if "conv1.weight" in state else vgg16(x, state, BLOCKS, ceil_mode=True)
    scale = scale_of(shape, numbers)
    name = "rpn_conv1" if "rpn_conv1.weight" in state else "rpn_conv/3x3"
    y = conv(x, state, name, padding=1).relu()
    scores, deltas = conv(y, state, "rpn_cls_score"), conv(y, state, "rpn_bbox_pred")
    rois = _propose(scores, deltas, small.shape[:2], scale, numbers)
    background, objects = scores.chunk(2, dim=1)
    for stage, values in (("maps", x), ("objectness", objects - background), ("deltas", deltas)):
        observe(f"{stage}.level0", values)
    last = torch.tensor([0, 0, 1, 1], dtype=dtype)
    observe("proposals.boxes", rois + last)
    probabilities, moves = head(x, rois, state, HEAD, 6 if "conv1.weight" in state else 7, observe)
    boxes = _moved((rois / scale).repeat_interleave(moves.shape[1] // 4, 0), moves.reshape(-1, 4))
    boxes = _clipped(boxes, shape).unflatten(0, (len(rois), -1))
    found = best(boxes, probabilities, numbers, 1.0)
    return found._replace(boxes=found.boxes + last)


def _zf(x: Tensor, state: State) -> Tensor:
    """Five convolutions; the first two are normalised in a window of 3 x 3 and pooled."""
    for name, stride, padding in (("conv1", 2, 3), ("conv2", 2, 2)):
        x = conv(x, state, name, stride=stride, padding=padding).relu()
        window = F.conv2d(x.square(), x.new_ones(1, 1, 3, 3).expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])
        x = x * (1 + 5e-5 / 9 * window) ** -0.75
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    for name in ("conv3", "conv4", "conv5"):
        x = conv(x, state, name, padding=1).relu()
    return x


def _anchors(count: int) -> Float[np.ndarray, "k 4"]:
    """Of a cell: the window from 0 to 15 at three ratios, its sides rounded, and then larger."""
    boxes = []
    for ratio in (0.5, 1.0, 2.0):
        width = np.round(np.sqrt(STRIDE * STRIDE / ratio))
        height = np.round(width * ratio)
        for scale in (8, 16, 32) if count == 9 else (4, 8, 16, 32):
            w, h = width * scale, height * scale
            boxes.append([7.5 - (w - 1) / 2, 7.5 - (h - 1) / 2, 7.5 + (w - 1) / 2, 7.5 + (h - 1) / 2])
    return np.array(boxes)


def _propose(scores: Tensor, deltas: Tensor, size: Sequence[int], scale: float, numbers: Numbers) -> Tensor:
    """Boxes on the resized image: decoded, clipped, none too small, the best, suppressed, the best."""
    from torchvision.ops import nms

    count = scores.shape[1] // 2
    # The first half of the channels are background's.
    objects = scores[0].unflatten(0, (2, count)).softmax(0)[1]
    score = objects.permute(1, 2, 0).flatten()
    y, x = torch.meshgrid(*(torch.arange(side) * STRIDE for side in scores.shape[2:]), indexing="ij")
    corner = torch.stack([x, y, x, y], dim=-1).flatten(0, 1)[:, None]
    anchors = (corner + torch.tensor(_anchors(count), dtype=scores.dtype)).flatten(0, 1)
    boxes = _clipped(_moved(anchors, deltas[0].permute(1, 2, 0).reshape(-1, 4)), size)
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    on_image = positions(size, scores).repeat_interleave(count)
    keep = ((sides >= numbers.min_size * scale).all(1) & on_image).nonzero()[:, 0]
    keep = keep[score[keep].argsort(descending=True, stable=True)[: numbers.rpn_top]]
    box = boxes[keep]
    return box[nms(box + torch.tensor([0, 0, 1, 1], dtype=box.dtype), score[keep], numbers.rpn_nms)[: numbers.rpn_keep]]


def _moved(boxes: Tensor, deltas: Tensor) -> Tensor:
    """A box's last pixel counts in its sides, and not in those of the new one."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    centre = boxes[:, :2] + sides / 2 + deltas[:, :2] * sides
    half = deltas[:, 2:].exp() * sides / 2
    return torch.cat([centre - half, centre + half], dim=1)


def _clipped(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """From the first pixel to the last."""
    last = torch.tensor([size[1], size[0]] * 2, dtype=boxes.dtype) - 1
    return torch.minimum(boxes, last).clamp(min=0)
