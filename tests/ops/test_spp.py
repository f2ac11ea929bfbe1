import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_pool as torchvisions_pool

from twostage.ops.accelerator import max_bins
from twostage.ops.roi_pool import roi_pool
from twostage.ops.spp import spp


def example(n: int = 2, p: int = 20, c: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(n, c, 14, 18, generator=g)
    corners = torch.rand(n, p, 2, generator=g) * torch.tensor([288.0, 224.0]) - 10
    boxes = torch.cat([corners, corners + 150 * torch.rand(n, p, 2, generator=g)], dim=-1)
    special = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 288.0, 224.0], [100.0, 100.0, 101.0, 101.0]])
    return features, torch.cat([boxes, special.expand(n, -1, -1)], dim=1)


def by_the_paper(feature: Tensor, box: list[float], pyramid: tuple[int, ...], stride: int) -> Tensor:
    """One region, one bin after the other."""
    spans = []
    for start, end, extent in ((box[1], box[3], feature.shape[1]), (box[0], box[2], feature.shape[2])):
        first, last = math.floor(start / stride) + 1, math.ceil(end / stride) - 1
        if last < first:
            first = last = round((start + end) / 2 / stride)
        first, last = (min(max(cell, 0), extent - 1) for cell in (first, last))
        spans.append((first, last - first + 1))
    (y, h), (x, w) = spans
    out = []
    for b in pyramid:
        level = torch.zeros(feature.shape[0], b, b)
        for i in range(b):
            for j in range(b):
                rows = slice(y + math.floor(i * h / b), y + math.ceil((i + 1) * h / b))
                columns = slice(x + math.floor(j * w / b), x + math.ceil((j + 1) * w / b))
                level[:, i, j] = feature[:, rows, columns].amax((1, 2))
        out.append(level.permute(1, 2, 0).flatten())
    return torch.cat(out)


@pytest.mark.parametrize("pyramid", [(6, 3, 2, 1), (4, 2, 1)])
def test_follows_the_paper(pyramid: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    features, boxes = example()
    out = spp(features, boxes, pyramid=pyramid)
    assert out.shape == (*boxes.shape[:2], 3 * sum(b * b for b in pyramid))
    for i in range(len(boxes)):
        for r, box in enumerate(boxes[i].tolist()):
            assert torch.equal(out[i, r], by_the_paper(features[i], box, pyramid, 16))

    def fixed(feature: Tensor, rows: Tensor, columns: Tensor, *, most: tuple[int, int]) -> Tensor:
        return max_bins.forward(feature, rows, columns, most).permute(0, 1, 4, 2, 3)

    monkeypatch.setattr("twostage.ops.spp.max_bins", fixed)
    assert torch.equal(spp(features, boxes, pyramid=pyramid), out)


def test_the_whole_map_is_adaptive_max_pooling() -> None:
    features, _ = example()
    # A box that reaches half a cell beyond the map covers all of it.
    whole = torch.tensor([[[-8.0, -8.0, 18 * 16.0, 14 * 16.0]]]).expand(2, -1, -1)
    pooled = [torch.nn.functional.adaptive_max_pool2d(features, b) for b in (6, 3, 2, 1)]
    expected = torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in pooled], dim=1)
    assert torch.equal(spp(features, whole)[:, 0], expected)


def test_gradient_bf16_and_no_boxes() -> None:
    features, boxes = example(c=2)
    exact = features[:1, :1, :8, :9].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: spp(f, boxes[:1, :2], pyramid=(2, 1)), (exact,))
    half = features.bfloat16()
    assert torch.equal(spp(half, boxes).float(), spp(half.float(), boxes))
    assert spp(features, boxes[:, :0]).shape == (2, 0, 100)


@pytest.mark.parametrize("bins", [1, 6, 7])
def test_one_level_of_rounded_boxes_is_roi_pool(bins: int) -> None:
    """Fast R-CNN, section 2.1: "the RoI layer is simply the special case of the spatial pyramid pooling layer"."""
    features, boxes = example()
    one = spp(features, boxes, pyramid=(bins,), projection="rounded")
    pooled = roi_pool(features, boxes, scale=1 / 16, output_size=bins)
    assert torch.equal(one, pooled.permute(0, 1, 3, 4, 2).flatten(2))
    rois = [torch.cat([torch.full((len(some), 1), float(i)), some], dim=1) for i, some in enumerate(boxes)]
    theirs = torchvisions_pool(features, torch.cat(rois), bins, 1 / 16)
    assert torch.equal(one.flatten(0, 1), theirs.permute(0, 2, 3, 1).flatten(1))


def test_levels_come_in_the_order_asked_for() -> None:
    features, boxes = example()
    forth, back = spp(features, boxes, pyramid=(4, 3, 2)), spp(features, boxes, pyramid=(2, 3, 4))
    parts = forth.split([3 * 16, 3 * 9, 3 * 4], dim=-1)
    assert torch.equal(torch.cat(parts[::-1], dim=-1), back)
