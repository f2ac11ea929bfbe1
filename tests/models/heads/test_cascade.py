"""Cascade R-CNN: boxes refined stage by stage, thresholds that rise, probabilities averaged."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from detectors import make_model

from twostage.data.batch import Batch, Targets
from twostage.data.coverage import Coverage
from twostage.errors import UsageError
from twostage.models.heads.box import BoxHeadConfig
from twostage.models.heads.cascade import CascadeConfig, refine, scale_gradient, stage_configs
from twostage.models.heads.postprocess import best_boxes, probabilities
from twostage.models.regions.pooling import RegionFeatures
from twostage.ops.boxes import iou
from twostage.ops.deltas import BoxCoder

SIZES = [(64, 96), (60, 80)]


def cascade(**fields: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = make_model("cascade_rcnn_tiny_fpn", 3, rpn_keep_train=30, rpn_keep_test=30, region_batch=16, **fields)
    for head in model.head.boxes:
        torch.nn.init.normal_(head.deltas.weight, std=0.02)
        torch.nn.init.normal_(head.classes.weight, std=0.2)
    return model


def test_the_papers_stages() -> None:
    """Section 4 and mmdetection's and detectron2's configurations."""
    stages = [stage for _, stage in stage_configs(CascadeConfig(), BoxHeadConfig())]
    assert all(stage.class_agnostic for stage in stages)
    assert [s.positive_iou for s in stages] == [0.5, 0.6, 0.7]
    assert [s.background_iou for s in stages] == [(0, 0.5), (0, 0.6), (0, 0.7)]
    assert [s.delta_weights for s in stages] == [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]


def test_each_stage_predicts_for_the_refined_boxes_of_the_one_before(make_batch: Callable[..., Batch]) -> None:
    model = cascade().eval()
    with torch.no_grad():
        stages = model.stages(make_batch(*SIZES))
    assert torch.equal(stages.predictions[0].boxes, stages.proposals.boxes)
    limits = torch.tensor(SIZES).flip(1).repeat(1, 2)[:, None].float()
    for weights, before, after in zip(
        model.config.cascade.delta_weights, stages.predictions[:-1], stages.predictions[1:], strict=False
    ):
        expected = BoxCoder(weights).decode(before.deltas[:, :, 0], before.boxes)
        torch.testing.assert_close(after.boxes, expected.clamp(min=0).minimum(limits))
    assert not torch.equal(stages.predictions[0].boxes, stages.predictions[2].boxes)


def test_detections_have_the_mean_of_the_probabilities_and_the_last_stages_boxes(
    make_batch: Callable[..., Batch],
) -> None:
    model = cascade(score_threshold=0.0, nms=1.0, soft_nms="off", max_det=90).eval()
    batch = make_batch(*SIZES)
    with torch.no_grad():
        stages = model.stages(batch)
    mean = sum(stage.logits.softmax(dim=2) for stage in stages.predictions)[..., 1:] / 3
    last = refine(model.head.boxes[2], stages.predictions[2], batch.sizes)
    detections = stages.detections
    for image in range(2):
        rows = detections.valid[image]
        parents, labels = detections.proposals[image][rows], detections.labels[image][rows]
        torch.testing.assert_close(detections.scores[image][rows], mean[image][parents, labels])
        torch.testing.assert_close(detections.boxes[image][rows], last[image][parents], rtol=1e-4, atol=1e-3)


def test_one_stage_is_a_plain_head(make_batch: Callable[..., Batch]) -> None:
    one = {"cascade_ious": [0.5], "cascade_delta_weights": [[10, 10, 5, 5]], "cascade_loss_weights": [1.0]}
    model = cascade(**one).eval()
    batch = make_batch(*SIZES)
    with torch.no_grad():
        stages = model.stages(batch)
        first = stages.predictions[0]
        coder, config = model.head.box_heads[0].coder, model.config.postprocess
        scored = probabilities(first.logits, first.deltas, stages.proposals, coder, config)
        plain = best_boxes(scored, batch.sizes, config)
    torch.testing.assert_close(stages.detections.boxes, plain.boxes)
    torch.testing.assert_close(stages.detections.scores, plain.scores)


def test_later_stages_need_higher_overlaps(
    make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    model = cascade(region_positive_fraction=1.0).train()
    batch, targets = make_batch(*SIZES), make_targets(SIZES, [3, 1])
    goals = []
    for head in model.head.boxes:
        own = head.compute_losses
        head.compute_losses = lambda *a, own=own, **k: goals.append(own(*a, **k)) or goals[-1]
    losses = model(batch, targets)
    assert set(losses) == {"rpn_class", "rpn_box", *(f"{n}_{k}" for n in ("class", "box") for k in (1, 2, 3))}
    for goal, least in zip(goals, (0.5, 0.6, 0.7), strict=True):
        overlap = iou(goal.targets.boxes, targets.boxes).masked_fill(~targets.valid[:, None], 0).amax(dim=2)
        assert (overlap[goal.targets.positive] >= least).all()
        assert goal.targets.positive.any()
        assert (overlap[goal.targets.valid & ~goal.targets.positive] < least).all()


def test_later_stages_sample_from_refined_boxes_and_ground_truth_is_appended_once(
    make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    """Appended to every stage, it would be most of what the last stage samples in an image with many objects."""
    model = cascade().train()
    batch, targets = make_batch(*SIZES), make_targets(SIZES, [3, 1])
    given, outputs = [], []
    for head in model.head.boxes:
        own = head.compute_losses

        def compute(maps, boxes, valid, *rest, own=own):
            given.append((boxes, valid))
            outputs.append(own(maps, boxes, valid, *rest))
            return outputs[-1]

        head.compute_losses = compute
    model(batch, targets)
    for out, (boxes, valid), head in zip(outputs, given[1:], model.head.boxes, strict=False):
        assert torch.equal(valid, out.targets.valid)
        assert torch.equal(boxes, refine(head, out.predictions, batch.sizes))
    objects = [(out.targets.index >= boxes.shape[1]).any() for (boxes, _), out in zip(given, outputs, strict=True)]
    assert objects == [True, False, False]


def test_loss_weights_and_gradients_are_fields(
    make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    batch, targets = make_batch(*SIZES), make_targets(SIZES, [3, 1])
    plain = cascade(cascade_loss_weights=[1, 1, 1], norm="frozen").train()
    weighed = cascade(cascade_loss_weights=[1, 0.5, 0.25], norm="frozen").train()
    one, two = plain(batch, targets), weighed(batch, targets)
    for name, factor in (("class_1", 1), ("box_2", 0.5), ("class_3", 0.25)):
        torch.testing.assert_close(two[name], factor * one[name])

    def gradient(model: torch.nn.Module) -> torch.Tensor:
        losses = model(batch, targets)
        (value,) = torch.autograd.grad(losses["class_2"], [model.backbone.outputs[0][0].weight])
        return value

    thirds = cascade(cascade_loss_weights=[1, 1, 1], cascade_gradient=1 / 3, norm="frozen").train()
    torch.testing.assert_close(gradient(thirds), gradient(plain) / 3, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["cascade_mask_rcnn_tiny_fpn", "hybrid_task_cascade_tiny_fpn"])
def test_the_gradient_of_masks_is_not_scaled(
    name: str, make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    """detectron2's modeling/roi_heads/cascade_rcnn.py scales the features of its box heads alone."""
    batch, targets = make_batch(*SIZES), make_targets(SIZES, [3, 1])
    sides = targets.boxes.shape[:2]
    targets = replace(targets, masks=Coverage(targets.boxes, torch.full((*sides, 8, 8), 255, dtype=torch.uint8)))

    def gradients(factor: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        fields = {"semantic_classes": 0} if name.startswith("hybrid") else {}
        model = make_model(name, 3, cascade_gradient=factor, norm="frozen", **fields).train()
        losses = model(batch, targets)
        last = [model.backbone.outputs[0][0].weight]
        return {each: torch.autograd.grad(losses[each], last, retain_graph=True)[0] for each in ("class_1", "mask_1")}

    plain, third = gradients(1.0), gradients(1 / 3)
    assert plain["mask_1"].any()
    torch.testing.assert_close(third["class_1"], plain["class_1"] / 3, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(third["mask_1"], plain["mask_1"], rtol=1e-4, atol=1e-7)


def test_scaled_gradient() -> None:
    x = torch.ones(3, requires_grad=True)
    (y,), z = scale_gradient(RegionFeatures([x], x), 0.25)
    assert torch.equal(x, y)
    assert torch.equal(x, z)
    y.sum().backward()
    assert x.grad.tolist() == [0.25] * 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cascade_ious": [0.5, 0.6]}, "have 2, 3, 3 values: give one per stage"),
        ({"class_agnostic": False}, "no field"),
        ({"region_positive_iou": 0.4}, "no field"),
        ({"box_delta_weights": [5, 5, 5, 5]}, "no field 'box_delta_weights'"),
    ],
)
def test_fields_that_contradict_each_other(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_model("cascade_rcnn_tiny_fpn", 3, **fields)
