"""Anchors: reference boxes of several sizes and shapes at every position of a map (Faster R-CNN, section 3.1.1).

Letters: A anchors of all levels, in the order level, row, column, ratio, size; h, w one level's map.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from twostage.errors import UsageError
from twostage.models.component import Positive, short


@dataclass(frozen=True)
class AnchorConfig:
    """Side lengths in pixels per level, and height / width ratios."""

    sizes: tuple[tuple[Positive, ...], ...] = short(((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)), "anchor_sizes")
    ratios: tuple[Positive, ...] = short((0.5, 1.0, 2.0), "anchor_ratios")
    # Pixels from a cell's corner to the anchors' centre, or half a stride of each level.
    offset: float | Literal["half_stride"] = short(0.0, "anchor_offset")
    # torchvision rounds to the nearest pixel, py-faster-rcnn as "caffe" does.
    rounding: Literal["none", "nearest", "caffe"] = short("nearest", "anchor_rounding")
    # torchvision divides the canvas by the map, others have a fixed stride.
    stride: Literal["canvas", "fixed"] = short("canvas", "anchor_stride")
    # Whether anchors on the padding of an image propose too, as in torchvision and detectron2.
    in_padding: bool = True


class Anchors(nn.Module):
    """The anchors of maps with the given strides."""

    def __init__(self, config: AnchorConfig, strides: Sequence[int]) -> None:
        super().__init__()
        if len(config.sizes) != len(strides) or len({len(sizes) for sizes in config.sizes}) != 1:
            raise UsageError(
                f"The model's field anchor_sizes lists {[len(sizes) for sizes in config.sizes]} sizes: this model has "
                f"{len(strides)} levels (strides {', '.join(map(str, strides))}). Give each level equally many sizes."
            )
        self.strides = tuple(strides)
        self.fixed_stride = config.stride == "fixed"
        self.in_padding = config.in_padding
        for level, (sizes, stride) in enumerate(zip(config.sizes, strides, strict=True)):
            offset = stride / 2 if config.offset == "half_stride" else config.offset
            cell = _CELLS[config.rounding](sizes, config.ratios, stride) + offset
            self.register_buffer(f"cell{level}", cell.float(), persistent=False)

    @property
    def per_position(self) -> tuple[int, ...]:
        """Anchors at one position of each level."""
        return tuple(len(self.get_buffer(f"cell{level}")) for level in range(len(self.strides)))

    def forward(
        self, maps: Sequence[Float[Tensor, "n _ _ _"]], canvas: tuple[int, int], sizes: Int[Tensor, "n 2"]
    ) -> tuple[list[Float[Tensor, "_ 4"]], list[Bool[Tensor, "n _"]]]:
        """Each level's anchors, and for each image which of them lie on its own part of the map rather than on padding.

        `canvas` is the height and width of the batch tensor, `sizes` those of each image.
        """
        boxes, inside = [], []
        for level, features in enumerate(maps):
            rows, columns = features.shape[2:]
            stride = self.strides[level]
            step = (stride, stride) if self.fixed_stride else (canvas[0] // rows, canvas[1] // columns)
            cell = self.get_buffer(f"cell{level}")
            y = torch.arange(rows, device=cell.device)
            x = torch.arange(columns, device=cell.device)
            boxes.append(grid_anchors(cell, y * step[0], x * step[1]))
            if self.in_padding:
                inside.append(torch.ones_like(boxes[-1][:, 0], dtype=torch.bool).expand(sizes.shape[0], -1))
            else:
                inside.append(_on_image(y, x, stride, sizes, self.per_position[level]))
        return boxes, inside


def _on_image(
    y: Int[Tensor, " h"], x: Int[Tensor, " w"], stride: int, sizes: Int[Tensor, "n 2"], each: int
) -> Bool[Tensor, "n _"]:
    """Which anchors lie on each image's own part of the map: ceil(h / stride) rows for a height of h pixels."""
    own = -(-sizes // stride)
    inside = (y < own[:, :1])[:, :, None] & (x < own[:, 1:])[:, None, :]
    return inside[..., None].expand(-1, -1, -1, each).flatten(1)


def grid_anchors(cell: Float[Tensor, "k 4"], y: Int[Tensor, " h"], x: Int[Tensor, " w"]) -> Float[Tensor, "h*w*k 4"]:
    """The anchors of one cell moved to every position; row by row, the k of one position together."""
    # Not len(), which would make a dynamic size of an exported model constant.
    shape = (y.shape[0], x.shape[0])
    corner = torch.stack([x.expand(shape), y[:, None].expand(shape)] * 2, dim=-1).to(cell.dtype)
    return (corner[:, :, None] + cell).flatten(0, 2)


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Float[Tensor, "k 4"]:
    """One cell's anchors around the origin: area size^2, height / width = ratio; ratios outer, sizes inner."""
    ratio = torch.tensor(ratios, dtype=torch.float64).sqrt()
    size = torch.tensor(sizes, dtype=torch.float64)
    width = ((1 / ratio)[:, None] * size).flatten()
    height = (ratio[:, None] * size).flatten()
    return torch.stack([-width, -height, width, height], dim=1) / 2


def caffe_anchors(sizes: Sequence[float], ratios: Sequence[float], stride: int) -> Float[Tensor, "k 4"]:
    """py-faster-rcnn's and Detectron's around the origin: for each ratio the sides of a cell are rounded, then scaled.

    With an offset of 8 the first of stride 16 is [-84, -40, 100, 56]: the former has [-84, -40, 99, 55], of which the
    last pixel counts too.
    """
    boxes = []
    for ratio in ratios:
        width = round((stride * stride / ratio) ** 0.5)
        height = round(width * ratio)
        for size in sizes:
            half_w, half_h = width * size / stride / 2, height * size / stride / 2
            boxes.append([-half_w, -half_h, half_w, half_h])
    return torch.tensor(boxes, dtype=torch.float64)


_CELLS: dict[str, Callable[[Sequence[float], Sequence[float], int], Tensor]] = {
    "none": lambda sizes, ratios, stride: cell_anchors(sizes, ratios),
    "nearest": lambda sizes, ratios, stride: cell_anchors(sizes, ratios).round(),
    "caffe": caffe_anchors,
}
