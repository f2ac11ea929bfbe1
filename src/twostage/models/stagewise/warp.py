"""Windows of a picture, warped to one size with some context around them (R-CNN, appendix A, D with padding)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample


def warp(
    image: Float[Tensor, "c h w"], boxes: Float[Tensor, "p 4"], *, size: int, context: int
) -> Float[Tensor, "p c {size} {size}"]:
    """Each box stretched to the middle `size - 2 context` pixels, and `context` pixels of what lies around it.

    Bilinear, four pixels a sample however far it shrinks, as Caffe's. Beyond the image everything is 0: give it
    normalised, so that this is the mean colour.
    """
    height, width = image.shape[1:]
    inner = size - 2 * context
    # The middle of each pixel of the window, as a share of the box: below 0 and above 1 in the context.
    place = (torch.arange(size, device=image.device, dtype=image.dtype) + 0.5 - context) / inner
    x1, y1, x2, y2 = boxes.to(image.dtype).unbind(1)
    x = x1[:, None] + place * (x2 - x1)[:, None]
    y = y1[:, None] + place * (y2 - y1)[:, None]
    # grid_sample counts from -1 to 1, border to border.
    x, y = 2 * x / width - 1, 2 * y / height - 1
    p = len(boxes)
    grid = torch.stack([x[:, None, :].expand(p, size, size), y[:, :, None].expand(p, size, size)], dim=-1)
    # The image is read where it is, not repeated; threads share the windows.
    found = grid_sample(image.expand(p, -1, -1, -1), grid, mode="bilinear", align_corners=False)
    return found.contiguous(memory_format=torch.channels_last)
