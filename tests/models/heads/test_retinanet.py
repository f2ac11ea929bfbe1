"""RetinaNet: torchvision's losses and detections from the same logits, on anchors of ours."""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from detectors import make_model
from proposing import given
from torch.nn.functional import smooth_l1_loss
from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetHead, RetinaNetRegressionHead
from torchvision.ops import batched_nms, sigmoid_focal_loss

from twostage.data.batch import Batch, Targets
from twostage.errors import UsageError
from twostage.models.heads.retinanet import PRIOR
from twostage.ops.boxes import iou
from twostage.ops.deltas import BoxCoder

SIZES = [(64, 96), (60, 80)]
K = 3


def net(**fields: object) -> torch.nn.Module:
    torch.manual_seed(0)
    made = make_model("retinanet_tiny_fpn", K, **{"norm": "frozen", "soft_nms": "off", **fields})
    torch.nn.init.normal_(made.head.classes.weight, std=0.1)
    torch.nn.init.normal_(made.head.deltas.weight, std=0.005)
    return made


def test_towers_are_torchvisions(make_batch: Callable[..., Batch]) -> None:
    model = net(dense_convs=4, dense_norm="none").eval()
    each = model.head.anchors.per_position[0]
    theirs = RetinaNetHead(64, each, K)
    assert isinstance(theirs.classification_head, RetinaNetClassificationHead)
    assert isinstance(theirs.regression_head, RetinaNetRegressionHead)
    for tower, last, head, name in (
        (model.head.class_tower, model.head.classes, theirs.classification_head, "cls_logits"),
        (model.head.box_tower, model.head.deltas, theirs.regression_head, "bbox_reg"),
    ):
        for mine, other in zip(tower, head.conv, strict=True):
            other[0].load_state_dict(mine[0].state_dict())
        getattr(head, name).load_state_dict(last.state_dict())
    batch = make_batch(*SIZES)
    with torch.no_grad():
        maps = model.features(batch)
        predictions, expected = model.head(maps, batch.canvas, batch.sizes), theirs(list(maps))
    torch.testing.assert_close(
        torch.cat(predictions.logits, 1).unflatten(1, (-1, K)), expected["cls_logits"], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(torch.cat(predictions.deltas, 1), expected["bbox_regression"], rtol=1e-4, atol=1e-4)


def test_the_initial_loss_of_background_is_small(
    make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    """Section 3.3: with a prior of 0.01 the first loss is of the order of one."""
    torch.manual_seed(0)
    model = make_model("retinanet_tiny_fpn", K).train()
    predictions = model.head(model.features(make_batch(*SIZES)), (64, 96), torch.tensor(SIZES))
    assert float(torch.cat(predictions.logits, 1).sigmoid().mean().detach()) == pytest.approx(PRIOR, rel=0.2)
    losses = model(make_batch(*SIZES), make_targets(SIZES, [3, 1]))
    assert set(losses) == {"class", "box"}
    assert 0.3 < losses["class"] < 3


def test_losses_by_their_formulas(make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]) -> None:
    model = net().train()
    batch, targets = make_batch(*SIZES), make_targets(SIZES, [3, 0])
    predictions = model.head(model.features(batch), batch.canvas, batch.sizes)
    losses = model.head.losses(predictions, targets)
    anchors, logits = torch.cat(predictions.anchors), torch.cat(predictions.logits, 1).unflatten(1, (-1, K))
    overlap = iou(anchors.expand(2, -1, -1), targets.boxes) * targets.valid[:, None]
    best, truth = overlap.max(dim=2)
    most = overlap.amax(dim=1, keepdim=True)
    positive = (best >= 0.5) | ((overlap == most) & (most > 0)).any(dim=2)
    counts = positive | (best < 0.4)
    one = torch.zeros_like(logits)
    for image, anchor in positive.nonzero().tolist():
        one[image, anchor, targets.labels[image, truth[image, anchor]]] = 1
    each = sigmoid_focal_loss(logits, one, 0.25, 2.0) * counts[..., None]
    torch.testing.assert_close(losses["class"], each.sum() / positive.sum())
    assert positive[0].any()
    assert not positive[1].any()
    goal = BoxCoder().encode(targets.boxes.gather(1, truth[..., None].expand(-1, -1, 4)), anchors)
    moves = torch.cat(predictions.deltas, 1)
    far = smooth_l1_loss(moves[positive], goal[positive], beta=model.config.retinanet.beta, reduction="sum")
    torch.testing.assert_close(losses["box"], far / positive.sum())


def test_processes_with_fewer_positives_than_they_are_learn_as_one(
    make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    """The mean of their losses is the loss of the whole batch; the processes that have no image left have no loss."""
    model = net().train()
    batch, targets = make_batch(*SIZES), make_targets(SIZES, [1, 0])
    whole = model(batch, targets)
    counts: list[torch.Tensor] = []
    model(batch, targets, mean=lambda number: counts.append(number) or number)
    processes = 4 * float(counts[0])

    def part(image: int) -> dict[str, torch.Tensor]:
        """The losses of a process with one of the images."""
        own = slice(image, image + 1)
        some = Targets(targets.boxes[own], targets.labels[own], targets.valid[own], targets.seeds[own])
        return model(Batch(batch.images[own], batch.sizes[own]), some, mean=lambda _: counts[0] / processes)

    first, second = part(0), part(1)
    for name, loss in whole.items():
        torch.testing.assert_close((first[name] + second[name]) / processes, loss, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_losses_do_not_depend_on_the_default_dtype(
    dtype: torch.dtype, make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    model, batch, targets = net().train(), make_batch(*SIZES), make_targets(SIZES, [3, 1])
    expected = model(batch, targets)
    torch.set_default_dtype(dtype)
    try:
        losses = model(batch, targets)
    finally:
        torch.set_default_dtype(torch.float32)
    assert losses == expected


def test_detections_are_what_suppression_leaves_of_the_best_pairs(make_batch: Callable[..., Batch]) -> None:
    model = net(rpn_top_test=200, score_threshold=0.05, nms=0.5).eval()
    batch = make_batch(*SIZES)
    with torch.no_grad():
        stages = model.stages(batch)
    logits = torch.cat(stages.anchors.logits, 1).unflatten(1, (-1, K))
    for image in range(2):
        proposals = stages.proposals
        score = proposals.scores[image].sigmoid()
        sides = proposals.boxes[image, :, 2:] - proposals.boxes[image, :, :2]
        keep = proposals.valid[image] & (score > 0.05) & (sides >= model.config.postprocess.min_box_size).all(dim=1)
        label, anchor = proposals.labels[image][keep], proposals.anchors[image][keep]
        torch.testing.assert_close(logits[image, anchor, label].sigmoid(), score[keep])
        order = batched_nms(proposals.boxes[image][keep], score[keep], label, 0.5)[:100]
        detections = stages.detections
        rows = detections.valid[image]
        assert rows.any()
        torch.testing.assert_close(detections.boxes[image][rows], proposals.boxes[image][keep][order])
        torch.testing.assert_close(detections.scores[image][rows], score[keep][order])
        assert torch.equal(detections.labels[image][rows], label[order])


def test_candidates_are_the_best_pairs_of_every_level(make_batch: Callable[..., Batch]) -> None:
    """Section 4.1, inference: decoded boxes of the top-scoring predictions of each level."""
    model = net(rpn_top_test=20).eval()
    batch = make_batch(*SIZES)
    with torch.no_grad():
        stages = model.stages(batch)
    proposals, predictions = stages.proposals, stages.anchors
    starts = [0, *accumulate(level.shape[1] for level in predictions.logits)]
    for image, (height, width) in enumerate(SIZES):
        expected = torch.cat(
            [level[image].topk(20).indices + s for level, s in zip(predictions.logits, starts, strict=False)]
        )
        anchor = proposals.anchors[image][proposals.valid[image]]
        chosen = anchor * K + proposals.labels[image][proposals.valid[image]]
        assert sorted(chosen.tolist()) == sorted(expected.tolist())
        moves = torch.cat(predictions.deltas, 1)[image, anchor]
        boxes = BoxCoder().decode(moves, torch.cat(predictions.anchors)[anchor])
        clipped = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        torch.testing.assert_close(proposals.boxes[image][proposals.valid[image]], clipped)


@pytest.mark.parametrize("field", [{"box_loss": "giou"}, {"class_weights": (1.0,) * K}, {"region_sampling": "ohem"}])
def test_fields_of_two_stages_are_refused(field: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"no field {next(iter(field))!r}"):
        make_model("retinanet_tiny_fpn", K, **field)


def test_more_candidates_than_the_limit_are_flagged(make_batch: Callable[..., Batch]) -> None:
    batch = make_batch(*SIZES)
    for candidates, overflows in ((10, True), (5000, False)):
        model = net(score_threshold=0.0, nms=1.0, max_det=100, candidates=candidates).eval()
        with torch.no_grad():
            detections = model(batch)
        assert bool(detections.overflow.all()) == overflows
        assert int(detections.valid.sum(dim=1).max()) == min(candidates, 100)


def test_it_takes_no_proposals(make_batch: Callable[..., Batch]) -> None:
    batch = make_batch(*SIZES)
    with pytest.raises(UsageError, match="one stage"):
        net().eval()(replace(batch, proposals=given(batch, 5)))
