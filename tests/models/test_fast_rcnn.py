"""Fast R-CNN: any proposals, one map, one multi-task loss (Girshick 2015)."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from detectors import make_model
from proposing import given
from torch import nn
from torchvision.ops import roi_pool as torchvisions_pool

from twostage.data.batch import Batch, GivenProposals, Targets
from twostage.errors import UsageError
from twostage.models.regions.pooling import RegionFeatures
from twostage.models.two_stage import TwoStage
from twostage.models.zoo import named
from twostage.training.optimiser import set_trainable

SIZES = [(96, 128), (80, 112)]
SMALL = {"rpn_keep_train": 30, "rpn_keep_test": 20, "region_batch": 16, "head_channels": 32, "score_threshold": 0.0}


def small(name: str = "fast_rcnn_tiny", **fields: object) -> TwoStage:
    return make_model(name, 3, **{**SMALL, **fields})


def test_the_papers_numbers() -> None:
    """Sections 2.3, 3.1 and 4.1: two images, 64 regions each, a quarter positive, background from 0.1 to 0.5."""
    fast, faster = named("fast_rcnn_vgg16"), named("faster_rcnn_vgg16")
    head = fast.box_head
    assert (head.region_batch, head.region_positive_fraction, fast.stage.background_iou) == (64, 0.25, (0.1, 0.5))
    assert (fast.image.size, fast.image.max_size, head.body.dropout) == (600, 1000, 0.5)
    assert (head.box_beta, head.box_loss_weight) == (1.0, 1.0)
    assert (faster.box_head.region_batch, faster.stage.background_iou) == (128, (0.0, 0.5))


def test_a_classification_network_changes_in_three_ways() -> None:
    """Section 2.2: RoIPool for the last pooling, two sibling layers for the last one, images and regions as input."""
    with torch.device("meta"):
        model = make_model("fast_rcnn_vgg16", 20)
    assert model.rpn is None
    assert not isinstance(list(model.backbone.features)[-1], nn.MaxPool2d)
    assert (model.head.regions.size, model.head.regions.scale) == (7, 1 / 16)
    assert (model.head.body.fc6.in_features, model.head.body.fc7.out_features) == (512 * 49, 4096)
    assert (model.head.classes.out_features, model.head.deltas.out_features) == (21, 4 * 20)


def test_regions_are_pooled_from_the_proposals_given(make_batch: Callable[..., Batch]) -> None:
    model = small().eval()
    batch = make_batch(*SIZES)
    batch = replace(batch, proposals=given(batch, 20))
    seen = {}
    model.head.body.register_forward_pre_hook(lambda _, inputs: seen.update(regions=inputs[0]))
    with torch.no_grad():
        stages = model.stages(batch)
    rois = [torch.cat([torch.full((20, 1), float(i)), boxes], dim=1) for i, boxes in enumerate(batch.proposals.boxes)]
    theirs = torchvisions_pool(stages.maps[0].contiguous(), torch.cat(rois), 7, 1 / 16)
    torch.testing.assert_close(seen["regions"].flatten(0, 1), theirs)
    assert stages.anchors is None
    assert stages.proposals.anchors[0].tolist() == list(range(20))
    assert not (stages.detections.proposals[stages.detections.valid] == 19).any()  # padding proposes nothing


@pytest.mark.parametrize("name", ["fast_rcnn_tiny", "rcnn_tiny", "sppnet_tiny", "cascade_mask_rcnn_tiny_fpn"])
def test_without_any_proposal_nothing_is_detected(make_batch: Callable[..., Batch], name: str) -> None:
    batch = make_batch(*SIZES)
    empty = GivenProposals(torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool))
    with torch.no_grad():
        detections = make_model(name, 2).eval()(replace(batch, proposals=empty))
    assert not detections.valid.any()


def test_background_learns_no_box(make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]) -> None:
    """Equation 1: the box loss counts only where u >= 1, the class loss everywhere."""
    model = small(region_truth=False).train()
    batch = make_batch(*SIZES)
    batch, targets = replace(batch, proposals=given(batch, 30)), make_targets(SIZES, [3, 1])
    far = replace(targets, boxes=targets.boxes * 0 + torch.tensor([500.0, 500, 520, 520]))
    losses = model(batch, far)
    assert set(losses) == {"class", "box"}
    assert losses["box"] == 0
    model = small(region_truth=True).train()
    losses = model(batch, targets)
    assert losses["box"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_detector_without_proposals_is_an_error(make_batch: Callable[..., Batch]) -> None:
    with pytest.raises(UsageError, match="give proposals"):
        small().eval()(make_batch(*SIZES))


def test_given_proposals_replace_those_of_the_rpn(make_batch: Callable[..., Batch]) -> None:
    model = small("faster_rcnn_tiny").eval()
    batch = make_batch(*SIZES)
    with torch.no_grad():
        own = model.stages(batch)
        others = model.stages(replace(batch, proposals=given(batch, 20)))
    assert own.anchors is not None
    assert others.anchors is None
    torch.testing.assert_close(others.proposals.boxes, given(batch, 20).boxes)


def test_a_trained_rpn_runs_beside_proposals_that_are_given(
    make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    """Otherwise `train --proposals` would leave it at its random initial weights."""
    model = small("faster_rcnn_tiny").train()
    batch, targets = make_batch(*SIZES), make_targets(SIZES, [3, 1])
    batch = replace(batch, proposals=given(batch, 30))
    losses = model(batch, targets)
    assert set(losses) == {"rpn_class", "rpn_box", "class", "box"}
    sum(losses.values()).backward()
    assert model.rpn.deltas.weight.grad.abs().sum() > 0
    set_trainable(model, ("backbone", "head"))
    assert set(model(batch, targets, parts=("backbone", "head"))) == {"class", "box"}
    set_trainable(model, ("boxes",))
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning == ["head.deltas.weight", "head.deltas.bias"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"proposal_gradient": True}, "needs roi=align"),
        ({"pyramid": "levels"}, "no field 'pyramid'"),
    ],
)
def test_fields_that_contradict_each_other(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small("faster_rcnn_tiny", **fields)
    with pytest.raises(UsageError, match="reads a single map"):
        small("faster_rcnn_tiny_fpn", roi="pool")


@pytest.mark.parametrize("flows", [False, True])
def test_the_regions_loss_reaches_the_rpn(
    flows: bool, make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    """Faster R-CNN, section 3.2 (iii): only in non-approximate joint training."""
    model = small("faster_rcnn_tiny", roi="align", proposal_gradient=flows, norm="frozen", region_truth=False).train()
    batch, targets = make_batch(*SIZES), make_targets(SIZES, [3, 1])
    maps = model.features(batch)
    _, proposals = model.propose(maps, batch)
    assert proposals.boxes.requires_grad == flows
    losses = model.head.losses(maps, proposals, batch.sizes, targets)
    sum(losses.values()).backward()
    moved = model.rpn.deltas.weight.grad
    assert (moved is not None and bool(moved.abs().sum() > 0)) == flows


def test_that_gradient_is_the_slope(make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]) -> None:
    """The loss after a small step of all proposals' corners against the gradient's prediction."""
    torch.manual_seed(0)
    model = small("faster_rcnn_tiny", roi="align", proposal_gradient=True, norm="frozen", head_channels=16).double()
    model = model.train()
    batch, targets = make_batch(*SIZES), make_targets(SIZES, [3, 1])
    batch = Batch(batch.images.double(), batch.sizes)
    targets = replace(targets, boxes=targets.boxes.double())
    maps = tuple(m.detach() for m in model.features(batch))
    dense = model.rpn(maps, batch.canvas, batch.sizes)
    fixed = model.rpn.propose(dense, batch.sizes)

    def loss(shift: torch.Tensor) -> torch.Tensor:
        proposals = fixed._replace(boxes=fixed.boxes.detach() + shift)
        return model.head(RegionFeatures(maps), proposals.boxes).logits.square().sum()

    shift = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(shift), shift)
    step = 1e-5
    for axis in range(4):
        moved = torch.zeros(4, dtype=torch.float64)
        moved[axis] = step
        numeric = (loss(moved) - loss(-moved)) / (2 * step)
        torch.testing.assert_close(numeric, slope[axis], rtol=2e-2, atol=1e-3)
