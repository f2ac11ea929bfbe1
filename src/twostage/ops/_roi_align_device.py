"""RoIAlign where the host must not look at the data: one bag of rows over the table of all levels, every shape fixed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from twostage.ops import _roi_bins as roi_bins
from twostage.ops._roi_align_cpu import table, transposed_bag
from twostage.ops._roi_bins import Reads, Regions
from twostage.ops.boxes import precise


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
    """The kernel of `twostage::roi_align` for all devices but the CPU."""
    shapes = [(feature.shape[2], feature.shape[3]) for feature in features]
    _, reads, _ = _reads(shapes, boxes, levels, scales, size, ratio, aligned, max_samples)
    rows = torch.cat([table(feature) for feature in features])
    bins = embedding_bag(reads.rows, rows, mode="sum", per_sample_weights=reads.weight().to(rows.dtype))
    return bins.view(*levels.shape, *size, rows.shape[1])


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
    """The kernel of `twostage::roi_align_features_gradient` for all devices but the CPU."""
    n, channels = len(levels), gradient.shape[-1]
    maps = list(zip(shapes[::2], shapes[1::2], strict=True))
    _, reads, _ = _reads(maps, boxes, levels, scales, size, ratio, aligned, max_samples)
    bins = torch.arange(len(reads.rows), dtype=torch.int32, device=gradient.device)[:, None].expand(reads.rows.shape)
    totals = [n * height * width for height, width in maps]
    weight = reads.weight().flatten()
    cells = transposed_bag(reads.rows.flatten(), bins.flatten(), weight, gradient.reshape(-1, channels), sum(totals))
    # Cloned: what an operator returns must not share memory.
    return [
        part.view(n, height, width, channels).permute(0, 3, 1, 2).clone()
        for part, (height, width) in zip(cells.split(totals), maps, strict=True)
    ]


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
    """The kernel of `twostage::roi_align_boxes_gradient` for all devices but the CPU."""
    shapes = [(feature.shape[2], feature.shape[3]) for feature in features]
    regions, reads, samples = _reads(shapes, boxes, levels, scales, size, ratio, aligned, max_samples)
    rows = torch.cat([table(feature) for feature in features])
    of_bins = precise(gradient.reshape(-1, gradient.shape[-1]))
    # One cell of every bin after the other: all at once would take the memory of the result for each of them.
    slopes = torch.stack([(rows[cell].to(of_bins.dtype) * of_bins).sum(1) for cell in reads.rows.unbind(1)], dim=1)
    slopes = slopes.to(precise(boxes).dtype)
    return roi_bins.boxes_gradient(regions, reads, samples, slopes, aligned=aligned).view(boxes.shape)


def _reads(
    shapes: Sequence[tuple[int, int]],
    boxes: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: Sequence[int],
    ratio: int,
    aligned: bool,
    max_samples: int | None,
) -> tuple[Regions, Reads, tuple[int, int]]:
    """Regions on the table of all levels, what they read, and samples along y and x: the most that any may take."""
    samples = ratio or max_samples
    if samples is None:
        raise ValueError("roi_align with sampling_ratio=0 needs max_samples on devices of fixed shapes")
    firsts = [0]
    for height, width in shapes:
        firsts.append(firsts[-1] + len(levels) * height * width)
    regions = roi_bins.locate(
        boxes, levels, shapes, firsts[:-1], scales, size=size, ratio=ratio, aligned=aligned, max_samples=max_samples
    )
    # Adaptive samples stand at most a cell apart unless capped, so that neighbours could share cells; capped they need all.
    return regions, roi_bins.read(regions, size, (samples, samples), (2 * samples, 2 * samples)), (samples, samples)
