"""Hybrid Task Cascade: each of its three parts does what it should, and can be left out."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from detectors import make_model
from torch.nn.functional import cross_entropy, interpolate

from twostage.data.batch import Batch, Targets
from twostage.data.coverage import Coverage
from twostage.data.stuff import UNKNOWN
from twostage.models.heads.semantic import SemanticBranch, SemanticConfig
from twostage.models.regions.pooling import RegionFeatures

SIZES = [(64, 96), (60, 80)]


def htc(**fields: object) -> torch.nn.Module:
    torch.manual_seed(0)
    small = {"rpn_keep_train": 20, "rpn_keep_test": 20, "region_batch": 16, "norm": "frozen"}
    model = make_model("hybrid_task_cascade_tiny_fpn", 3, **small, **fields)
    for head in model.head.cascade.boxes:
        torch.nn.init.normal_(head.deltas.weight, std=0.02)
    for head in model.head.mask:
        torch.nn.init.normal_(head.classes.weight, std=0.2)
    return model


@pytest.fixture
def targets(make_targets: Callable[..., Targets]) -> Targets:
    made = make_targets(SIZES, [3, 1])
    cells = torch.randint(0, 2, (*made.labels.shape, 112, 112), generator=torch.Generator().manual_seed(0))
    stuff = torch.randint(0, 5, (2, 8, 12), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return replace(made, masks=Coverage(made.boxes.clone(), cells.to(torch.uint8) * 255), stuff=stuff)


def pooled_boxes(model: torch.nn.Module) -> dict[str, list[torch.Tensor]]:
    """The boxes that box heads and mask heads pool, in order."""
    seen: dict[str, list[torch.Tensor]] = {"box": [], "mask": []}
    for head in model.head.cascade.boxes:
        head.regions.register_forward_pre_hook(lambda _m, inputs: seen["box"].append(inputs[1].detach()))
    model.head.mask[0].regions.register_forward_pre_hook(lambda _m, inputs: seen["mask"].append(inputs[1].detach()))
    return seen


def test_losses_of_every_stage_and_of_the_semantic_branch(make_batch: Callable[..., Batch], targets: Targets) -> None:
    losses = htc(semantic_classes=5).train()(make_batch(*SIZES), targets)
    stages = {f"{name}_{k}" for name in ("class", "box", "mask") for k in (1, 2, 3)}
    assert set(losses) == {"rpn_class", "rpn_box", "semantic", *stages}
    sum(losses.values()).backward()
    without = htc(semantic_classes=0).train()(make_batch(*SIZES), targets)
    assert set(without) == {"rpn_class", "rpn_box", *stages}


def test_interleaved_masks_see_the_boxes_their_stage_has_moved(
    make_batch: Callable[..., Batch], targets: Targets
) -> None:
    """Without it those the stage's box head itself has seen, as in Cascade Mask R-CNN."""
    for interleaved in (False, True):
        # So low that boxes of a network that has learned nothing are positive.
        model = htc(htc_interleaved=interleaved, cascade_ious=[0.05, 0.05, 0.05]).train()
        seen = pooled_boxes(model)
        model(make_batch(*SIZES), targets)
        assert len(seen["box"]) == len(seen["mask"]) == 3
        for box, mask in zip(seen["box"], seen["mask"], strict=True):
            known = {tuple(row) for row in box.flatten(0, 1).tolist()}
            objects = {tuple(row) for row in targets.boxes.flatten(0, 1).tolist()}
            # Those of real regions, which the ground truth may have joined; padding is anything.
            new = {tuple(row) for row in mask[0].tolist()} - known - objects
            assert bool(new) == interleaved


def test_masks_flow_from_stage_to_stage(make_batch: Callable[..., Batch], targets: Targets) -> None:
    for flows in (False, True):
        model = htc(htc_mask_flow=flows).train()
        model(make_batch(*SIZES), targets)["mask_3"].backward()
        before = model.head.mask[0].convs[0][0].weight.grad
        assert (before is not None and bool(before.abs().sum() > 0)) == flows
        assert model.head.mask[2].convs[0][0].weight.grad.abs().sum() > 0
        assert len(model.head.flows) == (2 if flows else 0)


@pytest.mark.parametrize("fields", [{"mask_channels": 32}, {"mask_channels": 32, "mask_convs": 0}])
def test_masks_flow_whatever_their_width(
    make_batch: Callable[..., Batch], targets: Targets, fields: dict[str, int]
) -> None:
    model = htc(**fields).train()
    assert model(make_batch(*SIZES), targets)["mask_3"].isfinite()


