"""Masks as training targets: the share of each cell of a grid over the object that belongs to it.

A mask head predicts about 28 cells along the side of a box for any image size. So a mask is kept as a fixed grid over
its object: memory per object does not depend on the image size, and when augmentation moves the object, only the
frame of the grid moves. Letters: g objects, m cells along a side.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from twostage.data.flat import NONE, Mask, to_rle
from twostage.ops.masks import cropped

SIDE = 112  # 4 x the mask head's 28: a mask shifted against its box is still sampled finer than predicted


class Coverage(NamedTuple):
    """Grids of the objects of an image, or of a batch [n, g, ...]; `frames` are the boxes xyxy that they lie over.

    A frame may reach over the image's border; the cells there are kept and never sampled.
    """

    frames: Float[Tensor, "*n g 4"]
    cells: UInt8[Tensor, "*n g m m"]  # 0 none of the cell to 255 all of it

    def each(self, change: Callable[[Tensor], Tensor]) -> "Coverage":
        """`change` applied to both tensors."""
        return Coverage(change(self.frames), change(self.cells))


def coverage(masks: Sequence[Mask], height: int, width: int) -> Coverage:
    """The grids of masks on an image of this size, each over the bounding box of its pixels.

    An object without a mask, or without a pixel in the image, has an empty frame: it has no mask loss.
    """
    frames, cells = torch.zeros(len(masks), 4), torch.zeros(len(masks), SIDE, SIDE, dtype=torch.uint8)
    for row, mask in enumerate(masks):
        if mask.kind == NONE:
            continue
        x1, y1, inside = cropped(to_rle(mask, height, width))
        if inside.size:
            frames[row] = torch.tensor([x1, y1, x1 + inside.shape[1], y1 + inside.shape[0]], dtype=torch.float32)
            grid = Image.fromarray(inside * np.uint8(255)).resize((SIDE, SIDE), Image.Resampling.BOX)
            cells[row] = torch.from_numpy(np.array(grid))
    return Coverage(frames, cells)
