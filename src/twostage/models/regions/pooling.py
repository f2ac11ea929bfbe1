"""A fixed grid of features for every region: RoIAlign from a pyramid, or RoIPool from one map."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from twostage.models.fields import Fields
from twostage.models.regions.levels import assign_levels
from twostage.ops.roi_align import roi_align
from twostage.ops.roi_pool import roi_pool


class AlignedRegions(nn.Module):
    """RoIAlign (Mask R-CNN, section 3), each box from the level of its size."""

    def __init__(self, fields: Fields, strides: tuple[int, ...], size: int | None = None) -> None:
        super().__init__()
        self.strides = strides
        self.size = size or fields.roi_size
        self.sampling_ratio = fields.roi_sampling_ratio
        self.max_samples = fields.roi_max_samples
        self.aligned = fields.roi_aligned
        self.canonical_size = fields.level_canonical_size
        self.level_eps = fields.level_eps

    def forward(
        self, maps: Sequence[Float[Tensor, "n c _ _"]], boxes: Float[Tensor, "n p 4"]
    ) -> Float[Tensor, "n p c s s"]:
        """Features of each box; maps beyond the strides given (the proposal network's extra level) are not read."""
        levels = assign_levels(boxes, self.strides, canonical_size=self.canonical_size, eps=self.level_eps)
        return roi_align(
            maps[: len(self.strides)],
            boxes,
            levels,
            scales=[1 / stride for stride in self.strides],
            output_size=self.size,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            max_samples=self.max_samples,
        )


class PooledRegions(nn.Module):
    """RoIPool (Fast R-CNN, section 2.1) from a single map: one level of spatial pyramid pooling."""

    def __init__(self, fields: Fields, stride: int) -> None:
        super().__init__()
        self.scale = 1 / stride
        self.size = fields.roi_size

    def forward(
        self, maps: Sequence[Float[Tensor, "n c _ _"]], boxes: Float[Tensor, "n p 4"]
    ) -> Float[Tensor, "n p c s s"]:
        """Features of each box."""
        (features,) = maps
        return roi_pool(features, boxes, scale=self.scale, output_size=self.size)
