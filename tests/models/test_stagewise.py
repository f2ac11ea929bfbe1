"""Warped windows, pyramids, and detections from hyperplanes: R-CNN and SPPnet."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectors import make_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import nms as torchvisions_nms

from twostage.data.batch import stack_proposals
from twostage.experiments.small import rcnn_model, sppnet_model
from twostage.models.heads.bodies import TwoMLPHead
from twostage.models.heads.box import BoxHead
from twostage.models.rcnn import WarpedRegions, warp
from twostage.models.regions.pooling import RegionFeatures
from twostage.models.sppnet import PyramidRegions
from twostage.models.stagewise import SVMHead
from twostage.models.two_stage import TwoStage
from twostage.ops.deltas import decode
from twostage.ops.spp import spp
from twostage.training.stagewise.fit import batch_of, vectors

BOXES = torch.tensor([[10.0, 12, 40, 60], [0, 0, 90, 70], [50, 30, 58, 36], [70, 50, 90, 70]])


@pytest.fixture(autouse=True)
def _no_gradients(no_gradients: None) -> None:
    """No test here trains."""


def random_image(height: int = 70, width: int = 90) -> Tensor:
    return torch.rand(3, height, width)


def head_of(model: TwoStage) -> SVMHead:
    assert isinstance(model.head, SVMHead)
    return model.head


def pyramid_of(model: TwoStage) -> PyramidRegions:
    regions = head_of(model).regions
    assert isinstance(regions, PyramidRegions)
    return regions


def vectors_of_normalised(model: TwoStage, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """pool5 and fc7 of regions of a normalised image."""
    pool5, fc7 = head_of(model).vectors(RegionFeatures(model.backbone(image[None])), boxes[None])
    return pool5[0], fc7[0]


def detect(model: TwoStage, image: Tensor, boxes: Tensor, padded: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, scores, labels and proposals of the detections on an image; proposals are padded to so many."""
    given = stack_proposals([torch.cat([boxes, torch.ones(len(boxes), 1)], dim=1)], padded)
    detections = model.stages(replace(batch_of(model, image), proposals=given)).detections
    assert not detections.overflow.any()
    boxes, scores, labels, proposals, valid = (x[0] for x in detections[:5])
    return boxes[valid], scores[valid], labels[valid], proposals[valid]


def test_a_window_without_context_is_the_box_resized() -> None:
    """Pillow's bilinear filter is the same where nothing shrinks."""
    image = random_image()
    windows = warp(image, torch.tensor([[10.0, 20, 30, 30]]), size=40, context=0)
    part = [Image.fromarray(channel[20:30, 10:30].numpy(), "F").resize((40, 40), Image.BILINEAR) for channel in image]
    inside = slice(3, -3)  # at the border Pillow repeats pixels, and the window has those around the box
    np.testing.assert_allclose(
        windows[0][:, inside, inside], np.stack([np.asarray(p) for p in part])[:, inside, inside], atol=1e-5
    )


def test_context_is_counted_on_the_warped_window() -> None:
    """R-CNN, appendix A: 16 pixels of the network's input around the box at any size of the box."""
    image = torch.zeros(1, 100, 100)
    image[:, 20:60, 30:50] = 1
    window = warp(image, torch.tensor([[30.0, 20, 50, 60]]), size=64, context=16)[0, 0]
    assert window[17:47, 17:47].min() == 1
    assert window[:14].max() == 0
    assert window[:, :14].max() == 0


def test_outside_the_image_is_the_mean_colour() -> None:
    image = torch.ones(1, 20, 20)
    window = warp(image, torch.tensor([[0.0, 0, 10, 20]]), size=40, context=10)[0, 0]
    assert window[:, :8].max() == 0
    assert window[:8].max() == 0
    assert window[12:28, 12:40].min() == 1


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_windows_do_not_depend_on_the_other_boxes(seed: int, count: int) -> None:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * 60
    boxes = torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=g) * 30], dim=1)
    image = torch.rand(3, 70, 90, generator=g)
    together = warp(image, boxes, size=16, context=2)
    for row, box in zip(together, boxes, strict=True):
        torch.testing.assert_close(row, warp(image, box[None], size=16, context=2)[0])


def test_pool5_is_that_of_each_window_and_fc6_reads_it_in_the_order_of_fast_rcnn() -> None:
    model = rcnn_model(3).eval()
    head, image = head_of(model), random_image()
    assert isinstance(head.regions, WarpedRegions)
    pool5, fc7 = vectors_of_normalised(model, image, BOXES)
    for row, box in zip(pool5, BOXES, strict=True):
        (alone,) = head.regions.backbone(warp(image, box[None], size=96, context=7))
        torch.testing.assert_close(row, alone[0].permute(1, 2, 0).flatten(), atol=1e-5, rtol=1e-4)
    fast = make_model("fast_rcnn_tiny", 3, **{"roi.size": 6}).eval()
    assert isinstance(fast, TwoStage)
    assert isinstance(fast.head, BoxHead)
    body = fast.head.body
    assert isinstance(body, TwoMLPHead)
    assert body.fc6.weight.shape == head.body.fc6.weight.shape
    body.fc6.load_state_dict(head.body.fc6.state_dict())
    body.fc7.load_state_dict(head.body.fc7.state_dict())
    regions = pool5.unflatten(1, (6, 6, 128)).permute(0, 3, 1, 2)[None]
    torch.testing.assert_close(body(regions)[0], fc7)
    assert vectors_of_normalised(model, image, BOXES[:0])[0].shape == (0, 128 * 36)


