import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import nms as torchvision_nms

from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig, best_boxes, probabilities
from twostage.models.proposals.rpn import Proposals
from twostage.models.zoo import named
from twostage.ops.boxes import iou
from twostage.ops.deltas import BoxCoder

N, P, K = 2, 60, 6
SIZES = torch.tensor([[200, 300], [150, 120]])
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


def detect(
    logits: Tensor, deltas: Tensor, proposals: Proposals, config: PostprocessConfig, coder: BoxCoder = CODER
) -> BatchDetections:
    return best_boxes(probabilities(logits, deltas, proposals, coder, config), SIZES, config)


def outputs(seed: int = 0, *, agnostic: bool = False, scale: float = 3.0) -> tuple[Tensor, Tensor, Proposals]:
    """A head's outputs for clustered proposals; the last ten of the second image are padding."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.rand(N, 6, 2, generator=g).repeat_interleave(P // 6, dim=1) * 120
    corner = centre + torch.randn(N, P, 2, generator=g) * 4
    boxes = torch.cat([corner, corner + 20 + torch.rand(N, P, 2, generator=g) * 30], dim=2).clamp(min=0)
    logits = torch.randn(N, P, K + 1, generator=g) * scale
    deltas = torch.randn(N, P, 1 if agnostic else K, 4, generator=g)
    valid = torch.arange(P).expand(N, -1) < torch.tensor([[P], [P - 10]])
    order = torch.arange(P).expand(N, -1)
    return logits, deltas, Proposals(boxes, -order.float(), order, valid, torch.zeros(len(boxes), dtype=torch.bool))


def torchvisions(
    logits: Tensor, deltas: Tensor, proposals: Proposals, config: PostprocessConfig, coder: BoxCoder
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Boxes, scores and labels (from 0) of each image."""
    heads = RoIHeads(
        *[nn.Identity()] * 3,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=1,
        positive_fraction=0.5,
        bbox_reg_weights=coder.weights,
        score_thresh=config.score_threshold,
        nms_thresh=config.nms,
        detections_per_img=config.max_det,
    )
    with_background = torch.cat([torch.zeros(N, P, 1, 4), deltas.expand(N, P, K, 4)], dim=2)
    valid = proposals.valid
    boxes, scores, labels = heads.postprocess_detections(
        logits[valid],
        with_background[valid].flatten(1),
        [b[v] for b, v in zip(proposals.boxes, valid, strict=True)],
        [tuple(size) for size in SIZES.tolist()],
    )
    return [(b, s, c - 1) for b, s, c in zip(boxes, scores, labels, strict=True)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"nms": 0.3, "score_threshold": 0.3},
        {"max_det": 7},
        {"score_threshold": 0.0, "max_det": 300},
        {"score_threshold": 0.9},
        {"box_delta_weights": (1, 1, 1, 1)},
        {"min_box_size": 1e-2},
    ],
    ids=str,
)
@pytest.mark.parametrize("agnostic", [False, True])
def test_equal_to_torchvision(changes: dict, agnostic: bool) -> None:
    weights = changes.get("box_delta_weights", CODER.weights)
    coder, config = (
        BoxCoder(weights),
        PostprocessConfig(**{k: v for k, v in changes.items() if k != "box_delta_weights"}),
    )
    detections = detect(*outputs(agnostic=agnostic), config, coder)
    assert not detections.overflow.any()
    for i, (boxes, scores, labels) in enumerate(torchvisions(*outputs(agnostic=agnostic), config, coder)):
        valid = detections.valid[i]
        assert len(boxes) > 0
        torch.testing.assert_close(detections.boxes[i][valid], boxes, rtol=0, atol=1e-4)
        torch.testing.assert_close(detections.scores[i][valid], scores, rtol=1e-5, atol=1e-6)
        assert torch.equal(detections.labels[i][valid], labels)


def test_shapes_are_fixed_and_padding_is_last() -> None:
    config = PostprocessConfig(max_det=250, score_threshold=0.9)
    detections = detect(*outputs(), config)
    assert detections.boxes.shape == (N, 250, 4)
    assert all(
        x.shape == (N, 250) for x in (detections.scores, detections.labels, detections.proposals, detections.valid)
    )
    assert detections.valid.long().diff(dim=1).le(0).all()
    assert detections.scores[~detections.valid].eq(0).all()
    assert detections.scores[detections.valid].gt(0.9).all()


def test_no_detections() -> None:
    logits, deltas, proposals = outputs()
    detections = detect(logits * 0, deltas, proposals, PostprocessConfig(score_threshold=0.5))
    assert not detections.valid.any()
    none = proposals._replace(valid=torch.zeros_like(proposals.valid))
    assert not detect(logits, deltas, none, PostprocessConfig()).valid.any()


