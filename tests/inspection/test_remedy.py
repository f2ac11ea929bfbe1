"""Settings that are said to keep a missed object do, and what no setting keeps has a reason."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import lively
from torchvision.ops import box_iou

from twostage.cli.why import flag_of
from twostage.data.scenes import HARD, NAMES, make_scene
from twostage.detector import Detector
from twostage.inspection.account import Objects, account
from twostage.inspection.causes import Cause, Change, Miss
from twostage.inspection.fates import Fate
from twostage.inspection.remedy import Remedy, remedy
from twostage.inspection.rerun import with_value
from twostage.inspection.words import reason_in_words, remedy_to_dict

FASTER = "faster_rcnn_tiny_fpn"
# Suppressed boxes may overlap the better one by less than the half from which a box counts as an object's.
FIELDS = {"score_threshold": 0.2, "max_det": 30, "soft_nms": "off", "nms": 0.3, "rpn_nms": 0.3}
FAMILIES = ["faster_rcnn_tiny", "mask_rcnn_tiny_fpn", "cascade_rcnn_tiny_fpn", "retinanet_tiny_fpn", "rcnn_tiny"]


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return make_scene(0, 0, 1, style=HARD).image[:200]


@pytest.mark.slow
@pytest.mark.parametrize("name", [FASTER, *FAMILIES])
def test_a_setting_that_keeps_an_object_keeps_it_in_a_detector_with_it(
    name: str, scene: np.ndarray, tmp_path: Path
) -> None:
    """The detector is loaded anew with the other value, and predicts from the image on."""
    saved = lively(name, **(FIELDS | {"max_det": 200}))
    saved.save(tmp_path / "w.safetensors")
    detector = Detector.load(tmp_path / "w.safetensors", device="cpu")
    trace, post = detector.trace(scene), detector.config.postprocess
    pairs = [trace.above_threshold(with_value(post, "postprocess.score_threshold", 0.05)), trace.pairs]
    boxes = [trace.to_image(pairs[0].boxes[0][pairs[0].valid[0]]), trace.to_image(pairs[1].boxes)]
    labels = [pairs[0].labels[0][pairs[0].valid[0]], pairs[1].labels]
    if trace.anchors is not None:
        boxes.append(trace.to_image(trace.anchors.boxes))
        labels.append(torch.arange(len(boxes[-1])) % len(NAMES))
    generator = torch.Generator().manual_seed(0)
    picked = [torch.randperm(len(some), generator=generator)[:25] for some in boxes]
    planted = zip(
        torch.cat([some[rows] for some, rows in zip(boxes, picked, strict=True)]),
        torch.cat([some[rows] for some, rows in zip(labels, picked, strict=True)]).tolist(),
        strict=True,
    )
    kept = set()
    for box, label in planted:
        if (box[2:] - box[:2]).min() < 3:
            continue
        objects = Objects.of(box[None].numpy(), np.array([label]))
        misses = account(trace, objects, post).misses
        if not misses:
            continue
        tried = remedy(detector.runner, trace, objects, 0, misses[0], post)
        if not tried.keeps:
            continue
        kept.add(len(tried.changes))
        fields = {change.field: change.value for change in tried.changes}
        other = Detector.load(tmp_path / "w.safetensors", device="cpu", **fields)
        found = other.predict(scene, conf=other.config.postprocess.score_threshold)
        own = found.boxes[found.class_ids == label]
        assert (box_iou(torch.from_numpy(own), box[None]) >= 0.5).any(), fields
    assert 1 in kept
    assert 2 in kept or name != FASTER


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_what_soft_nms_has_weakened_is_found_at_a_lower_threshold(scene: np.ndarray, method: str) -> None:
    detector = lively(FASTER, **(FIELDS | {"soft_nms": method, "max_det": 200}))
    trace, post = detector.trace(scene), detector.config.postprocess
    boxes, kept = trace.to_image(trace.pairs.boxes), 0
    for place in (trace.pairs.fate == Fate.SUPPRESSED).nonzero()[:, 0].tolist():
        objects = Objects.of(boxes[place][None].numpy(), np.array([int(trace.pairs.labels[place])]))
        for miss in account(trace, objects, post).misses.values():
            assert miss.cause == Cause.CLASS_NMS
            assert miss.changes[0].field == "postprocess.score_threshold"
            assert method == "linear" or not any(change.field == "postprocess.nms" for change in miss.changes)
            tried = remedy(detector.runner, trace, objects, 0, miss, post)
            kept += tried.keeps and tried.changes[0].field == "postprocess.score_threshold"
    assert kept


def detail(**more: object) -> dict[str, object]:
    return {"anchor_iou": 0.6, "iou": 0.61, "refined_iou": 0.4, "rank": 7, **more}


@pytest.mark.parametrize(
    ("cause", "tried", "expected"),
    [
        (Miss(Cause.REFINED_AWAY, detail()), None, "needs training: no setting undoes a refinement"),
        (Miss(Cause.NO_PROPOSAL, detail()), None, "needs training: no setting brings other proposals"),
        (Miss(Cause.OTHER_OBJECT, detail()), None, "needs training: it has no detection of its own"),
        (Miss(Cause.NO_ANCHOR, detail()), None, "needs training: the RPN moves its anchors elsewhere"),
        (Miss(Cause.NO_ANCHOR, detail(anchor_iou=0.3)), None, "needs training: no anchor reaches it (see data stats)"),
        (
            Miss(Cause.RPN_NMS, detail(), (Change("rpn.nms", 0.8, 0.7),)),
            None,
            "not tried: an exported file keeps its rpn.nms",
        ),
        (
            Miss(Cause.BELOW_TOP_K, detail(), (Change("rpn.top_test", 900, 300),)),
            Miss(Cause.BELOW_TOP_N, detail(), (Change("proposals.keep_test", 700, 300),)),
            "no trial keeps it: with rpn.top_test=900 it is cut by top-n (rank 7)",
        ),
        (
            Miss(Cause.BELOW_TOP_K, detail(), (Change("rpn.top_test", 900, 300),)),
            Miss(Cause.REFINED_AWAY, detail()),
            "needs training: with rpn.top_test=900 it is refined away (IoU 0.61 to 0.40)",
        ),
        (
            Miss(Cause.BELOW_TOP_K, detail(), (Change("retinanet.top", 1234567, 1000),)),
            Miss(Cause.REFINED_AWAY, detail()),
            "needs training: with retinanet.top=1234567 it is refined away (IoU 0.61 to 0.40)",
        ),
    ],
    ids=lambda value: str(value.cause) if isinstance(value, Miss) else None,
)
def test_what_is_not_kept_says_why(cause: Miss, tried: Miss | None, expected: str) -> None:
    found = Remedy(() if tried is None else cause.changes, tried or cause)
    assert reason_in_words(cause, found, NAMES) == expected
    training = expected.startswith("needs training")
    assert remedy_to_dict(cause, found, NAMES) == {"changes": [], "needs_training": training, "reason": expected}


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (Change("retinanet.top", 1234567, 1000), "--set model.retinanet.top=1234567"),
        (Change("postprocess.max_det", 1234567, 100), "--max-det 1234567"),
        (Change("postprocess.score_threshold", 0.0123, 0.05), "--conf 0.0123"),
        (Change("postprocess.min_box_size", 0.00099, 0.01), "--set model.postprocess.min_box_size=0.00099"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_change_is_written_as_the_command_line_reads_it(change: Change, flag: str) -> None:
    """A rank of six digits and an exponent is no whole number there."""
    assert flag_of(change) == flag
