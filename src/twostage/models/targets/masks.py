"""The mask that a region should learn: its object's mask cropped to the region (Mask R-CNN, section 3.1).

Letters: N images, S regions, G ground-truth objects, m cells along a grid's side, M along a predicted mask's.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from twostage.data.coverage import Coverage

_POINTS = 2  # along each axis of a cell: as many as RoIAlign takes


@torch.no_grad()
def mask_targets(
    boxes: Float[Tensor, "n s 4"], truth: Int[Tensor, "n s"], masks: Coverage, size: int
) -> Float[Tensor, "n s {size} {size}"]:
    """1 where at least half of a cell of the box belongs to the object `truth`, else 0; outside its frame 0.

    Sampled as RoIAlign samples a map: bilinear at points within each cell, then their mean.
    """
    n, s = truth.shape
    frames = masks.frames.gather(1, truth[..., None].expand(-1, -1, 4))
    side = masks.cells.shape[-1]
    cells = masks.cells.flatten(2).gather(1, truth[..., None].expand(-1, -1, side * side))
    low, high = frames[..., :2], frames[..., 2:]
    # Corners of the box in the frame's coordinates from -1 to 1; the frame of an empty mask has no area.
    corners = 2 * (boxes.view(n, s, 2, 2) - low[:, :, None]) / (high - low).clamp(min=1e-3)[:, :, None] - 1
    steps = (torch.arange(size * _POINTS, dtype=boxes.dtype, device=boxes.device) + 0.5) / (size * _POINTS)
    x, y = (corners[..., :1, k] + (corners[..., 1:, k] - corners[..., :1, k]) * steps for k in (0, 1))
    points = torch.stack(torch.broadcast_tensors(x[:, :, None, :], y[:, :, :, None]), dim=-1)
    sampled = grid_sample(
        cells.view(n * s, 1, side, side).float() / 255, points.flatten(0, 1), align_corners=False, padding_mode="zeros"
    )
    return (avg_pool2d(sampled, _POINTS).view(n, s, size, size) >= 0.5).float()