def test_what_the_branch_sees_reaches_boxes_and_masks(make_batch: Callable[..., Batch], targets: Targets) -> None:
    model = htc(semantic_classes=5).train()
    losses = model(make_batch(*SIZES), targets)
    for name in ("class_1", "mask_1"):
        (gradient,) = torch.autograd.grad(losses[name], [model.head.semantic.embedding[0].weight], retain_graph=True)
        assert gradient.abs().sum() > 0


def test_masks_at_test_are_the_mean_of_all_stages(make_batch: Callable[..., Batch]) -> None:
    model = htc(semantic_classes=5, score_threshold=0.0, max_det=6).eval()
    with torch.no_grad():
        stages = model.stages(make_batch(*SIZES))
        features = model.head.fuse_features(stages.maps)
        boxes, labels = stages.detections.boxes, stages.detections.labels
        told = [model.head._stage_mask_logits(features, boxes, labels, stages=k) for k in (1, 2, 3)]
    expected = torch.stack([logits.sigmoid() for logits in told]).mean(dim=0)
    valid = stages.detections.valid
    assert valid.any()
    torch.testing.assert_close(stages.detections.masks[valid], expected[valid])
    assert not torch.allclose(told[0], told[2])


def test_masks_of_a_cascade_are_the_mean_of_all_stages(make_batch: Callable[..., Batch]) -> None:
    torch.manual_seed(0)
    small = {"rpn_keep_test": 20, "norm": "frozen", "score_threshold": 0.0, "max_det": 6}
    model = make_model("cascade_mask_rcnn_tiny_fpn", 3, **small).eval()
    for head in model.head.mask:
        torch.nn.init.normal_(head.classes.weight, std=0.2)
    with torch.no_grad():
        stages = model.stages(make_batch(*SIZES))
        told = [
            head(RegionFeatures(stages.maps), stages.detections.boxes, stages.detections.labels).sigmoid()
            for head in model.head.mask
        ]
    valid = stages.detections.valid
    assert valid.any()
    torch.testing.assert_close(stages.detections.masks[valid], torch.stack(told).mean(dim=0)[valid])
    assert not torch.allclose(told[0], told[2])


def test_masks_and_the_branch_weigh_as_the_fields_say(make_batch: Callable[..., Batch], targets: Targets) -> None:
    plain = htc(semantic_classes=5, cascade_loss_weights=[1, 1, 1], semantic_lambda=1.0).train()
    weighed = htc(semantic_classes=5, cascade_loss_weights=[1, 0.5, 0.25], semantic_lambda=0.2).train()
    one, two = plain(make_batch(*SIZES), targets), weighed(make_batch(*SIZES), targets)
    for name, factor in (("mask_1", 1), ("mask_2", 0.5), ("mask_3", 0.25), ("semantic", 0.2)):
        torch.testing.assert_close(two[name], factor * one[name])


def test_the_branch_brings_all_levels_to_stride_8_and_adds_them() -> None:
    torch.manual_seed(0)
    branch = SemanticBranch(SemanticConfig(3, convs=0), 8, (4, 8, 16))
    maps = [torch.rand(1, 8, 64 // s, 96 // s) for s in (4, 8, 16)]
    seen = branch.features([*maps, torch.rand(1, 8, 2, 3)])  # an extra level is not read
    expected = [
        interpolate(lateral(x), (8, 12), mode="bilinear") for lateral, x in zip(branch.laterals, maps, strict=True)
    ]
    torch.testing.assert_close(seen, torch.stack(expected).sum(dim=0))


def test_the_semantic_loss_leaves_out_what_is_not_known() -> None:
    torch.manual_seed(0)
    branch = SemanticBranch(SemanticConfig(3, convs=1), 8, (4, 8, 16))
    maps = [torch.rand(1, 8, 64 // s, 96 // s) for s in (4, 8, 16)]
    stuff = torch.randint(0, 3, (1, 8, 12)).to(torch.uint8)
    stuff[:, :5] = UNKNOWN
    seen = branch.features(maps)
    expected = cross_entropy(branch.logits(seen)[:, :, 5:], stuff[:, 5:].long())
    torch.testing.assert_close(branch.loss(seen, stuff), expected)
    assert float(branch.loss(seen, torch.full_like(stuff, UNKNOWN))) == 0


def test_without_maps_of_stuff_it_is_said(make_batch: Callable[..., Batch], targets: Targets) -> None:
    model = htc(semantic_classes=5).train()
    with pytest.raises(ValueError, match="needs targets with stuff maps"):
        model(make_batch(*SIZES), replace(targets, stuff=None))
