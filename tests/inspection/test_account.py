"""Every missed object has one cause, the right one; and a setting that is said to keep it does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectors import lively
from torch import Tensor
from torchvision.ops import box_iou

from twostage.atomic import to_json
from twostage.data.dataset import Dataset
from twostage.data.scenes import HARD, NAMES, make_scene
from twostage.detector import Detector
from twostage.evaluation.coco import coco_scores
from twostage.evaluation.results import Accumulator
from twostage.inspection.account import Objects, View, account
from twostage.inspection.causes import Account, Cause, Miss, Step
from twostage.inspection.fates import Fate
from twostage.inspection.remedy import remedy
from twostage.inspection.trace import Trace
from twostage.inspection.words import cause_in_words
from twostage.ops.boxes import clip

FASTER = "faster_rcnn_tiny_fpn"
# Suppressed boxes may overlap the better one by less than the half from which a box counts as an object's.
FIELDS = {"score_threshold": 0.2, "max_det": 30, "soft_nms": "off", "nms": 0.3, "rpn_nms": 0.3}
STEPS = [Fate.LOW, Fate.SUPPRESSED, Fate.CUT]
CAUSES = {Fate.LOW: Cause.BELOW_TOP_K, Fate.SUPPRESSED: Cause.RPN_NMS, Fate.CUT: Cause.BELOW_TOP_N}


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return make_scene(0, 0, 1, style=HARD).image[:200]


@pytest.fixture(scope="module")
def detector() -> Detector:
    made = lively(FASTER, **FIELDS)
    with torch.no_grad():
        made.model.head.classes.bias[0] += 1.0  # type: ignore[union-attr,index]  # some regions are background
    return made


@pytest.fixture(scope="module")
def trace(detector: Detector, scene: np.ndarray) -> Trace:
    return detector.trace(scene)


def miss_of(trace: Trace, box: Tensor, label: int = 0) -> Miss | None:
    """The miss of a single object; None where it is found."""
    found = account(trace, Objects.of(box[None].numpy(), np.array([label])), trace.config.postprocess)
    assert found.misses.keys() <= {0}
    assert (0 in found.misses) != found.reached[Step.FOUND][0]
    return found.misses.get(0)


def refined(trace: Trace, label: int) -> Tensor:
    """Every proposal moved by the deltas of a class, by the coder's own arithmetic."""
    stage, head = trace.stages.predictions[-1], trace.model.head
    deltas = stage.deltas[:, :, min(label, stage.deltas.shape[2] - 1)]
    boxes = head.box_heads[-1].coder.decode_inside(deltas, stage.boxes, trace.batch.sizes)[0]
    return trace.to_image(boxes)[trace.stages.proposals.valid[0]]


def far_from(boxes: Tensor, others: Tensor) -> Tensor:
    """Which boxes overlap none of the others by a half."""
    return (box_iou(boxes, others) < 0.49).all(dim=1) if len(others) else torch.ones(len(boxes), dtype=torch.bool)


@pytest.mark.parametrize("fate", STEPS, ids=lambda fate: fate.name)
def test_an_object_in_the_place_of_an_anchor_was_lost_where_the_anchor_was(trace: Trace, fate: Fate) -> None:
    """Of anchors that no box of a later step is near."""
    fates = trace.anchors
    assert fates is not None
    boxes = trace.to_image(fates.boxes)
    some = (fates.fate == fate).nonzero()[:, 0]
    later = torch.cat([boxes[fates.fate > fate], refined(trace, 0)])
    some = some[far_from(boxes[some], later)]
    some = some[((boxes[some, 2:] - boxes[some, :2]) > 4).all(dim=1)]
    assert len(some) > 2
    for place in some[:20].tolist():
        miss = miss_of(trace, boxes[place])
        assert miss is not None
        assert miss.cause == CAUSES[fate]
        assert miss.detail["iou"] >= 0.5
        assert all(change.value > change.now for change in miss.changes)
        if fate == Fate.SUPPRESSED:
            by = torch.tensor([miss.detail["by_box"]])
            assert box_iou(by, boxes[fates.fate >= Fate.CUT]).max() > 0.999
            assert miss.detail["by_iou"] > trace.config.rpn.nms - 1e-6


def test_what_no_box_comes_near_was_not_reached(trace: Trace) -> None:
    boxes = torch.cat([trace.to_image(trace.anchors.boxes), refined(trace, 0)])  # type: ignore[union-attr]
    thin = torch.tensor([[10.0, 10, 200, 12], [30, 5, 33, 190]])
    for box in thin[far_from(thin, boxes)]:
        miss = miss_of(trace, box)
        assert miss is not None
        assert miss.cause == Cause.NO_ANCHOR
        expected = box_iou(trace.anchors_on_image(), box[None]).max()
        assert miss.detail["anchor_iou"] == pytest.approx(float(expected), abs=1e-5)
        assert not miss.changes


