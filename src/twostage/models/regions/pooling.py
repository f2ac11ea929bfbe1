"""A fixed grid of features for every region: RoIAlign from a pyramid, or RoIPool from one map."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from twostage.errors import UsageError
from twostage.models.component import Count, CountFromZero, NotNegative, Positive, short
from twostage.ops.boxes import area
from twostage.ops.deltas import Edges, with_pixel
from twostage.ops.roi_align import roi_align
from twostage.ops.roi_pool import roi_pool
from twostage.ops.roi_sampling import Grid

Maps = Sequence[Float[Tensor, "n _ _ _"]]

_ON_DEVICES = 8  # samples per bin along each axis where shapes are fixed, and the configuration has no limit


class RegionFeatures(NamedTuple):
    """What regions are pooled from: the maps of a pyramid, and the embedding of a semantic branch or None."""

    maps: Maps
    semantic: Float[Tensor, "n _ _ _"] | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "RegionFeatures":
        """The same function applied to every map."""
        return RegionFeatures([change(x) for x in self.maps], None if self.semantic is None else change(self.semantic))


@dataclass(frozen=True)
class RoIAlignConfig:
    """RoIAlign (Mask R-CNN, section 3), each box from the level of its size (FPN, section 4.2)."""

    size: Count = 7
    # Points per bin along each axis; 0: as many as it has pixels, at most `max_samples`. None: all, on a GPU at most 8.
    sampling_ratio: CountFromZero = short(2, "roi_sampling_ratio")
    max_samples: Count | None = short(8, "roi_max_samples")
    aligned: bool = short(False, "roi_aligned")
    # Added to the logarithm by torchvision, and to the box's size in canonical sizes by detectron2 and mmdetection.
    level_eps: NotNegative = short(1e-6, "level_eps")
    level_size_eps: NotNegative = short(0.0, "level_size_eps")
    canonical_size: Positive = short(224.0, "level_canonical_size")  # a box of this size is read from level 4
    edges: Edges = short("half_open", "edges")  # all others are pooled up to their last pixel


@dataclass(frozen=True)
class RoIPoolConfig:
    """RoIPool (Fast R-CNN, section 2.1) from a single map."""

    size: Count = 7
    edges: Edges = short("half_open", "edges")  # all others are pooled up to their last pixel


class AlignedRegions(nn.Module):
    """RoIAlign from the levels with these strides."""

    def __init__(self, config: RoIAlignConfig, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.strides = strides
        self.size = config.size

    def forward(self, features: RegionFeatures, boxes: Float[Tensor, "n p 4"]) -> Float[Tensor, "n p c s s"]:
        """Features of each box; maps beyond the strides given (the RPN's extra levels) are not read."""
        return self.pool(features.maps[: len(self.strides)], boxes)

    def pool(self, maps: Maps, boxes: Float[Tensor, "n p 4"]) -> Float[Tensor, "n p c s s"]:
        """Features of each box from these maps."""
        scales, _, ratio, aligned, most = self.grid_on(boxes.device)
        return roi_align(
            maps,
            *self.sampled(boxes),
            scales=scales,
            output_size=self.size,
            sampling_ratio=ratio,
            aligned=aligned,
            max_samples=most,
        )

    def grid_on(self, device: torch.device) -> Grid:
        """How boxes are sampled on a device."""
        config, most = self.config, self.config.max_samples
        scales = [1 / stride for stride in self.strides]
        if most is None and device.type != "cpu":
            most = _ON_DEVICES
        return Grid(scales, (self.size, self.size), config.sampling_ratio, config.aligned, most)

    def sampled(self, boxes: Float[Tensor, "n p 4"]) -> tuple[Float[Tensor, "n p 4"], Int[Tensor, "n p"]]:
        """The boxes as they are sampled, and the level of each."""
        config = self.config
        levels = assign_levels(
            boxes,
            self.strides,
            canonical_size=config.canonical_size,
            eps=config.level_eps,
            size_eps=config.level_size_eps,
        )
        return to_last_pixel(boxes, config.edges), levels


def assign_levels(
    boxes: Float[Tensor, "*n 4"],
    strides: tuple[int, ...],
    *,
    canonical_size: float = 224.0,
    eps: float = 1e-6,
    size_eps: float = 0.0,
) -> Int[Tensor, "*n"]:
    """The level that each box is pooled from, an index into `strides` (FPN, section 4.2, equation 1).

    floor(4 + log2(sqrt(area) / canonical_size + size_eps) + eps), clamped to those levels. Level 4 has stride 16;
    strides double. torchvision has an `eps` of 1e-6, detectron2 a `size_eps` of 1e-8, mmdetection one of 2.5e-7.
    """
    first, last = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    level = torch.floor(4 + torch.log2(area(boxes).sqrt() / canonical_size + size_eps) + eps)
    return level.clamp(first, last).to(torch.int64) - first


class PooledRegions(nn.Module):
    """RoIPool from a single map: one level of spatial pyramid pooling."""

    def __init__(self, config: RoIPoolConfig, stride: int) -> None:
        super().__init__()
        self.scale = 1 / stride
        self.size = config.size
        self.edges = config.edges

    def forward(self, features: RegionFeatures, boxes: Float[Tensor, "n p 4"]) -> Float[Tensor, "n p c s s"]:
        """Features of each box."""
        (one,) = features.maps
        return roi_pool(one, to_last_pixel(boxes, self.edges), scale=self.scale, output_size=self.size)


def to_last_pixel(boxes: Float[Tensor, "n p 4"], edges: Edges) -> Float[Tensor, "n p 4"]:
    """The boxes from the corner of their first pixel to that of the last (Detectron's and py-faster-rcnn's regions)."""
    return boxes if edges == "half_open" else with_pixel(boxes, boxes.new_full((1, 1, 2), -1.0))


def pooler(config: RoIAlignConfig | RoIPoolConfig, strides: tuple[int, ...]) -> nn.Module:
    """The pooling of a configuration. Raises UsageError for RoIPool on several maps."""
    if isinstance(config, RoIAlignConfig):
        return AlignedRegions(config, strides)
    if len(strides) > 1:
        raise UsageError(f"roi is 'pool', which reads a single map; this model has {len(strides)}: choose roi=align.")
    return PooledRegions(config, strides[0])
