from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.ops as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twostage.ops.accelerator import nms as accelerator
from twostage.ops.cpu import nms as cpu
from twostage.ops.nms import Kept, nms


def random_boxes(n: int, m: int, *, seed: int = 0, clusters: int = 0, size: float = 400.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, clusters or m, 2, generator=g) * size
    boxes = torch.cat([corners, corners + 4 + torch.rand(n, clusters or m, 2, generator=g) * size / 4], dim=-1)
    if not clusters:
        return boxes
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    chosen = torch.randint(clusters, (n, m, 1), generator=g).expand(-1, -1, 4)
    return boxes.gather(1, chosen) + 0.1 * torch.randn(n, m, 4, generator=g) * sides.gather(1, chosen)


def reference(boxes: Tensor, scores: Tensor, groups: Tensor | None, valid: Tensor, iou: float) -> list[Tensor]:
    """Torchvision, group by group; for each image the kept indices by descending score, then by index."""
    result = []
    for i in range(len(boxes)):
        kept = [torch.zeros(0, dtype=torch.int64)]
        group = torch.zeros_like(valid[i]).long() if groups is None else groups[i]
        for value in group.unique():
            some = ((group == value) & valid[i]).nonzero()[:, 0]
            kept.append(some[tv.nms(boxes[i, some], scores[i, some], iou)])
        index = torch.cat(kept).sort().values
        result.append(index[scores[i, index].sort(descending=True, stable=True).indices])
    return result


def device_nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, valid: Tensor, **settings) -> Kept:
    """The kernel of fixed shapes, on the CPU."""
    return Kept(*accelerator.nms(boxes, scores, groups, valid, settings["iou"], settings["top"]))


both = pytest.mark.parametrize("kernel", [nms, device_nms])


def check(kernel: Callable[..., Kept], boxes, scores, groups, valid, iou: float, top: int) -> None:
    kept = kernel(boxes, scores, groups, valid, iou=iou, top=top)
    assert kept.index.shape == kept.valid.shape == (len(boxes), top)
    assert not kept.overflow.any()
    for i, expected in enumerate(reference(boxes, scores, groups, valid, iou)):
        assert torch.equal(kept.index[i, kept.valid[i]], expected[:top])
        assert kept.index[i, ~kept.valid[i]].eq(0).all()
        assert kept.valid[i].sum() == min(len(expected), top)
        assert kept.valid[i].long().diff().le(0).all()  # padding comes last


@both
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.6, 0.7])
@pytest.mark.parametrize("clusters", [0, 12])
@pytest.mark.parametrize("groups", [None, 1, 5, 80])
def test_keeps_what_torchvision_keeps_in_its_order(kernel, iou, clusters, groups) -> None:
    n, m = 3, 400
    g = torch.Generator().manual_seed(7)
    boxes = random_boxes(n, m, clusters=clusters)
    scores = (torch.rand(n, m, generator=g) * 100).round() / 100  # many ties
    group = None if groups is None else torch.randint(-groups, groups, (n, m), generator=g)
    valid = torch.rand(n, m, generator=g) > 0.2
    check(kernel, boxes, scores, group, valid, iou, top=m)
    check(kernel, boxes, scores, group, valid, iou, top=10)


@both
def test_an_image_of_many_blocks(kernel) -> None:
    boxes, g = random_boxes(1, 3000, clusters=150), torch.Generator().manual_seed(1)
    scores, valid = torch.rand(1, 3000, generator=g), torch.ones(1, 3000, dtype=torch.bool)
    check(kernel, boxes, scores, None, valid, 0.6, top=500)
    check(kernel, boxes, scores, torch.randint(3, (1, 3000), generator=g), valid, 0.6, top=3000)


@both
@pytest.mark.parametrize("spread", [(0.0, 1.0), (1.0, 0.0), (1e-6, 1e-6), (1e8, 1e8), (1e25, 1e25)])
def test_boxes_in_a_column_a_row_on_one_spot_or_far_away(kernel, spread) -> None:
    g = torch.Generator().manual_seed(3)
    corners = torch.rand(1, 1200, 2, generator=g) * 400 * torch.tensor(spread)
    boxes = torch.cat([corners, corners + torch.rand(1, 1200, 2, generator=g) * 60 * max(1, *spread)], dim=-1)
    scores, valid = torch.rand(1, 1200, generator=g), torch.ones(1, 1200, dtype=torch.bool)
    check(kernel, boxes, scores, torch.randint(2, (1, 1200), generator=g) * 10**12, valid, 0.5, top=1200)


