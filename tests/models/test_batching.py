"""What an image gives must not depend on the others in its batch."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from detectors import make_model
from torch import Tensor, nn

from twostage.data.batch import Batch, Targets, stack_images, stack_targets
from twostage.models.heads.postprocess import BatchDetections
from twostage.models.two_stage import Samplers, TwoStage

SMALL = {
    "rpn_top_train": 80,
    "rpn_top_test": 60,
    "rpn_keep_train": 40,
    "rpn_keep_test": 30,
    "region_batch": 16,
    "score_threshold": 0.0,
    "rpn_min_size": 1.0,
    "max_det": 20,
}


def lively(name: str, **fields) -> TwoStage:
    """Weights with which scores and boxes differ from each other."""
    model = make_model(name, 3, **{**SMALL, **fields}).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in [*model.rpn.modules(), *model.head.modules()]:
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(std=(2 / module.weight[0].numel()) ** 0.5, generator=g)
    return model


def detections(model: TwoStage, batch: Batch, image: int) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        found: BatchDetections = model(batch)
    keep = found.valid[image]
    return found.boxes[image][keep], found.scores[image][keep], found.labels[image][keep]


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=g) for size in sizes]


@pytest.mark.parametrize("name", ["faster_rcnn_tiny_fpn", "faster_rcnn_zf"])
def test_an_images_detections_do_not_depend_on_its_neighbours(name: str) -> None:
    """On one canvas: whatever the others are, and in whatever order."""
    fields = {"head_channels": 32} if "zf" in name else {}
    model = lively(name, **fields)
    a, b, c = images((64, 96), (64, 96), (64, 96))
    alone = detections(model, stack_images([a]), 0)
    assert len(alone[0]) > 5
    for batch, place in (([a, b], 0), ([b, a], 1), ([c, b, a], 2)):
        together = detections(model, stack_images(batch), place)
        for mine, other in zip(together, alone, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def test_nor_on_what_stands_beside_it_on_a_larger_canvas() -> None:
    """The canvas itself does change an image's last rows and columns: convolutions carry them over its edge and back.

    So do torchvision's and detectron2's. What must not matter is who made the canvas so large.
    """
    model = lively("faster_rcnn_tiny_fpn", anchors_in_padding=False)
    small, large = images((64, 96), (128, 160))
    canvas = stack_images([large, small])
    alone = detections(model, Batch(canvas.images[1:], canvas.sizes[1:]), 0)
    together = detections(model, canvas, 1)
    assert len(alone[0]) > 5
    for mine, other in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def test_padding_is_the_mean_colour_whatever_stands_there() -> None:
    model = lively("faster_rcnn_tiny_fpn")
    (small,) = images((50, 70))
    batch = stack_images([small], divisor=64)
    noisy = batch.images.clone()
    noisy[:, :, 50:], noisy[:, :, :, 70:] = 7.0, -3.0
    dirty = Batch(noisy, batch.sizes)
    for mine, other in zip(detections(model, dirty, 0), detections(model, batch, 0), strict=True):
        assert torch.equal(mine, other)


def test_channels_last_or_not_makes_no_difference() -> None:
    model = lively("faster_rcnn_tiny_fpn")
    batch = stack_images(images((64, 96), (50, 60)))
    plain = Batch(batch.images.contiguous(), batch.sizes)
    for image in range(2):
        expected = detections(model, batch, image)
        for mine, other in zip(detections(model, plain, image), expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)
    model = model.to(memory_format=torch.channels_last)
    for mine, other in zip(detections(model, batch, 1), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def test_the_order_of_images_does_not_change_the_losses(make_targets: Callable[..., Targets]) -> None:
    """Samples follow an image's seed, and every mean is over the whole batch."""
    sizes = [(64, 96), (64, 96)]
    model = lively("faster_rcnn_tiny_fpn", norm="frozen").train()
    pictures, targets = images(*sizes), make_targets(sizes, [3, 5])
    losses = model(stack_images(pictures), targets)
    turned = Targets(targets.boxes.flip(0), targets.labels.flip(0), targets.valid.flip(0), targets.seeds.flip(0))
    again = model(stack_images(pictures[::-1]), turned)
    for name, loss in losses.items():
        torch.testing.assert_close(again[name], loss, rtol=1e-4, atol=1e-5)


