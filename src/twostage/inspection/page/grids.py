"""Where each region is read: the sampling points of RoIAlign, the bins of RoIPool and SPPnet, the window of R-CNN.

All by the arithmetic of the operators themselves. Letters: P regions, b bins along an axis, s samples of a bin.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from twostage.inspection.page.columns import column
from twostage.models.rcnn import WarpedRegions
from twostage.models.regions.pooling import AlignedRegions, PooledRegions, to_last_pixel
from twostage.models.sppnet import PyramidRegions
from twostage.ops import roi_pool, spp
from twostage.ops.roi_sampling import Grid, Spans, locate, sample_places

Json = dict[str, Any]
Shapes = Sequence[tuple[int, int]]


def map_shapes(backbone: nn.Module, canvas: tuple[int, int]) -> Shapes:
    """The rows and columns of a backbone's maps of a canvas, found without computing the maps (device "meta")."""
    state = {name: x.to("meta") for name, x in chain(backbone.named_parameters(), backbone.named_buffers())}
    maps = functional_call(backbone, state, torch.empty(1, 3, *canvas, device="meta"))
    return [(x.shape[2], x.shape[3]) for x in maps]


def grid_data(regions: nn.Module, boxes: Float[Tensor, "p 4"], shapes: Shapes, image: tuple[int, int]) -> Json | None:
    """The grid of each of these regions; None for another pooling, or where the shapes of the maps are not at hand.

    `shapes` are the rows and columns of the maps, `image` the height and width of the batch.
    """
    if isinstance(regions, WarpedRegions):
        return _window(regions, boxes)
    if isinstance(regions, AlignedRegions) and len(shapes) >= len(regions.strides):
        return _points(regions, boxes, shapes[: len(regions.strides)])
    if isinstance(regions, PooledRegions) and shapes:
        y, x = (_pooled(regions, boxes, axis, shapes[0][axis]) for axis in (0, 1))
        return _bins(y, x, torch.zeros(len(boxes)), [[regions.scale]], 0.5)
    if isinstance(regions, PyramidRegions) and shapes:
        return _pyramid(regions, boxes, shapes, image)
    return None


def _points(regions: AlignedRegions, boxes: Float[Tensor, "p 4"], shapes: Shapes) -> Json:
    """{"kind": "points", "bins", "scales" and "offset": cell = pixel * scale - offset, "levels", "samples": of a bin
    along y and x, "y", "x": positions on the map, region after region and bin after bin}."""
    sampled, levels = regions.sampled(boxes[None])
    grid: Grid = regions.grid_on(boxes.device)
    located = locate(sampled, levels, shapes, grid, [0] * len(shapes))
    y, x = (_places(span, bins) for span, bins in zip((located.y, located.x), grid.size, strict=True))
    samples = torch.stack([located.y.samples, located.x.samples], dim=1)
    return {
        "kind": "points",
        "bins": list(grid.size),
        "scales": list(grid.scales),
        "offset": 0.5 if grid.aligned else 0.0,
        "levels": column(located.level, "u1"),
        "samples": column(samples, "u2"),
        "y": column(y, "f4"),
        "x": column(x, "f4"),
    }


def _places(span: Spans, bins: int) -> Float[Tensor, " m"]:
    """The positions of all samples along one axis, region after region."""
    most = int(span.samples.max()) if len(span.samples) else 0
    places, _, _ = sample_places(span, bins, most)
    used = torch.arange(most)[:, None] < span.samples
    return places.permute(2, 0, 1)[used.T[:, None].expand(-1, bins, -1)]


def _pooled(regions: PooledRegions, boxes: Float[Tensor, "p 4"], axis: int, extent: int) -> Tensor:
    ends = to_last_pixel(boxes[None], regions.edges)
    start, end = ends[..., 1 - axis], ends[..., 3 - axis]
    return roi_pool.cells_of_bins(start, end, regions.scale, regions.size, extent)[0]


def _pyramid(regions: PyramidRegions, boxes: Float[Tensor, "p 4"], shapes: Shapes, image: tuple[int, int]) -> Json:
    """The bins of the finest level of the pyramid, on the map of the size that each region is pooled at."""
    config, shortest = regions.config, min(image)
    scales = [size / shortest for size in config.sizes]
    level = regions.choose(boxes, shortest) if len(scales) > 1 else torch.zeros(len(boxes), dtype=torch.int64)
    finest = max(config.pyramid)
    y, x = (torch.zeros(len(boxes), finest, 2, dtype=torch.int64) for _ in range(2))
    for k, (scale, shape) in enumerate(zip(scales, shapes, strict=True)):
        own = boxes[level == k][None] * scale
        for axis, bins in enumerate((y, x)):
            start, end = own[..., 1 - axis], own[..., 3 - axis]
            bins[level == k] = spp.cells_of_bins(start, end, regions.stride, shape[axis], finest)[0].long()
    per_pixel = [[scale / regions.stride] for scale in scales]
    return _bins(y, x, level, per_pixel, 0.5) | {"pyramid": list(config.pyramid)}


def _bins(y: Tensor, x: Tensor, levels: Tensor, scales: list[list[float]], offset: float) -> Json:
    """{"kind": "bins", ..., "y", "x": first and end cell of each bin}; cell c lies around pixel c / scale."""
    return {
        "kind": "bins",
        "bins": [y.shape[1], x.shape[1]],
        "scales": [scale for (scale,) in scales],
        "offset": offset,
        "levels": column(levels, "u1"),
        "y": column(y, "i2"),
        "x": column(x, "i2"),
    }


def _window(regions: WarpedRegions, boxes: Float[Tensor, "p 4"]) -> Json:
    """{"kind": "window", "size": pixels a side, "context": of them on each side, from around the box}."""
    config = regions.config
    return {"kind": "window", "size": config.size, "context": config.context}


def pooling_of(head: Any) -> list[nn.Module]:
    """The pooling of each box head in order, or of the head of R-CNN and SPPnet."""
    heads = head.box_heads or [head]
    return [cast(nn.Module, one.regions) for one in heads]
