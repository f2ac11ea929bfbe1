"""Mask R-CNN's head: torchvision's layers, the mask of the region's class only, the loss of positives only."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from detectors import make_model
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from twostage.data.batch import Batch, Targets
from twostage.data.coverage import Coverage
from twostage.models.filled import filled
from twostage.models.heads.mask import BoxAndMaskHead, MaskConfig, MaskHead
from twostage.models.heads.postprocess import BatchDetections
from twostage.models.regions.pooling import RegionFeatures
from twostage.models.targets.masks import mask_targets
from twostage.ops.boxes import iou

C, K, M = 12, 4, 14


class Pooled(torch.nn.Module):
    """In place of the pooling: fixed features, of as many boxes as are given; `counts` are these numbers."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features = features
        self.counts: list[int] = []

    def forward(self, maps: object, boxes: torch.Tensor) -> torch.Tensor:
        self.counts.append(boxes.shape[1])
        return self.features[:, : boxes.shape[1]]


@pytest.fixture
def features() -> torch.Tensor:
    return torch.rand(2, 5, C, M, M, generator=torch.Generator().manual_seed(0))


def make_head(features: torch.Tensor) -> MaskHead:
    return MaskHead(MaskConfig(channels=C), Pooled(features), C, K, region_batch=512, positive_fraction=0.25)


@pytest.fixture
def head(features: torch.Tensor) -> MaskHead:
    torch.manual_seed(0)
    made = make_head(features)
    torch.nn.init.normal_(made.classes.weight)
    torch.nn.init.normal_(made.up.bias)
    return made


def test_logits_are_torchvisions_of_the_own_class(head: MaskHead, features: torch.Tensor) -> None:
    convs, last = MaskRCNNHeads(C, [C] * 4, 1), MaskRCNNPredictor(C, C, K + 1)
    for mine, theirs in zip(head.convs, convs, strict=True):
        theirs[0].load_state_dict(mine[0].state_dict())
    last.conv5_mask.weight.data = head.up.weight.detach().view(2, 2, C, C).permute(3, 2, 0, 1)
    last.conv5_mask.bias.data = head.up.bias.detach()
    last.mask_fcn_logits.weight.data[1:, :, 0, 0] = head.classes.weight.detach()
    last.mask_fcn_logits.bias.data[1:] = head.classes.bias.detach()
    labels = torch.tensor([[0, 1, 2, 3, 0], [3, 3, 1, 0, 2]])
    ours = head(RegionFeatures([]), torch.zeros(2, 5, 4), labels)
    every = last(convs(features.flatten(0, 1)))
    expected = every[torch.arange(10), labels.flatten() + 1].view(2, 5, 2 * M, 2 * M)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_c4s_masks_are_torchvisions_predictor_on_stage_5() -> None:
    """Mask R-CNN, Figure 4, left: from 2048 channels to 256, and from those to the classes."""
    with torch.device("meta"):
        mask, theirs = make_model("mask_rcnn_resnet50_c4", K).head.mask, MaskRCNNPredictor(2048, 256, K)
    assert mask.up.weight.shape[1:] == theirs.conv5_mask.weight.shape[1::-1] == (256, 2048)
    assert mask.classes.weight.shape == theirs.mask_fcn_logits.weight.shape[:2]


def test_initial_probabilities_are_a_half() -> None:
    torch.manual_seed(0)
    made = make_head(torch.rand(1, 2, C, M, M))
    logits = made(RegionFeatures([]), torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64))
    assert logits.abs().max() < 0.1


def test_padded_columns_are_not_computed_on_the_cpu(head: MaskHead) -> None:
    valid = torch.tensor([[True, True, False, False, False], [True, False, False, False, False]])
    assert filled(valid) == 2
    assert filled(valid & False) == 0
    assert filled(valid.to("meta")) == 5
    detections = BatchDetections(
        torch.zeros(2, 5, 4), torch.ones(2, 5), torch.zeros(2, 5).long(), torch.zeros(2, 5).long(), valid, valid.any(1)
    )
    masks = head.predict_masks(detections, partial(head, RegionFeatures([]))).masks
    assert head.regions.counts == [2]
    assert masks.shape == (2, 5, 2 * M, 2 * M)
    assert not masks[~valid].any()
    assert ((masks[valid] > 0) & (masks[valid] < 1)).all()
    empty = head.predict_masks(detections._replace(valid=valid & False), partial(head, RegionFeatures([]))).masks
    assert empty.shape == masks.shape


def with_masks(targets: Targets) -> Targets:
    """Each object's mask is the left half of its box."""
    cells = torch.zeros(*targets.labels.shape, 112, 112, dtype=torch.uint8)
    cells[..., :56] = 255
    return replace(targets, masks=Coverage(targets.boxes.clone(), cells))