@both
def test_small_boxes_overlap_whatever_lies_far_away(kernel) -> None:
    near = random_boxes(1, 200, clusters=20) * 1e6
    far = torch.tensor([[[-4e24, 0.0, -3e24, 1e9], [4e24, 0.0, 5e24, 1e9]]])
    boxes, valid = torch.cat([far, near], dim=1), torch.ones(1, 202, dtype=torch.bool)
    scores = torch.rand(1, 202, generator=torch.Generator().manual_seed(4))
    check(kernel, boxes, scores, None, valid, 0.5, top=202)


@both
def test_inverted_boxes_suppress_nothing_and_spoil_nothing(kernel) -> None:
    """In a group large enough to be sorted along x as well."""
    boxes, g = random_boxes(1, 2000, clusters=300), torch.Generator().manual_seed(2)
    some = torch.randperm(2000, generator=g)[:40]
    boxes[0, some] = boxes[0, some][:, [2, 3, 0, 1]]
    scores, valid = torch.rand(1, 2000, generator=g), torch.ones(1, 2000, dtype=torch.bool)
    upright = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    kept = kernel(boxes, scores, None, valid, iou=0.5, top=2000)
    found = kept.index[kept.valid]
    alone = kernel(boxes, scores, None, upright, iou=0.5, top=2000)
    assert found[upright[0, found]].tolist() == alone.index[alone.valid].tolist()
    assert set(some.tolist()) <= set(found.tolist())


@both
def test_overlap_must_exceed_the_threshold(kernel) -> None:
    # IoU exactly 0.5 and exactly 0.6 in real numbers; float32(0.6) is above 0.6, and torchvision compares in float64.
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [50.0, 0.0, 60.0, 10.0], [50, 0, 60, 6]]])
    scores, valid = torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.ones(1, 4, dtype=torch.bool)
    for iou in (0.5, 0.6, 0.49999, 0.59999, 0.7):
        check(kernel, boxes, scores, None, valid, iou, top=4)


@both
def test_boxes_that_touch_coincide_or_have_no_area(kernel) -> None:
    boxes = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],
            [0.0, 0.0, 10.0, 10.0],
            [10.0, 0.0, 20.0, 10.0],
            [5.0, 5.0, 5.0, 5.0],
            [5.0, 5.0, 5.0, 5.0],
            [8.0, 8.0, 2.0, 2.0],
            [8.0, 2.0, 2.0, 8.0],
            [-20.0, -20.0, -10.0, -10.0],
            [0.0, 0.0, 1e5, 1e5],
        ]
    ).repeat(1, 3, 1)
    scores, valid = torch.full((1, 27), 0.5), torch.ones(1, 27, dtype=torch.bool)
    check(kernel, boxes, scores, None, valid, 0.5, top=27)
    check(kernel, boxes, scores, None, valid, 0.0, top=27)


@both
def test_nothing_to_keep(kernel) -> None:
    for n, m in ((0, 5), (2, 0), (2, 5)):
        groups, valid = torch.zeros(n, m, dtype=torch.int64), torch.zeros(n, m, dtype=torch.bool)
        kept = kernel(torch.zeros(n, m, 4), torch.zeros(n, m), groups, valid, iou=0.5, top=3)
        assert kept.index.shape == (n, 3)
        assert not kept.valid.any()
        assert not kept.overflow.any()


@both
def test_valid_scores_of_minus_infinity_count(kernel) -> None:
    valid = torch.tensor([[True, False, True]])
    kept = kernel(random_boxes(1, 3), torch.full((1, 3), -torch.inf), None, valid, iou=0.5, top=3)
    assert kept.index[kept.valid].tolist() == [0, 2]


