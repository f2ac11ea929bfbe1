"""Boxes as offsets from anchors, the targets of box regression (R-CNN, appendix C).

    dx = (x - xa) / wa    dy = (y - ya) / ha    dw = log(w / wa)    dh = log(h / ha)

x, y are centres. `weights` multiply the four; dividing by standard deviations of 0.1, 0.1, 0.2, 0.2, as the Fast and
Faster R-CNN code normalises its targets, is `weights=(10, 10, 5, 5)`. Always computed in float32 at least: bf16 is too
coarse for exp and for differences of large coordinates.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from twostage.ops.boxes import clip, precise

CLAMP = math.log(1000 / 16)
"""Largest dw and dh: a box grows at most by 62.5, so that exp cannot overflow (Detectron, torchvision)."""

Edges = Literal["half_open", "inclusive", "caffe"]

_SMALLEST = 1e-3  # px


@dataclass(frozen=True)
class BoxCoder:
    """Deltas and back, with the constants of one regressor, like torchvision's BoxCoder.

    dw and dh are at most `clamp` after the weights are divided out; with `clamp_two_sided` (mmdetection) also at least
    `-clamp`.

    In Detectron and py-faster-rcnn the last pixel belongs to a box. Their `edges` are "inclusive": a box begins and
    ends with the last pixel of the image at most. py-faster-rcnn's, "caffe", take the corners of a decoded box for its
    first and last pixels, so that here it is a pixel larger (lib/fast_rcnn/bbox_transform.py).
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    clamp: float = CLAMP
    clamp_two_sided: bool = False
    edges: Edges = "half_open"

    def encode(self, boxes: Float[Tensor, "*#b 4"], anchors: Float[Tensor, "*#b 4"]) -> Float[Tensor, "*#b 4"]:
        """The deltas from each anchor to its box; leading dimensions broadcast.

        Finite for every finite input: widths and heights are clamped to at least 1e-3 px, so that padding and ground
        truth without area give large but finite numbers that a mask can remove (0 times infinity would be NaN).
        """
        x1, y1, x2, y2 = precise(boxes).unbind(-1)
        ax1, ay1, ax2, ay2 = precise(anchors).unbind(-1)
        width, height = x2 - x1, y2 - y1
        anchor_width, anchor_height = ax2 - ax1, ay2 - ay1
        dx = (x1 + 0.5 * width) - (ax1 + 0.5 * anchor_width)
        dy = (y1 + 0.5 * height) - (ay1 + 0.5 * anchor_height)
        width, height, anchor_width, anchor_height = (
            side.clamp(min=_SMALLEST) for side in (width, height, anchor_width, anchor_height)
        )
        return torch.stack(
            [
                self.weights[0] * dx / anchor_width,
                self.weights[1] * dy / anchor_height,
                self.weights[2] * torch.log(width / anchor_width),
                self.weights[3] * torch.log(height / anchor_height),
            ],
            dim=-1,
        )

    def decode(self, deltas: Float[Tensor, "*#b 4"], anchors: Float[Tensor, "*#b 4"]) -> Float[Tensor, "*#b 4"]:
        """The boxes of deltas and anchors; leading dimensions broadcast, as `[n, p, k, 4]` and `[n, p, 1, 4]`."""
        anchors = precise(anchors)
        sides = anchors[..., 2:] - anchors[..., :2]
        shift, growth = _unweighted(precise(deltas), self.weights)
        centre = shift * sides + (anchors[..., :2] + 0.5 * sides)
        half = 0.5 * (growth.clamp(-self.clamp if self.clamp_two_sided else None, self.clamp).exp() * sides)
        return torch.cat([centre - half, centre + half], dim=-1)

    def decode_inside(
        self,
        deltas: Float[Tensor, "n p 4"],
        anchors: Float[Tensor, "n p 4"],
        sizes: Shaped[Tensor, "n 2"],
        pixel: Float[Tensor, "n 1 2"] | float = 1.0,
    ) -> Float[Tensor, "n p 4"]:
        """The boxes inside images of these heights and widths; `pixel`: the last one's width and height."""
        boxes = self.decode(deltas, anchors)
        if self.edges == "half_open":
            return clip(boxes, sizes)
        pixels = torch.as_tensor(pixel, dtype=boxes.dtype, device=boxes.device).expand(boxes.shape[0], 1, 2)
        if self.edges == "inclusive":
            boxes = with_pixel(boxes, -pixels)
        return with_pixel(clip(boxes, sizes - pixels[:, 0].flip(1)), pixels)


def with_pixel(boxes: Float[Tensor, "n p 4"], pixel: Float[Tensor, "#n 1 2"]) -> Float[Tensor, "n p 4"]:
    """Boxes that end so much farther to the right and below."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] + pixel], dim=-1)


def _unweighted(
    deltas: Float[Tensor, "*b 4"], weights: tuple[float, float, float, float]
) -> tuple[Float[Tensor, "*b 2"], Float[Tensor, "*b 2"]]:
    """dx, dy and dw, dh."""
    if weights == (1, 1, 1, 1):
        return deltas[..., :2], deltas[..., 2:]
    if weights[0] == weights[1] and weights[2] == weights[3]:
        return deltas[..., :2] / weights[0], deltas[..., 2:] / weights[2]
    dx, dy, dw, dh = (d / w for d, w in zip(deltas.unbind(-1), weights, strict=True))
    return torch.stack([dx, dy], dim=-1), torch.stack([dw, dh], dim=-1)
