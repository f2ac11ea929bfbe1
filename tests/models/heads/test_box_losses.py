"""A box head's losses: each kind by its formula, hard example mining, and class weights that are refused."""

from collections.abc import Callable

import pytest
import torch
from detectors import make_model

from twostage.data.batch import Batch, Targets
from twostage.errors import UsageError
from twostage.models.heads.cascade import refine
from twostage.models.losses import class_losses, overlap_loss
from twostage.models.regions.pooling import RegionFeatures
from twostage.ops.boxes import iou

SIZES = [(64, 96), (60, 80)]


def model(**fields: object) -> torch.nn.Module:
    torch.manual_seed(0)
    small = {"rpn_keep_train": 30, "region_batch": 16, "norm": "frozen", **fields}
    made = make_model("faster_rcnn_tiny_fpn", 3, **small).train()
    torch.nn.init.normal_(made.head.deltas.weight, std=0.02)
    torch.nn.init.normal_(made.head.classes.weight, std=0.5)
    return made


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    return make_batch(*SIZES)


@pytest.fixture
def targets(make_targets: Callable[..., Targets]) -> Targets:
    return make_targets(SIZES, [3, 2])


def head_losses(made: torch.nn.Module, batch: Batch, targets: Targets):
    maps = made.features(batch)
    _, proposals = made.propose(maps, batch)
    return made.head.compute_losses(RegionFeatures(maps), proposals.boxes, proposals.valid, targets)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_overlap_losses_are_of_the_moved_box_and_its_object(kind: str, batch: Batch, targets: Targets) -> None:
    made = model(box_loss=kind)
    one = head_losses(made, batch, targets)
    moved = refine(made.head, one.predictions, batch.sizes * 100)  # without a border to clip at
    truth = targets.boxes.gather(1, one.targets.truth[..., None].expand(-1, -1, 4))
    weight = torch.full((2,), 1 / float(one.targets.valid.sum()))
    expected = overlap_loss(moved, truth, one.targets.positive, weight, kind)  # type: ignore[arg-type]
    assert one.targets.positive.any()
    torch.testing.assert_close(one.losses["box"], expected, rtol=1e-3, atol=1e-4)
    one.losses["box"].backward()
    assert made.head.deltas.weight.grad.isfinite().all()
    assert made.head.deltas.weight.grad.any()


def test_l1_is_the_plain_distance_of_deltas(batch: Batch, targets: Targets) -> None:
    one = head_losses(model(box_loss="l1"), batch, targets)
    distance = (one.predictions.deltas[:, :, 0] - one.targets.deltas).abs().sum(dim=2)[one.targets.positive].sum()
    torch.testing.assert_close(one.losses["box"], distance / one.targets.valid.sum())


@pytest.mark.parametrize(
    ("fields", "how"),
    [
        ({"class_loss": "focal", "focal_gamma": 1.5}, {"gamma": 1.5}),
        ({"label_smoothing": 0.2}, {"smoothing": 0.2}),
        ({"class_weights": [0.5, 2, 1]}, {"class_weights": torch.tensor([1, 0.5, 2, 1])}),
    ],
)
def test_class_losses_are_fields(fields: dict, how: dict, batch: Batch, targets: Targets) -> None:
    one = head_losses(model(**fields), batch, targets)
    each = class_losses(one.predictions.logits, one.targets.classes, **how)[one.targets.valid]
    torch.testing.assert_close(one.losses["class"], each.mean())
    plain = head_losses(model(), batch, targets)
    assert not torch.isclose(one.losses["class"], plain.losses["class"])


def test_focal_objectness_is_a_field(batch: Batch, targets: Targets) -> None:
    plain, focal = (model(objectness_loss=kind)(batch, targets) for kind in ("cross_entropy", "focal"))
    assert 0 < focal["rpn_class"] < 0.5 * plain["rpn_class"]


def test_hard_examples_have_the_highest_loss(batch: Batch, targets: Targets) -> None:
    made = model(region_sampling="ohem", region_batch=8, region_positive_fraction=0.5)
    maps = made.features(batch)
    _, proposals = made.propose(maps, batch)
    features = RegionFeatures(maps)
    one = made.head.compute_losses(features, proposals.boxes, proposals.valid, targets)
    boxes = torch.cat([proposals.boxes, targets.boxes], dim=1)
    valid = torch.cat([proposals.valid, targets.valid], dim=1)
    overlap = iou(boxes, targets.boxes).masked_fill(~targets.valid[:, None], 0).amax(dim=2)
    with torch.no_grad():
        logits = made.head(features, boxes).logits
    hard = class_losses(logits, torch.zeros(boxes.shape[:2], dtype=torch.int64))  # of background
    for image in range(2):
        negative = (overlap[image] < 0.5) & valid[image]
        taken = one.targets.index[image][one.targets.valid[image] & ~one.targets.positive[image]]
        assert len(taken) > 0
        left = negative.clone()
        left[taken] = False
        assert hard[image][taken].min() >= hard[image][left].max()


def test_ranking_hard_examples_leaves_autocast_no_copies_of_weights(
    batch: Batch, targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to torch 2.10 the loss would reuse those made without a gradient, and the head would learn nothing."""
    made = model(region_sampling="ohem")
    cleared, own = [], torch.clear_autocast_cache
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: cleared.append(True) or own())
    monkeypatch.setattr(made.rpn, "samples_few", lambda _maps: False)  # the RPN clears them too
    with torch.autocast("cpu", torch.bfloat16):
        losses = made(batch, targets)
        assert cleared  # before the end of autocast, which clears them as well
    gradients = torch.autograd.grad(losses["class"] + losses["box"], list(made.head.parameters()))
    assert all(gradient.any() for gradient in gradients)


def test_class_weights_of_another_number_are_refused() -> None:
    with pytest.raises(UsageError, match="give at least one class a weight above 0"):
        make_model("faster_rcnn_tiny_fpn", 3, class_weights=[0, 0, 0])
    with pytest.raises(UsageError, match="class_weights has 2 numbers: give one for each of 3 classes"):
        model(class_weights=[1, 2])
