"""RoIAlign on the CPU: regions of one level that read equally many cells go together, in chunks that stay in the cache.

A chunk of the result is a weighted bag of rows (`embedding_bag`) of its level's channels-last map. The gradient in the map is
the transposed bag, found by sorting.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from twostage.ops import _roi_bins as roi_bins
from twostage.ops._roi_bins import Reads, Regions
from twostage.ops.boxes import precise

_ENTRIES = 1 << 16  # rows read by a chunk


def forward(
    features: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: Sequence[int],
    ratio: int,
    aligned: bool,
    max_samples: int | None,
) -> Tensor:
    """The CPU kernel of `twostage::roi_align`: [n, p, sy, sx, c], contiguous."""
    shapes = [(feature.shape[2], feature.shape[3]) for feature in features]
    regions = roi_bins.locate(
        boxes,
        levels,
        shapes,
        [0] * len(shapes),
        scales,
        size=size,
        ratio=ratio,
        aligned=aligned,
        max_samples=max_samples,
    )
    channels = features[0].shape[1]
    out = features[0].new_empty(levels.numel(), size[0] * size[1] * channels)
    tables = [table(feature) for feature in features]
    for level, some, _, reads, _ in _chunks(regions, size):
        weight = reads.weight().to(out.dtype)
        bins = embedding_bag(reads.rows, tables[level], mode="sum", per_sample_weights=weight)
        out[some] = bins.view(len(some), -1)
    return out.view(*levels.shape, *size, channels)


def features_gradient(
    gradient: Tensor,
    shapes: Sequence[int],
    boxes: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: Sequence[int],
    ratio: int,
    aligned: bool,
    max_samples: int | None,
) -> list[Tensor]:
    """The CPU kernel of `twostage::roi_align_features_gradient`: [n, c, h, w] for each level, channels-last."""
    maps = list(zip(shapes[::2], shapes[1::2], strict=True))
    regions = roi_bins.locate(
        boxes, levels, maps, [0] * len(maps), scales, size=size, ratio=ratio, aligned=aligned, max_samples=max_samples
    )
    rows_of_level: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in maps]
    number = torch.arange(size[0] * size[1], dtype=torch.int32)
    for level, some, _, reads, _ in _chunks(regions, size):
        bins = (some.int()[:, None] * len(number) + number).view(-1, 1).expand(reads.rows.shape)
        rows_of_level[level].append((reads.rows.flatten(), bins.flatten(), reads.weight().flatten()))
    n, channels = len(levels), gradient.shape[-1]
    found = []
    for (height, width), parts in zip(maps, rows_of_level, strict=True):
        total = n * height * width
        if parts:
            rows, bins, weight = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            cells = transposed_bag(rows, bins, weight, gradient.reshape(-1, channels), total)
        else:
            cells = gradient.new_zeros(total, channels)
        found.append(cells.view(n, height, width, channels).permute(0, 3, 1, 2))
    return found


def boxes_gradient(
    gradient: Tensor,
    features: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: Sequence[int],
    ratio: int,
    aligned: bool,
    max_samples: int | None,
) -> Tensor:
    """The CPU kernel of `twostage::roi_align_boxes_gradient`: [n, p, 4] in float32 at least."""
    shapes = [(feature.shape[2], feature.shape[3]) for feature in features]
    regions = roi_bins.locate(
        boxes,
        levels,
        shapes,
        [0] * len(shapes),
        scales,
        size=size,
        ratio=ratio,
        aligned=aligned,
        max_samples=max_samples,
    )
    tables = [table(feature) for feature in features]
    of_bins = gradient.reshape(levels.numel(), -1, gradient.shape[-1])
    out = torch.zeros_like(precise(boxes)).view(-1, 4)
    for level, some, here, reads, samples in _chunks(regions, size):
        read = tables[level][reads.rows].to(out.dtype)  # [bins, cells, c]
        slopes = torch.bmm(read, of_bins[some].to(out.dtype).view(len(read), -1, 1)).squeeze(2)
        out[some] = roi_bins.boxes_gradient(here, reads, samples, slopes, aligned=aligned)
    return out.view(boxes.shape)


def table(feature: Tensor) -> Tensor:
    """A map as rows of channels; no copy where it is channels-last."""
    return feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1])


def transposed_bag(rows: Tensor, bins: Tensor, weight: Tensor, of_bins: Tensor, total: int) -> Tensor:
    """[total, c]: for each row the weighted sum of the bins that read it."""
    rows, order = rows.sort(stable=True)
    offsets = torch.searchsorted(rows, torch.arange(total, dtype=rows.dtype, device=rows.device), out_int32=True)
    return embedding_bag(bins[order], of_bins, offsets, mode="sum", per_sample_weights=weight[order].to(of_bins.dtype))


def _chunks(regions: Regions, size: Sequence[int]) -> Iterator[tuple[int, Tensor, Regions, Reads, tuple[int, int]]]:
    """Level, positions, regions, what they read, and samples along y and x; alike within a chunk."""
    kinds = [regions.level]
    for span, bins in ((regions.y, size[0]), (regions.x, size[1])):
        kinds += [span.grid.clamp(min=1), roi_bins.cells_needed(span, bins)]
    columns = torch.stack([kind.int() for kind in kinds]).numpy()
    for alike in _equal(columns):
        level, samples_y, cells_y, samples_x, cells_x = columns[:, alike[0]].tolist()
        step = max(1, _ENTRIES // (size[0] * size[1] * cells_y * cells_x))
        for some in torch.from_numpy(alike).split(step):
            here = regions.take(some)
            samples = samples_y, samples_x
            yield level, some, here, roi_bins.read(here, size, samples, (cells_y, cells_x)), samples


def _equal(columns: NDArray) -> list[NDArray]:
    """Positions of equal columns, group by group."""
    order = np.lexsort(columns)
    ordered = columns[:, order]
    edges = np.flatnonzero((ordered[:, 1:] != ordered[:, :-1]).any(axis=0)) + 1
    return np.split(order, edges) if len(order) else []
