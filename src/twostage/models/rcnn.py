"""R-CNN's regions: every box is warped to the network's input and passes through it alone (Girshick et al. 2014).

Letters: N images, P regions per image, p windows, s the side of a window, b the bins per side of pool5.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, grid_sample

from twostage.models.component import Count, CountFromZero
from twostage.models.regions.pooling import RegionFeatures
from twostage.ops.boxes import precise

_BATCH = 128  # windows in one forward pass


@dataclass(frozen=True)
class WarpConfig:
    """Windows of `size` pixels per side, `context` of them on each side from around the box; pool5 has `bins` per side.

    The defaults are AlexNet's 227, 16 and 6 (R-CNN, section 2.1) at stride 16, in proportion.
    """

    size: Count = 96
    context: CountFromZero = 7
    bins: Count = 6


class WholeImage(nn.Module):
    """The image in the place of a feature map: R-CNN has no map that regions share."""

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 3 h w"]]:
        """The images as they are."""
        return (images,)


class WarpedRegions(nn.Module):
    """The network's pool5 for every warped region; `backbone` returns maps, of which the last is pooled."""

    def __init__(self, config: WarpConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone

    def forward(self, features: RegionFeatures, boxes: Float[Tensor, "n p 4"]) -> Float[Tensor, "n p c b b"]:
        """pool5 of each box, `_BATCH` windows at a time."""
        (images,) = features.maps
        if not boxes.shape[1]:
            channels = cast(tuple[int, ...], self.backbone.channels)[-1]
            return images.new_zeros(*boxes.shape[:2], channels, self.config.bins, self.config.bins)
        parts = [
            self.pool(self.windows(image, some))
            for image, own in zip(images, boxes, strict=True)
            for some in own.split(_BATCH)
        ]
        return torch.cat(parts).unflatten(0, boxes.shape[:2])

    def windows(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "p 4"]) -> Float[Tensor, "p 3 s s"]:
        """The warped regions of a normalised image."""
        return warp(image, boxes, size=self.config.size, context=self.config.context)

    def pool(self, windows: Float[Tensor, "p 3 s s"]) -> Float[Tensor, "p c b b"]:
        """pool5 of windows."""
        return adaptive_max_pool2d(self.backbone(windows)[-1], self.config.bins)


def warp(
    image: Float[Tensor, "c h w"], boxes: Float[Tensor, "p 4"], *, size: int, context: int
) -> Float[Tensor, "p c {size} {size}"]:
    """Each box stretched to the middle `size - 2 context` pixels, with `context` pixels from around it (appendix A).

    Bilinear with four pixels per sample at every scale, as in Caffe. Everything outside the image is 0: normalise the
    image first, so that this is the mean colour.
    """
    height, width = image.shape[1:]
    inner = size - 2 * context
    pixels, boxes = precise(image), precise(boxes)  # bf16 has too few bits for coordinates
    # The centre of each pixel of the window, as a share of the box: below 0 and above 1 in the context.
    place = (torch.arange(size, device=pixels.device, dtype=pixels.dtype) + 0.5 - context) / inner
    x1, y1, x2, y2 = boxes.to(pixels.dtype).unbind(1)
    x = x1[:, None] + place * (x2 - x1)[:, None]
    y = y1[:, None] + place * (y2 - y1)[:, None]
    # grid_sample counts from -1 to 1, border to border.
    x, y = 2 * x / width - 1, 2 * y / height - 1
    p = len(boxes)
    grid = torch.stack([x[:, None, :].expand(p, size, size), y[:, :, None].expand(p, size, size)], dim=-1)
    # The expanded image is not copied; threads share the windows.
    windows = grid_sample(pixels.expand(p, -1, -1, -1), grid, mode="bilinear", align_corners=False)
    return windows.to(image.dtype).contiguous(memory_format=torch.channels_last)