def test_proposals_that_are_moved_away_are_named(trace: Trace) -> None:
    proposals = trace.to_image(trace.stages.proposals.boxes[0][trace.stages.proposals.valid[0]])
    some = proposals[far_from(proposals, refined(trace, 0))]
    assert len(some)
    for box in some[:10]:
        miss = miss_of(trace, box)
        assert miss is not None
        assert miss.cause == Cause.REFINED_AWAY
        assert miss.detail["refined_iou"] < 0.5 <= miss.detail["iou"]
        assert not miss.changes, "no setting brings them back"


def test_what_a_region_was_seen_as(trace: Trace) -> None:
    """Objects in the place of refined boxes whose scores of their class are too low."""
    probabilities = trace.stages.predictions[-1].logits[0].softmax(dim=1)
    seen = set()
    for label in range(len(NAMES)):
        boxes = refined(trace, label)
        above = probabilities[: len(boxes), label + 1] > trace.config.postprocess.score_threshold
        some = far_from(boxes, boxes[above])
        for place in some.nonzero()[:, 0][:15].tolist():
            miss = miss_of(trace, boxes[place], label)
            assert miss is not None
            seen.add(miss.cause)
            own = probabilities[miss.detail["region"]]
            assert miss.detail["score"] == pytest.approx(float(own[label + 1]), abs=1e-5)
            best = int(own.argmax())
            if miss.cause == Cause.OTHER_CLASS:
                assert miss.detail["seen_as"] == best - 1 != label
            elif miss.cause == Cause.BACKGROUND:
                assert own[0] > own[label + 1]
            assert all(change.value < change.now for change in miss.changes)
    assert {Cause.BACKGROUND, Cause.OTHER_CLASS} <= seen


def test_what_the_last_suppression_and_the_maximum_drop(trace: Trace) -> None:
    pairs = trace.pairs
    boxes = trace.to_image(pairs.boxes)
    for fate, cause in ((Fate.SUPPRESSED, Cause.CLASS_NMS), (Fate.CUT, Cause.BEYOND_MAX_DET)):
        tried = 0
        for place in (pairs.fate == fate).nonzero()[:, 0].tolist():
            label = int(pairs.labels[place])
            later = boxes[(pairs.labels == label) & (pairs.fate > fate)]
            if not far_from(boxes[place][None], later)[0]:
                continue
            miss = miss_of(trace, boxes[place], label)
            assert miss is not None
            assert miss.cause == cause
            tried += 1
        assert tried > 0, cause


def test_one_detection_is_one_objects(trace: Trace) -> None:
    """Of two objects in one place the second has no detection of its own."""
    pairs = trace.pairs
    boxes = trace.to_image(pairs.boxes)
    kept = (pairs.fate == Fate.KEPT).nonzero()[:, 0]
    for place in kept.tolist():
        label = int(pairs.labels[place])
        own = boxes[pairs.labels == label]
        if (box_iou(own, boxes[place][None]) >= 0.5).sum() == 1:
            twice = Objects.of(boxes[place][None].repeat(2, 1).numpy(), np.array([label, label]))
            found = account(trace, twice, trace.config.postprocess)
            assert [miss.cause for miss in found.misses.values()] == [Cause.OTHER_OBJECT]
            return
    pytest.fail("no detection stands alone")


