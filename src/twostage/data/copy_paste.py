"""Copy-paste: objects of one training image, cut out by their masks, are laid over another (Ghiasi et al. 2021).

"Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", section 3. Both images are augmented
before; a random half of the objects is copied, each at its own place. Letters: g objects, m cells along a side.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from twostage.data.augment import Sample, clip
from twostage.data.coverage import SIDE, Coverage

VISIBLE = 0.3  # of the area of an object that others lie over; with less it is not learned, as behind a crop
_HALF = 128  # of a cell's 255


def paste(onto: Sample, source: Sample, rng: np.random.Generator) -> Sample:
    """The image `onto` with objects of `source` over it; both have masks, and images at the network's size.

    Objects of `onto` lose what is covered, and are dropped with less than `VISIBLE` of their mask left; their boxes
    end where the rest does. Objects without a mask are not copied.
    """
    assert onto.masks is not None
    assert source.masks is not None
    height, width = onto.image.shape[1:]
    down, across = min(height, source.image.shape[1]), min(width, source.image.shape[2])
    boxes, seen = clip(source.boxes, (down, across), VISIBLE)
    has_mask = (source.masks.frames[:, 2:] > source.masks.frames[:, :2]).all(dim=1)
    chosen = torch.from_numpy(rng.random(len(boxes)) < 0.5) & seen & has_mask
    copied = source.masks.each(lambda tensor: tensor[chosen])
    cover = _pixels(copied, height, width)
    cover[down:], cover[:, across:] = False, False
    image = onto.image.clone()
    image[:, :down, :across] = torch.where(
        cover[:down, :across], source.image[:, :down, :across], image[:, :down, :across]
    )
    left, kept, rest = _behind(onto.boxes, onto.masks, cover)
    return onto._replace(
        image=image,
        boxes=torch.cat([left[kept], boxes[chosen]]),
        labels=torch.cat([onto.labels[kept], source.labels[chosen]]),
        masks=Coverage(torch.cat([rest.frames[kept], copied.frames]), torch.cat([rest.cells[kept], copied.cells])),
    )


def _pixels(masks: Coverage, height: int, width: int) -> Bool[Tensor, "h w"]:
    """The pixels of an image that lie in some mask."""
    cover = torch.zeros(height, width, dtype=torch.bool)
    for (x1, y1, x2, y2), cells in zip(masks.frames.tolist(), masks.cells, strict=True):
        left, top = max(0, int(x1)), max(0, int(y1))
        right, bottom = min(width, int(np.ceil(x2))), min(height, int(np.ceil(y2)))
        if left >= right or top >= bottom:
            continue
        column = ((torch.arange(left, right) + 0.5 - x1) * (SIDE / (x2 - x1))).long().clamp(0, SIDE - 1)
        row = ((torch.arange(top, bottom) + 0.5 - y1) * (SIDE / (y2 - y1))).long().clamp(0, SIDE - 1)
        cover[top:bottom, left:right] |= cells[row][:, column] >= _HALF
    return cover


def _behind(
    boxes: Float[Tensor, "g 4"], masks: Coverage, cover: Bool[Tensor, "h w"]
) -> tuple[Float[Tensor, "g 4"], Bool[Tensor, " g"], Coverage]:
    """Boxes and masks of objects behind a cover, and which of them are still seen.

    Where an object has no mask, its box stands for it.
    """
    has_mask = (masks.frames[:, 2:] > masks.frames[:, :2]).all(dim=1)
    frames = torch.where(has_mask[:, None], masks.frames, boxes)
    whole = torch.where(has_mask[:, None, None], masks.cells, torch.full_like(masks.cells, 255))
    rest = torch.where(_covered(frames, cover), torch.zeros_like(whole), whole)
    before, after = (cells.flatten(1).sum(dim=1, dtype=torch.int64) for cells in (whole, rest))
    changed = after < before
    tight = _tight(frames, rest)
    shrunk = torch.cat([boxes[:, :2].maximum(tight[:, :2]), boxes[:, 2:].minimum(tight[:, 2:])], dim=1)
    boxes = torch.where((changed & has_mask)[:, None], shrunk, boxes)
    kept = (after >= VISIBLE * before) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    cells = torch.where(has_mask[:, None, None], rest, masks.cells)
    return boxes, kept, Coverage(masks.frames, cells)


def _covered(frames: Float[Tensor, "g 4"], cover: Bool[Tensor, "h w"]) -> Bool[Tensor, "g m m"]:
    """Whether the pixel at the centre of each cell is covered; none beyond the image is."""
    height, width = cover.shape
    centres = (torch.arange(SIDE) + 0.5) / SIDE
    x = (frames[:, :1] + centres * (frames[:, 2:3] - frames[:, :1])).floor().long()
    y = (frames[:, 1:2] + centres * (frames[:, 3:] - frames[:, 1:2])).floor().long()
    inside = ((x >= 0) & (x < width))[:, None, :] & ((y >= 0) & (y < height))[:, :, None]
    return cover[y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]] & inside


def _tight(frames: Float[Tensor, "g 4"], cells: UInt8[Tensor, "g m m"]) -> Float[Tensor, "g 4"]:
    """The boxes around what is left of masks; of none the whole frame."""
    sides = []
    for axis, (low, high) in ((1, (0, 2)), (2, (1, 3))):
        there = (cells >= _HALF).any(dim=axis).float()  # [g, m] along x, then along y
        first = there.argmax(dim=1) / SIDE
        last = 1 - there.flip(1).argmax(dim=1) / SIDE
        length = frames[:, high] - frames[:, low]
        sides.append((frames[:, low] + first * length, frames[:, low] + last * length))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], dim=1)