def test_every_detection_has_the_index_of_its_proposal() -> None:
    logits, deltas, proposals = outputs()
    detections = detect(logits, deltas, proposals, PostprocessConfig())
    scores = logits.softmax(dim=2)
    image = torch.arange(N)[:, None].expand_as(detections.labels)
    again = scores[image, detections.proposals, detections.labels + 1]
    torch.testing.assert_close(again[detections.valid], detections.scores[detections.valid])
    assert proposals.valid.gather(1, detections.proposals)[detections.valid].all()


def test_across_classes_no_two_boxes_of_any_class_overlap() -> None:
    config = PostprocessConfig(nms_across_classes=True, nms=0.4)
    detections = detect(*outputs(), config)
    plain = detect(*outputs(), PostprocessConfig(nms=0.4))
    for i in range(N):
        boxes, scores = detections.boxes[i][detections.valid[i]], detections.scores[i][detections.valid[i]]
        assert iou(boxes, boxes).triu(1).max() <= 0.4
        assert len(detections.labels[i][detections.valid[i]].unique()) > 1
        # torchvision's, on the candidates of all classes together.
        candidates = detect(*outputs(), PostprocessConfig(nms=1.0, max_det=N * P * K))
        some = candidates.valid[i]
        kept = torchvision_nms(candidates.boxes[i][some], candidates.scores[i][some], 0.4)
        torch.testing.assert_close(scores, candidates.scores[i][some][kept][: len(scores)])
    assert plain.valid.sum() > detections.valid.sum()


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms_lowers_scores_instead_of_dropping_boxes(method: str) -> None:
    hard = detect(*outputs(), PostprocessConfig(nms=0.3, max_det=300))
    soft = detect(*outputs(), PostprocessConfig(nms=0.3, soft_nms=method, max_det=300))
    logits, _, _ = outputs()
    image = torch.arange(N)[:, None].expand_as(soft.labels)
    before = logits.softmax(dim=2)[image, soft.proposals, soft.labels + 1]
    assert soft.valid.sum() > hard.valid.sum()
    assert (soft.scores <= before + 1e-6)[soft.valid].all()
    assert (soft.scores < before - 1e-3)[soft.valid].any()
    assert soft.scores[soft.valid].min() >= 0.05
    assert soft.scores.diff(dim=1).le(0).all()


def test_too_few_candidates_are_flagged() -> None:
    few = detect(*outputs(), PostprocessConfig(candidates=5))
    assert few.overflow.all()
    assert few.valid.sum(dim=1).le(5).all()
    best = detect(*outputs(), PostprocessConfig())
    torch.testing.assert_close(few.scores[:, 0], best.scores[:, 0])


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.05, 0.07, 0.2, 0.34, 0.5, 0.7])
def test_by_default_no_candidate_is_left_out(threshold: float) -> None:
    """For scores spread over as many classes as stay above the threshold, and for random ones."""
    logits, deltas, proposals = outputs(scale=0.5)
    classes = 40
    most = classes if threshold == 0 else min(classes, int(1 / threshold))
    even = torch.full((N, P, classes + 1), -30.0)
    even[..., 1 : 1 + most] = 0
    config = PostprocessConfig(score_threshold=threshold)
    wide = deltas.new_zeros(N, P, classes, 4)
    for given in (even, torch.randn(N, P, classes + 1) * 0.5, logits):
        k = given.shape[2] - 1
        assert not detect(given, wide[:, :, :k], proposals, config).overflow.any()


def test_boxes_lie_on_their_image() -> None:
    logits, deltas, proposals = outputs()
    detections = detect(logits, deltas * 20, proposals, named("faster_rcnn_vgg16").postprocess)
    for i, (height, width) in enumerate(SIZES.tolist()):
        boxes = detections.boxes[i][detections.valid[i]]
        assert boxes.min() >= 0
        assert boxes[:, [0, 2]].max() <= width
        assert boxes[:, [1, 3]].max() <= height
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 1e-2


def test_bf16_outputs_are_scored_in_float32() -> None:
    logits, deltas, proposals = outputs()
    detections: BatchDetections = detect(logits.bfloat16(), deltas.bfloat16(), proposals, PostprocessConfig())
    assert detections.scores.dtype == detections.boxes.dtype == torch.float32


def test_a_threshold_too_small_to_divide_by_admits_all() -> None:
    config = PostprocessConfig(score_threshold=1e-320)
    detections, expected = (detect(*outputs(), f) for f in (config, PostprocessConfig(score_threshold=0.0)))
    assert torch.equal(detections.boxes, expected.boxes)
