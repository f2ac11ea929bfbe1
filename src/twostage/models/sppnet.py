"""SPPnet's regions: convolutions once per image and size, a pyramid per region (He et al. 2014, section 4).

Letters: N images, P regions per image, b all bins of a pyramid together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from twostage.models.component import Count, Positive
from twostage.models.regions.pooling import RegionFeatures
from twostage.ops.boxes import area
from twostage.ops.spp import DETECTION, spp

ON_HOST = ("cpu",)  # devices whose values can be read without a wait
SCALES = (480, 576, 688, 864, 1200)  # shortest sides of the paper's five scales; its single scale is 688


@dataclass(frozen=True)
class SPPConfig:
    """The shortest sides an image is resized to, and the bins per side of each pyramid level.

    Every region is pooled at the size at which its area is nearest to `region` squared (224 pixels in the paper, at
    688).
    """

    sizes: tuple[Count, ...] = (384,)
    region: Positive = 224 * 384 / 688
    pyramid: tuple[Count, ...] = DETECTION


def scaled(size: int, *, five: bool) -> SPPConfig:
    """The paper's sizes in proportion: `size` takes the place of 688."""
    sizes = tuple(round(size * scale / 688) for scale in SCALES) if five else (size,)
    return SPPConfig(sizes, 224 * size / 688)


class ImageScales(nn.Module):
    """The images, and behind them the last map of `body` at each size. All images of a batch have one size."""

    def __init__(self, body: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self.sizes = tuple(sizes)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n _ _ _"], ...]:
        """The images and a map per size."""
        maps = [images]
        for size in self.sizes:
            scale = size / min(images.shape[2:])
            shape = [max(1, round(side * scale)) for side in images.shape[2:]]
            maps.append(self.body(interpolate(images, shape, mode="bilinear"))[-1])
        return tuple(maps)


class PyramidRegions(nn.Module):
    """Spatial pyramid pooling of each region from the map of the size that suits it."""

    def __init__(self, config: SPPConfig, stride: int) -> None:
        super().__init__()
        self.config = config
        self.stride = stride

    def forward(self, features: RegionFeatures, boxes: Float[Tensor, "n p 4"]) -> Float[Tensor, "n p c b 1"]:
        """The pyramid of each box; boxes are on the pixels of the images."""
        images, *maps = features.maps
        shortest = min(images.shape[2:])
        scales = [size / shortest for size in self.config.sizes]
        if len(maps) == 1:
            pooled = self._pool(maps[0], boxes * scales[0])
        else:
            pooled = self._pool_at_own_size(maps, boxes, scales, self.choose(boxes, shortest))
        return pooled.unflatten(2, (-1, maps[0].shape[1])).transpose(2, 3)[..., None]

    def choose(self, boxes: Float[Tensor, "*b 4"], shortest: int) -> Int[Tensor, "*b"]:
        """The index of the size each region is pooled at (section 4.1), for an image of this shortest side."""
        side = area(boxes).sqrt()
        return torch.stack([(side * (s / shortest) - self.config.region).abs() for s in self.config.sizes]).argmin(0)

    def _pool(self, features: Float[Tensor, "n c _ _"], boxes: Float[Tensor, "n p 4"]) -> Float[Tensor, "n p d"]:
        return spp(features, boxes, stride=self.stride, pyramid=self.config.pyramid)

    def _pool_at_own_size(
        self,
        maps: Sequence[Float[Tensor, "n c _ _"]],
        boxes: Float[Tensor, "n p 4"],
        scales: Sequence[float],
        choice: Int[Tensor, "n p"],
    ) -> Float[Tensor, "n p d"]:
        bins = sum(side * side for side in self.config.pyramid)
        out = maps[0].new_zeros(*boxes.shape[:2], maps[0].shape[1] * bins)
        for k, (features, scale) in enumerate(zip(maps, scales, strict=True)):
            if boxes.device.type not in ON_HOST:  # fixed shapes, no wait for the device
                out = torch.where((choice == k)[..., None], self._pool(features, boxes * scale), out)
                continue
            for i, rows in enumerate(choice == k):
                if rows.any():
                    out[i, rows] = self._pool(features[i : i + 1], (boxes[i, rows] * scale)[None])[0]
        return out
