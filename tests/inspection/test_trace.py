"""The record is that of the very prediction, and what became of each box agrees with another suppression."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from detectors import lively
from torchvision.ops import batched_nms, box_iou, nms

from twostage.data.scenes import HARD, NAMES, make_scene
from twostage.detector import Detector
from twostage.errors import UsageError
from twostage.inspection.fates import Fate
from twostage.inspection.trace import Trace
from twostage.models.targets.matching import IGNORE, NEGATIVE

FASTER = "faster_rcnn_tiny_fpn"
FAMILIES = ["faster_rcnn_tiny", FASTER, "fast_rcnn_tiny", "mask_rcnn_tiny_fpn", "cascade_mask_rcnn_tiny_fpn"]
FAMILIES += ["hybrid_task_cascade_tiny_fpn", "retinanet_tiny_fpn", "rcnn_tiny", "sppnet_tiny"]
LOW = {"score_threshold": 0.05}


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return make_scene(0, 0, 1, style=HARD).image[:200]


@pytest.fixture(scope="module")
def traced(scene: np.ndarray) -> Callable[..., Trace]:
    """The trace of a scene by a detector with random weights, once for each name and fields."""
    known: dict[str, Trace] = {}

    def trace(name: str = FASTER, **fields: object) -> Trace:
        key = f"{name}{fields}"
        if key not in known:
            known[key] = lively(name, **(LOW | fields)).trace(scene)
        return known[key]

    return trace


@pytest.mark.parametrize("name", FAMILIES)
def test_it_ends_in_the_prediction(name: str, scene: np.ndarray) -> None:
    detector = lively(name, **LOW)
    trace = detector.trace(scene)
    expected = detector.predict(scene, conf=detector.config.postprocess.score_threshold)
    assert len(expected)
    for column in ("boxes", "scores", "class_ids", "proposals"):
        np.testing.assert_array_equal(getattr(trace.detections, column), getattr(expected, column))
    assert (trace.detections.masks is None) == (expected.masks is None)
    assert trace.detections.masks == expected.masks
    pairs = trace.pairs
    kept = (pairs.fate == Fate.KEPT).nonzero()[:, 0]
    kept = kept[pairs.rank[kept].argsort()]
    found = trace.to_image(pairs.boxes[kept])
    limit = torch.tensor([scene.shape[1], scene.shape[0]] * 2)
    np.testing.assert_allclose(found.clamp(min=0).minimum(limit), expected.boxes, atol=1e-4)
    np.testing.assert_array_equal(pairs.labels[kept], expected.class_ids)


@pytest.mark.parametrize("name", ["faster_rcnn_tiny", FASTER, "mask_rcnn_tiny_fpn"])
def test_anchors_fall_where_another_suppression_drops_them(traced: Callable[..., Trace], name: str) -> None:
    trace = traced(name)
    fates, rpn = trace.anchors, trace.config.rpn
    assert fates is not None
    ranked = (fates.fate >= Fate.SUPPRESSED).nonzero()[:, 0]
    survivors = [ranked[fates.level[ranked] == level] for level in fates.level.unique()]
    survivors = [some[nms(fates.boxes[some], fates.scores[some], rpn.nms)] for some in survivors]
    assert set(torch.cat(survivors).tolist()) == set((fates.fate >= Fate.CUT).nonzero()[:, 0].tolist())
    assert (fates.rank[ranked] < rpn.top_test).all()
    assert (fates.rank[fates.fate == Fate.LOW] >= rpn.top_test).all()
    proposals = trace.stages.proposals
    kept = proposals.anchors[0][proposals.valid[0]]
    torch.testing.assert_close(fates.boxes[kept], proposals.boxes[0][proposals.valid[0]])
    assert torch.equal(fates.proposal[kept], torch.arange(len(kept)))
    assert (fates.fate == Fate.KEPT).sum() == len(kept)
    cut = fates.scores[fates.fate == Fate.CUT]
    assert len(cut)
    assert cut.max() <= fates.scores[kept].min()


def test_a_suppressed_box_has_the_better_box_that_dropped_it(traced: Callable[..., Trace]) -> None:
    trace = traced()
    fates = trace.anchors
    assert fates is not None
    lost = (fates.fate == Fate.SUPPRESSED).nonzero()[:, 0]
    assert len(lost) > 50
    by = fates.by[lost]
    assert (fates.fate[by] >= Fate.CUT).all()
    assert (fates.level[by] == fates.level[lost]).all()
    assert (fates.scores[by] >= fates.scores[lost]).all()
    overlap = box_iou(fates.boxes, fates.boxes[by])[lost, torch.arange(len(lost))]
    assert (overlap > trace.config.rpn.nms - 1e-6).all()
    assert (fates.by[fates.fate != Fate.SUPPRESSED] == -1).all()


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("name", [FASTER, "cascade_rcnn_tiny_fpn", "retinanet_tiny_fpn"])
def test_pairs_fall_where_another_suppression_drops_them(traced: Callable[..., Trace], name: str, across: bool) -> None:
    trace = traced(name, soft_nms="off", nms_across_classes=across, max_det=10, score_threshold=0.02)
    pairs, post = trace.pairs, trace.config.postprocess
    groups = torch.zeros_like(pairs.labels) if across else pairs.labels
    large = (pairs.fate > Fate.SMALL).nonzero()[:, 0]
    survivors = large[batched_nms(pairs.boxes[large], pairs.scores[large], groups[large], post.nms)]
    assert set(survivors.tolist()) == set((pairs.fate >= Fate.CUT).nonzero()[:, 0].tolist())
    assert (pairs.fate == Fate.KEPT).sum() == 10
    assert torch.equal(pairs.rank[survivors[:10]], torch.arange(10))
    lost = (pairs.fate == Fate.SUPPRESSED).nonzero()[:, 0]
    assert len(lost)
    by = pairs.by[lost]
    assert (groups[by] == groups[lost]).all()
    assert (pairs.scores[by] >= pairs.scores[lost]).all()
    assert (box_iou(pairs.boxes, pairs.boxes[by])[lost, torch.arange(len(lost))] > post.nms - 1e-6).all()


@pytest.mark.parametrize("name", [FASTER, "cascade_rcnn_tiny_fpn", "retinanet_tiny_fpn", "rcnn_tiny"])
def test_what_would_be_learned_follows_the_rules_of_the_paper(name: str, scene: np.ndarray) -> None:
    boxes = np.array([[20.0, 30, 90, 100], [120, 60, 180, 150], [0, 0, 30, 25]], dtype=np.float32)
    trace = lively(name).trace(scene, (boxes, np.array([0, 1, 2])))
    learning = trace.learning
    if name == "rcnn_tiny":
        assert (learning.anchors, learning.regions) == (None, None)
        return
    anchors = trace.anchors_on_image()
    overlaps = box_iou(anchors, torch.from_numpy(boxes))
    high, low = (0.5, 0.4) if "retinanet" in name else (0.7, 0.3)
    best = overlaps.max(dim=1)
    torch.testing.assert_close(learning.anchors.overlap, best.values, rtol=1e-4, atol=1e-4)
    positive = learning.anchors.matches >= 0
    sure = (best.values - high).abs() > 1e-3
    keeps = torch.isclose(overlaps, overlaps.max(dim=0).values[None], atol=1e-5, rtol=0).any(dim=1)
    assert torch.equal(positive[sure & ~keeps], (best.values > high)[sure & ~keeps])
    assert positive[overlaps.argmax(dim=0)].all()
    own = positive & (best.values > high)
    assert torch.equal(learning.anchors.matches[own], best.indices[own])
    between = (best.values > low + 1e-3) & (best.values < high - 1e-3) & ~keeps
    assert (learning.anchors.matches[between] == IGNORE).all()
    assert (learning.anchors.matches[(best.values < low - 1e-3) & ~keeps] == NEGATIVE).all()
    if "retinanet" in name:
        assert learning.regions is None
        return
    assert learning.anchors.sampled.sum() <= trace.config.rpn.batch
    assert learning.regions.sampled.sum() <= trace.config.box_head.region_batch
    truths = learning.regions.sampled[trace.stages.proposals.boxes.shape[1] :]
    assert len(truths) == len(boxes)


def test_without_objects_nothing_is_learned(scene: np.ndarray) -> None:
    detector = lively(FASTER)
    with pytest.raises(UsageError, match=r"target is not given: trace\(image, target\)"):
        _ = detector.trace(scene).learning
    none = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    learning = detector.trace(scene, none).learning
    assert (learning.anchors.matches < 0).all()
    assert (learning.anchors.overlap == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (257, 3)])
@pytest.mark.parametrize("name", [FASTER, "retinanet_tiny_fpn"])
def test_images_of_a_pixel_have_a_trace(name: str, size: tuple[int, int]) -> None:
    trace = lively(name).trace(np.zeros((*size, 3), np.uint8))
    assert trace.detections.size == size
    assert len(trace.pairs.fate) >= len(trace.detections)


def test_no_detection(scene: np.ndarray) -> None:
    trace = lively(FASTER, score_threshold=1.0).trace(scene)
    assert len(trace.detections) == len(trace.pairs.fate) == 0


def test_names_are_those_of_the_detector(scene: np.ndarray) -> None:
    detector = Detector.build(FASTER, NAMES, device="cpu")
    assert detector.trace(scene).names == tuple(NAMES)


@pytest.mark.parametrize(
    ("boxes", "labels", "words"),
    [
        ([[1.0, 2, 30, 40]], [7], "the class id of box 0 is 7; there are 0 to 4"),
        ([[1.0, 2, 30, 40]], [-1], "the class id of box 0 is -1"),
        ([[30.0, 2, 1, 40]], [0], "box 0 is .*give finite x1 < x2"),
        ([[1.0, 2, float("nan"), 40]], [0], "box 0 is .*give finite x1 < x2"),
    ],
)
def test_what_are_no_objects_is_refused(scene: np.ndarray, boxes: list, labels: list, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        lively(FASTER).trace(scene, (np.array(boxes, np.float32), np.array(labels)))