def test_padded_ground_truth_does_not_change_the_losses(make_targets: Callable[..., Targets]) -> None:
    sizes = [(64, 96)]
    model = lively("faster_rcnn_tiny_fpn", norm="frozen").train()
    batch, targets = stack_images(images(*sizes)), make_targets(sizes, [3])
    more = Targets(
        boxes=torch.cat([targets.boxes, torch.rand(1, 40, 4) * 60], dim=1),
        labels=torch.cat([targets.labels, torch.full((1, 40), 2)], dim=1),
        valid=torch.cat([targets.valid, torch.zeros(1, 40, dtype=torch.bool)], dim=1),
        seeds=targets.seeds,
    )
    # The regions' random draw is over as many boxes as there are; a fixed choice makes the two comparable.
    first = Samplers(None, lambda matches, seeds: model.head.sampler(matches[:, :43], seeds))
    losses, again = model(batch, targets, first), model(batch, more, first)
    for name, loss in losses.items():
        torch.testing.assert_close(again[name], loss)


def test_the_same_seed_gives_the_same_losses_and_another_others(make_targets: Callable[..., Targets]) -> None:
    sizes = [(64, 96), (64, 96)]
    model = lively("faster_rcnn_tiny_fpn", norm="frozen", rpn_batch=16, region_batch=4).train()
    batch, targets = stack_images(images(*sizes)), make_targets(sizes, [3, 5])
    losses = [model(batch, targets)["rpn_class"] for _ in range(2)]
    assert losses[0] == losses[1]
    reseeded = Targets(targets.boxes, targets.labels, targets.valid, targets.seeds + 1)
    assert model(batch, reseeded)["rpn_class"] != losses[0]


def test_stages_agree_with_forward() -> None:
    """The trace of a prediction is the prediction."""
    model = lively("faster_rcnn_tiny_fpn")
    batch = stack_images(images((64, 96)))
    with torch.no_grad():
        stages, found = model.stages(batch), model(batch)
    assert stages.detections.masks is None
    for mine, other in zip(stages.detections[:-1], found[:-1], strict=True):
        assert torch.equal(mine, other)
    keep = found.valid[0]
    parents = found.proposals[0][keep]
    assert stages.proposals.valid[0][parents].all()
    anchors = torch.cat(stages.anchors.anchors)
    assert stages.proposals.anchors[0].max() < len(anchors)


def test_other_thresholds_of_the_last_step_change_no_other_stage() -> None:
    model = lively("faster_rcnn_tiny_fpn")
    batch = stack_images(images((64, 96)))
    with torch.no_grad():
        stages = model.stages(batch)
        other = model.stages(batch, replace(model.config.postprocess, max_det=3, score_threshold=0.3))
    assert torch.equal(stages.predictions[0].logits, other.predictions[0].logits)
    assert other.found.boxes.shape == (1, 3, 4)
    assert other.found.scores[other.found.valid].gt(0.3).all()


def test_box_lambda_weighs_the_box_loss_alone() -> None:
    """Fast R-CNN, equation 1."""
    batch = stack_images(images((64, 96)))
    truth = stack_targets([torch.tensor([[8.0, 8, 40, 40]])], [torch.tensor([1])], [0])
    losses = []
    for weight in (1.0, 2.5):
        torch.manual_seed(0)
        losses.append(lively("faster_rcnn_tiny_fpn", box_lambda=weight).train()(batch, truth))
    assert losses[0]["box"] > 0
    expected = losses[0] | {"box": 2.5 * losses[0]["box"]}
    for name, value in expected.items():
        torch.testing.assert_close(losses[1][name], value)


def test_shares_of_a_batch_average_to_its_losses(make_targets: Callable[..., Targets]) -> None:
    """Two processes divide by the mean of both's numbers of samples: here one has none but in one image."""
    sizes = [(64, 96)] * 4
    model = lively("faster_rcnn_tiny_fpn", norm="frozen", region_background_iou=(0.1, 0.5)).train()
    batch, targets = stack_images(images(*sizes)), make_targets(sizes, [0, 1, 5, 2])
    whole = model(batch, targets)

    def half(first: int, mean: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        own = slice(first, first + 2)
        fields = (targets.boxes, targets.labels, targets.valid, targets.seeds)
        return model(Batch(batch.images[own], batch.sizes[own]), Targets(*(value[own] for value in fields)), mean=mean)

    counts: list[list[Tensor]] = [[], []]
    for seen, first in zip(counts, (0, 2), strict=True):
        half(first, lambda count, seen=seen: (seen.append(count), count)[1])
    assert counts[0] != counts[1]
    means = [torch.stack(both).mean() for both in zip(*counts, strict=True)]
    halves = []
    for first in (0, 2):
        left = iter(means)
        halves.append(half(first, lambda _, left=left: next(left)))
    for name, loss in whole.items():
        mean = torch.stack([one[name] for one in halves]).mean()
        torch.testing.assert_close(mean, loss, rtol=1e-5, atol=1e-6)
        assert abs(halves[0][name] - loss) > 1e-3