def test_sppnet_starts_with_the_function_of_the_rcnn_on_the_same_cells() -> None:
    """The columns of fc6 for the coarser levels are 0 at first."""
    begun = rcnn_model(3).eval()
    model = sppnet_model(begun, 96, five=False).eval()
    image = torch.rand(3, 96, 96)
    _, features = model.backbone(image[None])
    whole = torch.tensor([[0.0, 0, 96, 96]])  # of 6 x 6 cells it covers all but the first row and column
    pyramid, fc7 = vectors_of_normalised(model, image, whole)
    torch.testing.assert_close(pyramid, spp(features, whole[None])[0])
    finest = pyramid[:, : 128 * 36].unflatten(1, (6, 6, 128)).permute(0, 3, 1, 2)[None]
    torch.testing.assert_close(fc7, head_of(begun).body(finest)[0], atol=1e-5, rtol=1e-4)


def test_of_five_scales_the_one_nearest_to_a_region_is_chosen() -> None:
    """SPPnet, section 4.1: the scaled region has about 224 x 224 pixels."""
    regions = pyramid_of(sppnet_model(rcnn_model(3), 688, five=True))
    sizes = regions.config.sizes
    assert sizes == (480, 576, 688, 864, 1200)
    sides = torch.tensor([100.0, 224.0, 300.0, 400.0])
    boxes = torch.stack([torch.zeros(4), torch.zeros(4), sides, sides], dim=1)
    chosen = [sizes[k] for k in regions.choose(boxes, 688)]
    for side, size in zip(sides.tolist(), chosen, strict=True):
        nearest = min(sizes, key=lambda s, side=side: abs(side * s / 688 - 224))
        assert size == nearest
    assert chosen[1] == 688


def test_with_several_scales_each_region_is_pooled_from_its_own_map() -> None:
    model = sppnet_model(rcnn_model(3), 96, five=True).eval()
    regions, image = pyramid_of(model), random_image(96, 128)
    boxes = torch.tensor([[5.0, 5, 20, 20], [0, 0, 120, 90], [30, 20, 61, 51]])
    pool5, _ = vectors_of_normalised(model, image, boxes)
    _, *maps = model.backbone(image[None])
    chosen = regions.choose(boxes, 96)
    assert len(set(chosen.tolist())) > 1
    for row, box, k in zip(pool5, boxes, chosen.tolist(), strict=True):
        alone = spp(maps[k], box[None, None] * regions.config.sizes[k] / 96)[0, 0]
        torch.testing.assert_close(row, alone)


@pytest.mark.parametrize("kind", ["rcnn", "sppnet"])
@pytest.mark.parametrize("scores", ["svm", "softmax"])
def test_detections_are_those_of_a_loop_over_the_classes(kind: str, scores: str) -> None:
    torch.manual_seed(0)
    model = rcnn_model(3)
    if kind == "sppnet":
        model = sppnet_model(model, 96, five=False)
    model.eval()
    head = head_of(model)
    head.scores = "svm" if scores == "svm" else "softmax"
    # The threshold of the SVMs is given as the sigmoid of the distance from the hyperplane.
    floor = -0.2 if scores == "svm" else 0.2
    threshold = float(torch.tensor(floor).sigmoid()) if scores == "svm" else floor
    assert model.config.postprocess.nms == 0.3
    assert model.config.postprocess.max_det == 100
    model.config = replace(model.config, postprocess=replace(model.config.postprocess, score_threshold=threshold))
    nn.init.normal_(head.svms.weight, std=1.0)
    nn.init.normal_(head.ridges.weight, std=0.01)
    image = (random_image() * 255).byte()
    corner = torch.rand(40, 2) * torch.tensor([60.0, 40])
    boxes = torch.cat([corner, corner + 10 + torch.rand(40, 2) * 15], dim=1)

    found, found_scores, labels, proposals = detect(model, image, boxes, 50)
    pool5, fc7 = vectors(model, image, boxes)
    score = head.svms(fc7) if scores == "svm" else head.classes(fc7).softmax(1)[:, 1:]
    moved = decode(head.ridges(pool5).view(-1, 3, 4), boxes[:, None])
    moved = moved.clamp(min=0).minimum(torch.tensor([90.0, 70, 90, 70]))
    expected = []
    for k in range(3):
        above = score[:, k] > floor
        above &= (moved[:, k, 2:] - moved[:, k, :2] >= 1).all(dim=1)
        rows = above.nonzero()[:, 0]
        left = rows[torchvisions_nms(moved[rows, k], score[rows, k], 0.3)].tolist()
        expected += [(-float(score[row, k]), row, k) for row in left]
    expected.sort()
    assert expected
    assert [(int(k), int(row)) for k, row in zip(labels, proposals, strict=True)] == [
        (k, row) for _, row, k in expected[:100]
    ]
    own = score[proposals, labels]
    torch.testing.assert_close(found_scores, own.sigmoid() if scores == "svm" else own, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, moved[proposals, labels], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", ["rcnn", "sppnet"])
@pytest.mark.parametrize("padded", [1, 50])
def test_without_proposals_there_are_no_detections(kind: str, padded: int) -> None:
    model = rcnn_model(3)
    if kind == "sppnet":
        model = sppnet_model(model, 96, five=False)
    image = (random_image() * 255).byte()
    assert detect(model.eval(), image, BOXES[:0], padded)[0].shape == (0, 4)
