"""What the references of py-faster-rcnn, simple-faster-rcnn and Detectron share: numbers, resizing, VGG16, the best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from twostage.parity.reference.network import State, conv, linear
from twostage.parity.reference.steps import Found, Observer

STRIDE = 16


@dataclass(frozen=True)
class Numbers:
    """The numbers of a detector; `mean` and `std` are of pixels from 0 to 255 in the order of RGB."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int = 600
    max_size: int = 1000
    rpn_top: int = 6000
    rpn_keep: int = 300
    rpn_nms: float = 0.7
    min_size: float = 16.0
    score: float = 0.05
    nms: float = 0.3
    most: int | None = None


def interpolated(
    image: UInt8[np.ndarray, "h w 3"], shape: Sequence[int], steps: Sequence[float], *, mirrored: bool
) -> Float[np.ndarray, "_ _ 3"]:
    """Pixels between those of an image: each is the sum of all with the weights of a hat one pixel wide to each side.

    Coordinates outside come to the border, or back into the image.
    """
    hats = []
    for old, new, step in zip(image.shape, shape, steps, strict=False):
        place = (np.arange(new) + 0.5) * step - 0.5
        if mirrored:
            place = (old - 1) - np.abs((old - 1) - np.abs(place))
        hats.append(np.maximum(0, 1 - np.abs(np.clip(place, 0, old - 1)[:, None] - np.arange(old))))
    return np.einsum("yh,xw,hwc->yxc", *hats, image.astype(np.float64), optimize=True)


def as_input(small: Float[np.ndarray, "h w 3"], numbers: Numbers, canvas: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A resized image (RGB) normalised, in the top left corner of zeros."""
    pixels = (small - np.array(numbers.mean)) / np.array(numbers.std)
    x = torch.tensor(pixels.transpose(2, 0, 1), dtype=dtype)
    return F.pad(x, (0, canvas[1] - small.shape[1], 0, canvas[0] - small.shape[0]))[None]


def vgg16(x: Tensor, state: State, blocks: Sequence[Sequence[str]], *, ceil_mode: bool) -> Tensor:
    """Blocks of 3 x 3 convolutions, named, with a pooling between them."""
    for block in blocks:
        if block is not blocks[0]:
            x = F.max_pool2d(x, 2, ceil_mode=ceil_mode)
        for name in block:
            x = conv(x, state, name, padding=1).relu()
    return x


def positions(size: Sequence[int], x: Tensor) -> Tensor:
    """Which positions of a map begin on an image of this height and width, row by row."""
    rows, columns = (torch.arange(side) * STRIDE < own for side, own in zip(x.shape[2:], size, strict=True))
    return (rows[:, None] & columns).flatten()


def head(
    x: Tensor, boxes: Float[Tensor, "r 4"], state: State, names: Sequence[str], side: int, observe: Observer
) -> tuple[Tensor, Tensor]:
    """Class probabilities and deltas of regions (x1, y1, x2, y2, the last cell included): RoIPool, two layers, two."""
    from torchvision.ops import roi_pool

    fc6, fc7, classes, deltas = names
    y = roi_pool(x, [boxes], side, 1 / STRIDE).flatten(1)
    for name in (fc6, fc7):
        y = linear(y, state, name).relu()
    observe(classes, y)
    return linear(y, state, classes).softmax(1), linear(y, state, deltas)


def best(boxes: Float[Tensor, "r k 4"], scores: Float[Tensor, "r k"], numbers: Numbers, pixel: float) -> Found:
    """The boxes of every class above the threshold that its better ones leave; background is the first class.

    The area of a box counts `pixel` more on each side.
    """
    from torchvision.ops import nms

    kept = [torch.zeros(0, 6, dtype=boxes.dtype)]
    more = torch.tensor([0, 0, pixel, pixel], dtype=boxes.dtype)
    for k in range(1, scores.shape[1]):
        above = (scores[:, k] > numbers.score).nonzero()[:, 0]
        box, score = boxes[above, k], scores[above, k]
        own = nms(box + more, score, numbers.nms)
        kept.append(torch.cat([box[own], score[own, None], torch.full_like(score[own, None], k - 1)], dim=1))
    found = torch.cat(kept)
    found = found[found[:, 4].argsort(descending=True, stable=True)[: numbers.most]]
    return Found(found[:, :4], found[:, 4], found[:, 5].long())