@both
def test_bf16_boxes_and_scores(kernel) -> None:
    boxes, valid = random_boxes(2, 200, clusters=10).bfloat16(), torch.ones(2, 200, dtype=torch.bool)
    scores = torch.rand(2, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    kept = kernel(boxes, scores, None, valid, iou=0.5, top=200)
    exact = nms(boxes.float(), scores.float(), None, valid, iou=0.5, top=200)
    assert torch.equal(kept.index, exact.index)
    assert torch.equal(kept.valid, exact.valid)


def test_a_chain_longer_than_the_sweeps_is_exact_on_the_cpu_and_reported_elsewhere() -> None:
    # Each box suppresses the next one alone, so that every second is kept, and each decision waits for the one before.
    left = torch.arange(200.0) * 4
    boxes = torch.stack([left, left * 0, left + 10, left * 0 + 10], dim=-1)[None]
    scores, valid = torch.linspace(1, 0, 200)[None], torch.ones(1, 200, dtype=torch.bool)
    check(nms, boxes, scores, None, valid, 0.4, top=200)
    assert device_nms(boxes, scores, None, valid, iou=0.4, top=200).overflow.all()


def test_boxes_that_need_gradients_are_accepted() -> None:
    boxes, scores = random_boxes(1, 9).requires_grad_(), torch.rand(1, 9).requires_grad_()
    assert nms(boxes, scores, None, torch.ones(1, 9, dtype=torch.bool), iou=0.5, top=9).valid.any()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([0.2, 0.5, 0.8]), st.integers(1, 4))
def test_nms_of_what_nms_kept_keeps_all_and_batches_do_not_mix(seed, m, iou, groups) -> None:
    g = torch.Generator().manual_seed(seed)
    boxes, scores = random_boxes(2, m, seed=seed, size=60), torch.rand(2, m, generator=g)
    group, valid = torch.randint(groups, (2, m), generator=g), torch.rand(2, m, generator=g) > 0.1
    kept = nms(boxes, scores, group, valid, iou=iou, top=m)
    for i in range(2):
        alone = nms(boxes[i : i + 1], scores[i : i + 1], group[i : i + 1], valid[i : i + 1], iou=iou, top=m)
        assert torch.equal(alone.index[0], kept.index[i])
        some = kept.index[i, kept.valid[i]]
        again = nms(
            boxes[i, some][None],
            scores[i, some][None],
            group[i, some][None],
            torch.ones(1, len(some), dtype=torch.bool),
            iou=iou,
            top=max(1, len(some)),
        )
        assert again.valid.sum() == len(some)
    shuffle = torch.randperm(m, generator=g)
    shuffled = nms(boxes[:, shuffle], scores[:, shuffle], group[:, shuffle], valid[:, shuffle], iou=iou, top=m)
    assert torch.equal(shuffle[shuffled.index][kept.valid], kept.index[kept.valid])


def test_thresholds_are_rounded_down_to_the_dtype() -> None:
    single = np.dtype(np.float32)
    for iou in (0.3, 0.5, 0.6, 0.7, 0.95):
        below = cpu.exact_threshold(iou, single)
        assert below <= iou < float(np.nextafter(np.float32(below), np.float32(1)))


def test_operator_is_well_formed() -> None:
    boxes, scores = random_boxes(2, 30), torch.rand(2, 30)
    valid, groups = torch.ones(2, 30, dtype=torch.bool), torch.randint(3, (2, 30))
    for group in (groups, None):
        torch.library.opcheck(torch.ops.twostage.nms, (boxes, scores, group, valid, 0.5, 7))


def test_exports_as_one_node_at_any_batch() -> None:
    class Module(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
            kept = nms(boxes, scores, None, scores > 0.5, iou=0.5, top=8)
            return kept.index, kept.valid

    batch = torch.export.Dim("batch", min=1, max=16)
    example = random_boxes(2, 30), torch.rand(2, 30)
    program = torch.export.export(Module(), example, dynamic_shapes=({0: batch}, {0: batch}), strict=False)
    assert [node.target for node in program.graph.nodes].count(torch.ops.twostage.nms.default) == 1
    boxes, scores = random_boxes(5, 30, seed=3), torch.rand(5, 30)
    for got, expected in zip(program.module()(boxes, scores), Module()(boxes, scores), strict=True):
        assert torch.equal(got, expected)
