from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads

from twostage.data.batch import Targets, stack_targets
from twostage.models.targets.regions import RegionTargets, append_ground_truth, region_targets
from twostage.models.targets.sampling import RandomSampler
from twostage.ops.boxes import iou
from twostage.ops.deltas import BoxCoder

SIZES = [(96, 128), (80, 100)]
RULES = {"positive": 0.5, "negative": (0.0, 0.5), "coder": BoxCoder((10.0, 10.0, 5.0, 5.0))}


def proposals(count: int, targets: Targets, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes around the objects and elsewhere; the last few of each image are padding."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, count, 2, generator=g) * 60
    boxes = torch.cat([corner, corner + 8 + torch.rand(2, count, 2, generator=g) * 40], dim=2)
    near = torch.randint(max(targets.boxes.shape[1], 1), (2, count // 2), generator=g)
    around = targets.boxes.gather(1, near[..., None].expand(-1, -1, 4))
    moved = around + torch.randn(around.shape, generator=g) * 3
    boxes[:, : count // 2, :2] = moved[..., :2]
    boxes[:, : count // 2, 2:] = moved[..., 2:].maximum(moved[..., :2] + 1)
    return boxes, torch.arange(count).expand(2, -1) < torch.tensor([[count], [count - 7]])


def torchvisions(batch: int, sampler: object) -> RoIHeads:
    heads = RoIHeads(
        nn.Identity(),
        nn.Identity(),
        nn.Identity(),
        fg_iou_thresh=RULES["positive"],
        bg_iou_thresh=RULES["negative"][1],
        batch_size_per_image=batch,
        positive_fraction=0.25,
        bbox_reg_weights=RULES["coder"].weights,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
    )
    heads.fg_bg_sampler = sampler
    return heads


def rows(boxes: Tensor, classes: Tensor, deltas: Tensor) -> list[list[float]]:
    """Box, class and, of positives, deltas; in an order that the sampler's does not change."""
    deltas = deltas.where(classes[:, None] > 0, 0.0)
    return sorted(torch.cat([boxes, classes[:, None].float(), deltas], dim=1).tolist())


@pytest.mark.parametrize("counts", [[3, 6], [0, 2], [0, 0]])
@pytest.mark.parametrize("batch", [40, 200])
def test_equal_to_torchvisions(
    counts: list[int], batch: int, make_targets: Callable[..., Targets], every_first: type
) -> None:
    targets = make_targets(SIZES, counts)
    boxes, valid = proposals(64, targets)
    sampler = every_first(batch, 0.25)
    found = region_targets(*append_ground_truth(boxes, valid, targets), targets, sampler, **RULES)
    truth = zip(targets.boxes, targets.labels, targets.valid, strict=True)
    dicts = [{"boxes": b[v], "labels": c[v] + 1} for b, c, v in truth]
    expected = torchvisions(batch, sampler.for_torchvision).select_training_samples(
        [b[v] for b, v in zip(boxes, valid, strict=True)], dicts
    )
    regions, _, classes, deltas = expected
    for i in range(2):
        keep = found.valid[i]
        own = rows(found.boxes[i][keep], found.classes[i][keep], found.deltas[i][keep])
        wanted = rows(regions[i], classes[i], deltas[i])
        assert len(own) == len(wanted) > 0
        torch.testing.assert_close(torch.tensor(own), torch.tensor(wanted), rtol=1e-5, atol=1e-5)


def sampled(targets: Targets, batch: int = 512, **rules) -> RegionTargets:
    boxes, valid = proposals(100, targets)
    sampler = RandomSampler(batch, 0.25)
    return region_targets(*append_ground_truth(boxes, valid, targets), targets, sampler, **{**RULES, **rules})


def test_ground_truth_joins_the_proposals(make_targets: Callable[..., Targets]) -> None:
    targets = make_targets(SIZES, [3, 6])
    far = targets.boxes + 1000
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    found = region_targets(*append_ground_truth(far, nothing, targets), targets, RandomSampler(16, 0.5), **RULES)
    assert found.positive.sum(dim=1).tolist() == [3, 6]
    assert found.deltas[found.positive].abs().max() == 0
    without = region_targets(far, nothing, targets, RandomSampler(16, 0.5), **RULES)
    assert not without.valid.any()


def test_classes_and_truth_agree(make_targets: Callable[..., Targets]) -> None:
    """`classes` has 0 for background and a label + 1 for an object; `truth` is whose label it is."""
    targets = make_targets(SIZES, [3, 6])
    found = sampled(targets)
    labels = targets.labels.gather(1, found.truth)
    assert found.positive.any(dim=1).all()
    assert torch.equal(found.classes[found.positive], labels[found.positive] + 1)
    assert (found.classes[~found.positive] == 0).all()


def test_fast_rcnns_background_begins_at_a_tenth(make_targets: Callable[..., Targets]) -> None:
    targets = make_targets(SIZES, [3, 6])
    found = sampled(targets, 60, negative=(0.1, 0.5))
    overlap = (iou(found.boxes, targets.boxes) * targets.valid[:, None]).amax(dim=2)
    negative = found.valid & ~found.positive
    assert negative.any()
    assert overlap[negative].min() >= 0.1
    assert overlap[negative].max() < 0.5


def test_an_image_with_only_zero_area_ground_truth_gives_finite_targets() -> None:
    targets = stack_targets([torch.tensor([[5.0, 5, 5, 9]])], [torch.tensor([1])], [3])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 5, 5, 9]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    found = region_targets(*append_ground_truth(boxes, valid, targets), targets, RandomSampler(4, 0.5), **RULES)
    assert found.deltas.isfinite().all()


def test_no_gradient(make_targets: Callable[..., Targets]) -> None:
    targets = make_targets(SIZES, [3, 6])
    boxes, valid = proposals(20, targets)
    boxes, valid = append_ground_truth(boxes.requires_grad_(), valid, targets)
    found = region_targets(boxes, valid, targets, RandomSampler(16, 0.5), **RULES)
    assert not found.boxes.requires_grad
    assert not found.deltas.requires_grad