def random_objects(generator: np.random.Generator, trace: Trace, count: int) -> Objects:
    """At most so many objects near boxes of every step."""
    height, width = trace.image.shape[:2]
    boxes = trace.to_image(trace.anchors.boxes).numpy()  # type: ignore[union-attr]
    near = boxes[generator.integers(len(boxes), size=count // 2)] + generator.normal(size=(count // 2, 4)) * 3
    detected = trace.detections.boxes[generator.integers(len(trace.detections), size=count - count // 2)]
    every = np.concatenate([near, detected + generator.normal(size=detected.shape) * 4]).clip(0)
    every = np.minimum(every, [width, height, width, height])
    every = every[((every[:, 2:] - every[:, :2]) > 1).all(axis=1)]
    count = len(every)
    return Objects.of(every, generator.integers(len(NAMES), size=count), generator.random(count) > 0.1)


@pytest.mark.parametrize("seed", range(4))
def test_as_many_are_found_as_cocos_evaluation_counts(trace: Trace, seed: int) -> None:
    objects = random_objects(np.random.default_rng(seed), trace, 30)
    found = account(trace, objects, trace.config.postprocess)
    names = list(NAMES)
    dataset = Dataset.from_samples([(trace.image, objects.boxes.numpy(), objects.labels.tolist())], names)
    dataset = replace(dataset, difficult=~objects.counted.numpy())
    results = Accumulator()
    one = trace.detections
    results.add(0, one.boxes, one.scores, one.class_ids)
    recall = coco_scores(dataset, results.results(), ious=(0.5,)).recall[0, :, 0, -1]
    counted = np.bincount(objects.labels[objects.counted], minlength=len(names))
    expected = (recall.clip(min=0) * counted).round()
    hits = np.bincount(
        objects.labels.numpy()[found.reached[Step.FOUND] & objects.counted.numpy()], minlength=len(names)
    )
    np.testing.assert_array_equal(hits, expected)
    assert len(found.misses) == counted.sum() - expected.sum()
    for place in found.misses:
        assert objects.counted[place]


def test_no_step_is_reached_without_a_box(trace: Trace) -> None:
    objects = random_objects(np.random.default_rng(9), trace, 40)
    found = account(trace, objects, trace.config.postprocess)
    boxes = trace.to_image(trace.anchors.boxes)  # type: ignore[union-attr]
    expected = (box_iou(boxes, objects.boxes) >= 0.5).any(dim=0)
    np.testing.assert_array_equal(found.reached[Step.DECODED], expected.numpy())
    proposals = trace.to_image(trace.stages.proposals.boxes[0][trace.stages.proposals.valid[0]])
    np.testing.assert_array_equal(
        found.reached[Step.REGION], (box_iou(proposals, objects.boxes) >= 0.5).any(dim=0).numpy()
    )
    order = list(found.reached)
    for earlier, later in ((Step.DECODED, Step.RANKED), (Step.RANKED, Step.DISTINCT_PROPOSAL)):
        assert order.index(earlier) < order.index(later)
        assert not (found.reached[later] & ~found.reached[earlier]).any()


def retinanet(scene: np.ndarray, first: float, second: float) -> tuple[Detector, Trace]:
    """One whose scores for the first two classes are near these, with few candidates; and its trace of the scene."""
    made = lively("retinanet_tiny_fpn", score_threshold=0.2, max_det=20000, **{"retinanet.top": 15, "nms": 0.9})
    with torch.no_grad():
        made.model.head.classes.weight.mul_(0.05)  # type: ignore[union-attr,operator]
        bias = made.model.head.classes.bias.view(-1, len(NAMES))  # type: ignore[union-attr,operator]
        bias[:] = torch.tensor([first, second, *[1e-4] * (len(NAMES) - 2)]).logit()
    return made, made.trace(scene)


@pytest.mark.parametrize(
    ("first", "second", "cause"),
    [(0.01, 0.9, Cause.OTHER_CLASS), (0.01, 0.3, Cause.BACKGROUND), (0.4, 0.9, Cause.OTHER_CLASS)],
)
def test_a_box_that_retinanet_ranks_for_another_class_was_ranked(
    scene: np.ndarray, first: float, second: float, cause: Cause
) -> None:
    """Only candidates of the second class; objects of the first in their place. More of them keep the object where its
    own score is above the threshold, and with a lower threshold otherwise."""
    fields = ["retinanet.top", "postprocess.score_threshold"][: 1 if first > 0.2 else 2]
    detector, trace = retinanet(scene, first, second)
    candidates = trace.stages.proposals
    assert set(candidates.labels[candidates.valid].tolist()) == {1}  # type: ignore[union-attr]
    kept = 0
    for box in trace.to_image(clip(candidates.boxes, trace.batch.sizes)[0])[:6]:
        if (box[2:] - box[:2]).min() < 3:
            continue
        objects = Objects.of(box[None].numpy(), np.array([0]))
        found = account(trace, objects, trace.config.postprocess)
        (miss,) = found.misses.values()
        assert miss.cause == cause
        assert miss.detail["score"] == pytest.approx(first, abs=0.15)
        assert found.reached[Step.RANKED][0]
        assert not found.reached[Step.SCORED][0]
        if cause == Cause.OTHER_CLASS:
            assert (miss.detail["seen_as"], miss.detail["seen_score"]) == (1, pytest.approx(second, abs=0.15))
        tried = remedy(detector.runner, trace, objects, 0, miss, trace.config.postprocess)
        assert [change.field for change in tried.changes] == fields
        kept += tried.keeps
    assert kept > 0


@pytest.mark.parametrize("score", [0.1, 0.5])
def test_retinanets_anchors_below_top_k_have_their_rank(scene: np.ndarray, score: float) -> None:
    """Of objects that no candidate is near. More candidates keep what is above the threshold, and others with a lower
    one."""
    fields = ["retinanet.top", "postprocess.score_threshold"][: 1 if score > 0.2 else 2]
    detector, trace = retinanet(scene, score, score)
    candidates = trace.to_image(clip(trace.stages.proposals.boxes, trace.batch.sizes)[0])
    predictions = trace.stages.anchors
    assert predictions is not None
    coder = trace.config.retinanet.coder  # type: ignore[union-attr]
    first, seen = 0, 0
    for level, (logits, deltas, anchors) in enumerate(
        zip(predictions.logits, predictions.deltas, predictions.anchors, strict=True)
    ):
        boxes = trace.to_image(clip(coder.decode(deltas, anchors[None]), trace.batch.sizes)[0])
        large = ((boxes[:, 2:] - boxes[:, :2]) > 4).all(dim=1)
        ranks = logits[0].argsort(descending=True, stable=True).argsort() + 1
        for place in (large & far_from(boxes, candidates)).nonzero()[:4, 0].tolist():
            objects = Objects.of(boxes[place][None].numpy(), np.array([1]))
            found = account(trace, objects, trace.config.postprocess)
            (miss,) = found.misses.values()
            assert miss.cause == Cause.BELOW_TOP_K
            assert not found.reached[Step.RANKED][0]
            assert cause_in_words(miss, NAMES) == f"ranked below top-k (rank {miss.detail['rank']} of its level)"
            assert miss.detail["iou"] >= 0.5
            tried = remedy(detector.runner, trace, objects, 0, miss, trace.config.postprocess)
            assert (tried.keeps, [change.field for change in tried.changes]) == (True, fields)
            if miss.detail["anchor"] == first + place:
                seen += 1
                assert miss.detail["level"] == level
                assert miss.detail["rank"] == int(ranks[place * len(NAMES) + 1]) > 15
        first += len(anchors)
    assert seen


FAMILIES = ["faster_rcnn_tiny", "mask_rcnn_tiny_fpn", "cascade_rcnn_tiny_fpn", "retinanet_tiny_fpn", "rcnn_tiny"]


@pytest.mark.parametrize("count", [0, 5000])
def test_many_objects_and_none(trace: Trace, count: int) -> None:
    generator = np.random.default_rng(0)
    corner = generator.random((count, 2)) * 150
    objects = Objects.of(
        np.concatenate([corner, corner + 2 + generator.random((count, 2)) * 40], axis=1), np.zeros(count, np.int64)
    )
    found: Account = account(trace, objects, trace.config.postprocess)
    assert len(found.misses) == count - found.reached[Step.FOUND].sum()
    assert all(hits.shape == (count,) for hits in found.reached.values())


@pytest.mark.parametrize("family", ["fast_rcnn_tiny", "retinanet_tiny_fpn", "rcnn_tiny"])
def test_families_without_an_rpn(family: str, scene: np.ndarray) -> None:
    trace = lively(family, **FIELDS).trace(scene)
    miss = miss_of(trace, torch.tensor([10.0, 10, 190, 12]))
    assert miss is not None
    assert miss.cause == (Cause.NO_ANCHOR if family == "retinanet_tiny_fpn" else Cause.NO_PROPOSAL)


@pytest.mark.parametrize(
    ("part", "cause"),
    [
        ("head", Cause.REFINED_AWAY),
        ("head.classes", Cause.BACKGROUND),
        ("rpn.objectness", Cause.BELOW_TOP_K),
    ],
)
def test_the_account_of_a_model_that_diverged_has_only_numbers(scene: np.ndarray, part: str, cause: Cause) -> None:
    """JSON has no NaN."""
    made = lively(FASTER, **FIELDS)
    sound = made.trace(scene)
    view = View(sound, Objects.of(np.zeros((0, 4)), np.zeros(0, np.int64)), made.config.postprocess)
    moved = part == "head.classes"  # whose boxes are as before
    box = view.refined(0)[:1] if moved else view.regions[:1]
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if name.startswith(part):
                parameter.fill_(torch.nan)
    found = account(made.trace(scene), Objects.of(box.numpy(), np.array([0])), made.config.postprocess)
    assert found.misses[0].cause == cause
    to_json(found.misses[0].detail)