SIZES = [(64, 96), (60, 80)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn", "hybrid_task_cascade"])
def test_a_small_model_learns_half_boxes(
    kind: str, make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    """It overfits two images in a few steps: its masks are then the left halves of the boxes."""
    torch.manual_seed(0)
    small = {"rpn_keep_train": 20, "region_batch": 16, "mask_channels": 32, "mask_convs": 2}
    model = make_model(f"{kind}_tiny_fpn", 3, **small).train()
    model.requires_grad_(False).head.requires_grad_()
    batch, targets = make_batch(*SIZES), with_masks(make_targets(SIZES, [3, 1]))
    optimizer = torch.optim.Adam(model.head.parameters(), lr=3e-3)
    first = None
    for _ in range(20):
        losses = model(batch, targets)
        loss = sum(value for name, value in losses.items() if name.startswith("mask"))
        first = first or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * first
    model.eval()
    boxes, labels = targets.boxes[:1, :1], targets.labels[:1, :1]
    detections = BatchDetections(
        boxes,
        torch.ones(1, 1),
        labels,
        labels * 0,
        torch.ones(1, 1, dtype=torch.bool),
        torch.zeros(1, dtype=torch.bool),
    )
    with torch.no_grad():
        features = model.head.fuse_features(model.features(Batch(batch.images[:1], batch.sizes[:1])))
        (mask,) = model.head.predict_masks(features, detections).masks[0]
    assert mask[4:-4, 2:11].mean() > 0.7
    assert mask[4:-4, 17:-2].mean() < 0.3


@pytest.mark.parametrize("most", [None, 2])
def test_the_loss_is_that_of_positives_and_their_own_class(
    most: int | None, make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    torch.manual_seed(0)
    model = make_model("mask_rcnn_tiny_fpn", 3, mask_lambda=3.0, mask_regions=most).train()
    batch, targets = make_batch(*SIZES), with_masks(make_targets(SIZES, [3, 1]))
    head: BoxAndMaskHead = model.head
    seen = {}
    head.mask.register_forward_hook(lambda _m, inputs, output: seen.update(labels=inputs[2], logits=output))
    outputs = {}
    own = head.box.compute_losses
    head.box.compute_losses = lambda *a, **k: outputs.setdefault("it", own(*a, **k))  # type: ignore[method-assign]
    loss = model(batch, targets)["mask"]
    goal = outputs["it"].targets
    count = seen["logits"].shape[1]
    positive = goal.positive[:, :count]
    whole = int(goal.positive.sum(dim=1).max())
    assert count == (most or whole) <= whole
    assert torch.equal(seen["labels"][positive], goal.classes[:, :count][positive] - 1)
    expected = mask_targets(goal.boxes[:, :count], goal.truth[:, :count], targets.masks, 28)
    each = binary_cross_entropy_with_logits(seen["logits"], expected, reduction="none")[positive]
    torch.testing.assert_close(loss, 3 * each.mean())


def test_an_empty_mask_is_not_learned(make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]) -> None:
    """Its object exists, so that a target without any cell would be wrong."""
    torch.manual_seed(0)
    model = make_model("mask_rcnn_tiny_fpn", 3, norm="frozen").train()
    batch, targets = make_batch(*SIZES), with_masks(make_targets(SIZES, [3, 1]))
    other = targets.masks.cells.clone()
    other[0, 1] = 0
    frames = targets.masks.frames.clone()
    frames[0, 1] = 0
    emptied = replace(targets, masks=Coverage(frames, other))
    anything = replace(targets, masks=Coverage(frames, targets.masks.cells))
    assert torch.equal(model(batch, emptied)["mask"], model(batch, anything)["mask"])
    assert not torch.equal(model(batch, emptied)["mask"], model(batch, targets)["mask"])
    nothing = replace(targets, masks=targets.masks.each(torch.zeros_like))
    assert float(model(batch, nothing)["mask"].detach()) == 0


def test_objects_without_masks_take_no_place_from_others(
    make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    """Of three objects one has a mask; the one region per image is that object's, whichever was drawn first."""
    torch.manual_seed(0)
    model = make_model("mask_rcnn_tiny_fpn", 3, mask_regions=1).train()
    batch, targets = make_batch(*SIZES), with_masks(make_targets(SIZES, [3, 1]))
    frames = targets.masks.frames.clone()
    frames[0, :2] = 0
    frames[1] = 0
    seen = {}
    model.head.mask.register_forward_hook(lambda _m, inputs, _output: seen.update(boxes=inputs[1]))
    for seed in range(5):
        drawn = replace(targets, seeds=targets.seeds + seed, masks=targets.masks._replace(frames=frames))
        assert float(model(batch, drawn)["mask"].detach()) > 0
        assert float(iou(seen["boxes"][0], targets.boxes[0, 2:3])) >= 0.5


def test_without_positives_the_loss_is_zero_and_targets_without_masks_are_an_error(
    make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    model = make_model("mask_rcnn_tiny_fpn", 3).train()
    nothing = with_masks(make_targets(SIZES, [0, 0]))
    assert float(model(make_batch(*SIZES), nothing)["mask"].detach()) == 0
    with pytest.raises(ValueError, match="needs targets with masks"):
        model(make_batch(*SIZES), make_targets(SIZES, [2, 1]))
