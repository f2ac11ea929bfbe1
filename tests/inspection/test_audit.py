"""The label audit: planted faults on generated scenes are found with the evidence of an oracle; files; bad input."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from twostage.data.dataset import Dataset
from twostage.data.flat import FlatStrings
from twostage.data.scenes import NAMES, make_scene
from twostage.detector import Detector
from twostage.errors import UsageError
from twostage.inspection.audit import Audit, Judge, audit
from twostage.inspection.crops import crop
from twostage.inspection.evidence import (
    Evidence,
    LabelBoxes,
    ViewEvidence,
    evidence,
    merged,
    two_stage_runner,
    view_evidence,
)
from twostage.inspection.label_faults import find_faults
from twostage.inspection.next_images import next_images
from twostage.inspection.preannotations import cvat_xml, label_studio
from twostage.inspection.suggestion import Kind, Suggestion, ranked

HOSTILE = '<script>alert("1")</script>&'
BYTES = "name\udcff\x07"  # of a file whose name is no text
PIXEL = np.zeros((1, 1, 3), dtype=np.uint8)


def scenes(count: int, names: tuple[str, ...] = NAMES) -> tuple[Dataset, list[np.ndarray], list[np.ndarray]]:
    """Scenes, and the true boxes and class ids of each."""
    made = [make_scene(7, index) for index in range(count)]
    boxes = [np.array(one.boxes, dtype=np.float32) for one in made]
    labels = [np.array(one.labels) for one in made]
    return Dataset.from_samples(zip([one.image for one in made], boxes, labels, strict=True), names), boxes, labels


def oracle(
    data: Dataset, boxes: list[np.ndarray], labels: list[np.ndarray], noise: float = 0.03
) -> dict[int, Evidence]:
    """The evidence of a network that knows the truth, with noise in boxes and scores."""
    random = np.random.default_rng(3)
    gathered = {}
    for index in range(len(data)):
        given = data.objects(index)
        sides = np.tile(boxes[index][:, 2:] - boxes[index][:, :2], 2)
        found = boxes[index] + random.normal(0, noise, boxes[index].shape) * sides
        scores = np.full((len(found), len(NAMES)), 0.02) + random.uniform(0, 0.02, (len(found), len(NAMES)))
        scores[np.arange(len(found)), labels[index]] = random.uniform(0.7, 0.9, len(found))
        gathered[index] = _about(given.boxes, boxes[index], found, scores, random)
    return gathered


def _about(given: np.ndarray, true: np.ndarray, found: np.ndarray, scores: np.ndarray, random: np.random.Generator):
    label_scores = np.full((len(given), scores.shape[1]), 0.02)
    label_boxes = np.repeat(given[:, None], 2, axis=1)
    for g, box in enumerate(given):
        overlaps = np.array([_iou(box, other) for other in true])
        if len(overlaps) and overlaps.max() >= 0.3:
            best = int(overlaps.argmax())
            label_scores[g] = scores[best] * min(1.0, overlaps[best] + 0.3)
            label_boxes[g] = found[best]
    objectness = random.uniform(0.8, 1.0, len(found))
    return Evidence(found, scores, scores * 0.95, objectness, label_scores, label_boxes)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod((high - low).clip(min=0))
    return float(shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared))


@pytest.fixture(scope="module")
def planted() -> tuple[Dataset, dict[int, Evidence], dict[Kind, set[tuple[int, tuple[float, ...]]]]]:
    """Scenes with a fault of one kind in each image, in turn; the faults by kind as (image, true box)."""
    _, boxes, labels = scenes(40)
    images = [make_scene(7, index).image for index in range(40)]
    wrong: dict[Kind, set[tuple[int, tuple[float, ...]]]] = {kind: set() for kind in Kind}
    samples = []
    for index, (own, classes) in enumerate(zip(boxes, labels, strict=True)):
        given, given_classes = own.copy(), classes.copy()
        kind = list(Kind)[index % len(Kind)]
        place = (index, tuple(own[0].tolist()))
        match kind:
            case Kind.MISSING:
                given, given_classes = given[1:], given_classes[1:]
            case Kind.WRONG_CLASS:
                given_classes[0] = (given_classes[0] + 1) % len(NAMES)
            case Kind.LOOSE_BOX:
                off = (own[0, 2] - own[0, 0]) / 3
                given[0, [0, 2]] += off if own[0, 2] + off < 192 else -off
            case Kind.NOT_FOUND:
                empty = _empty_place(own)
                given, given_classes = np.vstack([given, empty]), np.append(given_classes, 0)
                place = (index, tuple(empty.tolist()))
            case Kind.DUPLICATE:
                given, given_classes = np.vstack([given, own[:1] + 1]), np.append(given_classes, classes[0])
        wrong[kind].add(place)
        samples.append((images[index], given, given_classes))
    data = Dataset.from_samples(samples, NAMES)
    return data, oracle(data, boxes, labels), wrong


def _empty_place(boxes: np.ndarray) -> np.ndarray:
    """A box that no object touches."""
    for x in range(0, 168, 8):
        for y in range(0, 168, 8):
            box = np.array([x, y, x + 24, y + 24], dtype=np.float32)
            if all(_iou(box, other) == 0 for other in boxes):
                return box
    raise AssertionError("the scene is full")


@pytest.mark.parametrize("kind", list(Kind))
def test_the_first_suggestions_of_each_kind_are_the_planted_faults(planted, kind: Kind) -> None:
    data, seen, wrong = planted
    first = ranked(find_faults(data, seen), kind)[: len(wrong[kind])]
    hits = 0
    for one in first:
        places = [np.array(box) for image, box in wrong[kind] if image == one.image]
        box = np.array(one.box) if one.box is not None else data.boxes[one.row]
        hits += any(_iou(box, place) > 0.45 for place in places)
    assert hits >= 0.85 * len(wrong[kind]), [one.why for one in first]


def test_a_suggestion_says_what_to_write(planted) -> None:
    data, seen, _ = planted
    for one in find_faults(data, seen):
        assert 0 <= one.value <= 1
        assert one.why
        assert (one.row is None) == (one.kind == Kind.MISSING)
        assert (one.box is None) == (one.kind in (Kind.NOT_FOUND, Kind.DUPLICATE))
        assert (one.other is not None) == (one.kind == Kind.DUPLICATE)
        if one.kind == Kind.WRONG_CLASS:
            assert one.label != data.labels[one.row]


def test_right_labels_give_hardly_a_likely_suggestion() -> None:
    data, boxes, labels = scenes(20)
    found = find_faults(data, oracle(data, boxes, labels))
    assert sum(one.value >= 0.5 for one in found) <= 0.02 * len(data.labels), [(one.kind, one.why) for one in found]


def test_an_object_of_a_loose_label_is_not_called_missing(planted) -> None:
    data, seen, wrong = planted
    images = {image for image, _ in wrong[Kind.LOOSE_BOX]}
    assert not [one for one in find_faults(data, seen) if one.kind == Kind.MISSING and one.image in images]


def test_what_the_rpn_is_sure_of_and_the_head_is_not_comes_behind() -> None:
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    data = Dataset.from_samples([(image, np.zeros((0, 4)), [])], ["a", "b"])
    boxes = np.array([[0, 0, 20, 20], [50, 50, 80, 80], [20, 60, 40, 90]], dtype=np.float32)
    scores = np.array([[0.03, 0.03], [0.2, 0.0], [0.02, 0.0]])
    one = Evidence(boxes, scores, scores, np.array([0.9, 0.3, 0.1]), np.zeros((0, 2)), np.zeros((0, 1, 4)))
    found = ranked(find_faults(data, {0: one}), Kind.MISSING)
    assert [each.box for each in found] == [(50, 50, 80, 80), (0, 0, 20, 20)]
    assert "RPN is sure" in found[1].why


def test_exact_copies_are_duplicates_whatever_the_network_sees() -> None:
    image = np.zeros((50, 50, 3), dtype=np.uint8)
    box = [10, 10, 30, 30]
    data = Dataset.from_samples([(image, [box, box], [0, 1])], ["a", "b"])
    blind = Evidence(
        np.zeros((0, 4), np.float32),
        np.zeros((0, 2)),
        np.zeros((0, 2)),
        np.zeros(0),
        np.array([[0.1, 0.2], [0.1, 0.2]]),
        data.boxes[:, None],
    )
    (copy,) = ranked(find_faults(data, {0: blind}), Kind.DUPLICATE)
    assert (copy.row, copy.other, copy.value) == (0, 1, 1.0)
    assert "exactly" in copy.why


def test_crowds_and_difficult_labels_are_not_doubted_and_explain_what_they_hold() -> None:
    from dataclasses import replace

    data, boxes, labels = scenes(5)
    other = replace(data, labels=(data.labels + 1) % len(NAMES), difficult=np.ones(len(data.labels), dtype=bool))
    assert find_faults(other, oracle(other, boxes, labels)) == []
    whole = Dataset.from_samples([(data.image(0), [[0, 0, 192, 192]], [0])], NAMES)
    crowd = replace(whole, crowd=np.ones(1, dtype=bool))
    assert find_faults(crowd, oracle(crowd, boxes, labels)) == []


@pytest.mark.parametrize("model", ["faster_rcnn_tiny_fpn", "cascade_rcnn_tiny_fpn", "faster_rcnn_tiny"])
def test_evidence_of_both_views_is_on_the_pixels_of_the_image(model: str) -> None:
    """The mirrored view of an image is the plain view of its mirror image, mirrored back."""
    detector = Detector.build(model, NAMES, device="cpu", choose_forms=False)
    runner = two_stage_runner(detector.runner)
    scene = make_scene(1, 2)
    labels = LabelBoxes(np.array(scene.boxes, dtype=np.float32), np.array(scene.labels))
    turned = labels.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + np.array([192, 0, 192, 0])
    there = LabelBoxes(turned.astype(np.float32), labels.labels)
    mirrored = view_evidence(runner, scene.image, labels, mirror=True)
    plain = view_evidence(runner, np.ascontiguousarray(scene.image[:, ::-1]), there, mirror=False)
    np.testing.assert_allclose(mirrored.label_scores, plain.label_scores, atol=1e-5)
    back = plain.label_boxes[..., [2, 1, 0, 3]] * [-1, 1, -1, 1] + np.array([192, 0, 192, 0])
    np.testing.assert_allclose(mirrored.label_boxes, back, atol=1e-3)
    stages = 3 if model.startswith("cascade") else 1
    assert mirrored.label_boxes.shape == (len(labels.labels), stages, 4)


def test_label_scores_are_those_of_the_label_given_as_a_proposal() -> None:
    """The classifier's probabilities at a label's box do not depend on the other labels, nor on their number."""
    detector = Detector.build("faster_rcnn_tiny_fpn", NAMES, device="cpu", choose_forms=False)
    runner = two_stage_runner(detector.runner)
    scene = make_scene(1, 3)
    labels = LabelBoxes(np.array(scene.boxes, dtype=np.float32), np.array(scene.labels))
    every = view_evidence(runner, scene.image, labels, mirror=False).label_scores
    one = view_evidence(runner, scene.image, LabelBoxes(labels.boxes[:1], labels.labels[:1]), mirror=False).label_scores
    np.testing.assert_allclose(every[:1], one, atol=1e-5)


def test_candidates_are_the_best_of_those_that_overlap() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60], [80, 80, 90, 90]], dtype=np.float32)
    scores = np.array([[0.3, 0.1], [0.1, 0.8], [0.01, 0.0], [0.005, 0.0]], dtype=np.float32)
    none = np.zeros((0, 2), np.float32), np.zeros((0, 1, 4), np.float32)
    plain = ViewEvidence(boxes, scores, np.array([0.9, 0.5, 0.8, 0.1], dtype=np.float32), *none)
    mirrored = ViewEvidence(boxes[1:2] + 1, scores[1:2] / 2, np.ones(1, np.float32), *none)
    one = merged(plain, mirrored)
    # By score, then the one that only the RPN is sure of; nobody is sure of the last.
    assert one.boxes.tolist() == [[0, 0, 10, 11], [50, 50, 60, 60]]
    np.testing.assert_allclose(one.mirrored, [[0.05, 0.4], [0, 0]], atol=1e-6)


def test_an_audit_counts_images_and_keeps_the_order_of_kinds() -> None:
    data, _, _ = scenes(4)
    detector = Detector.build("faster_rcnn_tiny_fpn", NAMES, device="cpu", choose_forms=False)
    seen: list[tuple[int, int]] = []
    parts = [Judge(detector.runner, [0, 2]), Judge(detector.runner, [1, 3])]
    found = audit(data, parts, lambda done, every: seen.append((done, every)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    kinds = [one.kind for one in found.suggestions]
    assert kinds == sorted(kinds, key=list(Kind).index)
    for kind in Kind:
        values = [one.value for one in found.of(kind)]
        assert values == sorted(values, reverse=True)
    content = json.loads(json.dumps(found.to_dict(2)))
    assert content["images"] == 4
    assert len(content["suggestions"]) <= 2 * len(Kind)


def test_other_detectors_are_refused() -> None:
    data, _, _ = scenes(1)
    one_stage = Detector.build("retinanet_tiny_fpn", NAMES, device="cpu", choose_forms=False)
    with pytest.raises(UsageError, match="two-stage"):
        audit(data, [Judge(one_stage.runner, [0])])
    other = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", choose_forms=False)
    with pytest.raises(UsageError, match="5 classes, and the detector 1"):
        audit(data, [Judge(other.runner, [0])])


@pytest.mark.parametrize("count", [0, 5000])
def test_no_labels_and_five_thousand(count: int) -> None:
    image = np.zeros((200, 200, 3), dtype=np.uint8)
    corners = np.random.default_rng(0).uniform(0, 190, (count, 2))
    boxes = np.concatenate([corners, corners + 9], axis=1)
    data = Dataset.from_samples([(image, boxes, np.zeros(count, dtype=int))], ["a", "b"])
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a", "b"], device="cpu", choose_forms=False)
    found = audit(data, [Judge(detector.runner, [0])])
    assert all(one.kind == Kind.MISSING for one in found.suggestions) == (count == 0)
    ET.fromstring(cvat_xml(data, found.first(5), "x"))
    assert len(label_studio(data, found.first(5))) <= 1


def test_one_pixel() -> None:
    data = Dataset.from_samples([(PIXEL, [[0, 0, 1, 1]], [0])], ["a"])
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", choose_forms=False)
    found = audit(data, [Judge(detector.runner, [0])])
    for one in found.suggestions:
        assert min(crop(data, one).size) >= 1
    assert (
        len(evidence(two_stage_runner(detector.runner), PIXEL, LabelBoxes(data.boxes, data.labels)).label_scores) == 1
    )


def test_a_detector_that_finds_nothing_doubts_labels_and_suggests_none() -> None:
    data, _, _ = scenes(3)
    count = len(NAMES)
    blind = {
        index: Evidence(
            np.zeros((0, 4), np.float32),
            np.zeros((0, count)),
            np.zeros((0, count)),
            np.zeros(0),
            np.full((len(data.objects(index).labels), count), 0.01),
            data.objects(index).boxes[:, None],
        )
        for index in range(len(data))
    }
    found = find_faults(data, blind)
    assert {one.kind for one in found} == {Kind.NOT_FOUND}
    assert len(found) == len(data.labels)


def suggestions(data: Dataset) -> list[Suggestion]:
    return [
        Suggestion(Kind.MISSING, 0, None, (10.0, 20.0, 30.0, 60.0), 1, 0.9, HOSTILE),
        Suggestion(Kind.WRONG_CLASS, 0, 0, (1.0, 2.0, 31.0, 42.0), 1, 0.8, "why"),
        Suggestion(Kind.NOT_FOUND, 1, 1, None, None, 0.7, "nothing"),
    ]


@pytest.fixture
def hostile() -> Dataset:
    image = np.zeros((80, 100, 3), dtype=np.uint8)
    samples = [(image, [[1, 2, 31, 42]], [0]), (image, [[5, 5, 15, 15]], [0]), (image, [], [])]
    return Dataset.from_samples(samples, ["cell", HOSTILE])


def test_cvat_reads_labels_and_suggested_boxes(hostile: Dataset) -> None:
    root = ET.fromstring(cvat_xml(hostile, suggestions(hostile), HOSTILE + BYTES))
    assert root.findtext("meta/task/name") == HOSTILE + "name??"
    assert root.tag == "annotations"
    assert root.findtext("version") == "1.1"
    names = [label.findtext("name") for label in root.iter("label")]
    assert names == ["cell", HOSTILE]
    images = root.findall("image")
    assert [image.get("id") for image in images] == ["0", "1", "2"]
    assert images[0].get("name") == hostile.file_name(0)
    assert (images[0].get("width"), images[0].get("height")) == ("100", "80")
    first, added, changed = images[0].findall("box")
    corners = [[float(str(box.get(side))) for side in ("xtl", "ytl", "xbr", "ybr")] for box in (first, added)]
    assert corners == [[1, 2, 31, 42], [10, 20, 30, 60]]
    assert (first.get("source"), added.get("source"), added.get("z_order")) == ("manual", "auto", "1")
    assert {one.get("name"): one.text for one in first.findall("attribute")} == {"audit": "wrong_class", "why": "why"}
    assert changed.get("label") == names[1]
    (doubted,) = images[1].findall("box")
    assert {one.get("name"): one.text for one in doubted.findall("attribute")}["audit"] == "not_found"
    assert images[2].findall("box") == []


def test_label_studio_reads_percentages(hostile: Dataset) -> None:
    tasks = json.loads(json.dumps(label_studio(hostile, suggestions(hostile), prefix="/data/?d=")))
    assert [task["data"]["file"] for task in tasks] == [hostile.file_name(0), hostile.file_name(1)]
    assert tasks[0]["data"]["image"] == f"/data/?d={hostile.file_name(0)}"
    (prediction,) = tasks[0]["predictions"]
    region = prediction["result"][0]
    assert prediction["score"] == 0.9
    assert (region["type"], region["from_name"], region["to_name"]) == ("rectanglelabels", "label", "image")
    assert (region["original_width"], region["original_height"]) == (100, 80)
    value = region["value"]
    assert [value[side] for side in ("x", "y", "width", "height")] == pytest.approx([10, 25, 20, 50])
    assert value["rectanglelabels"] == [HOSTILE]
    (label,) = tasks[0]["annotations"][0]["result"]
    assert label["value"]["rectanglelabels"] == ["cell"]
    assert "removed" in tasks[1]["predictions"][0]["result"][0]["meta"]["text"][0]


def test_the_page_escapes_names_and_holds_every_crop(hostile: Dataset, tmp_path: Path) -> None:
    from twostage.cli.audit_page import ToLabel, write_audit_page
    from twostage.inspection.next_images import NextImage

    image = ToLabel(NextImage(0, 3.0, 1, HOSTILE), HOSTILE + BYTES, hostile.image(0), np.array([[1.0, 1, 9, 9]]))
    path = tmp_path / "index.html"
    write_audit_page(
        path, Audit(hostile, tuple(suggestions(hostile))), title=HOSTILE, lead="x", most=10, to_label=[image]
    )
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 4
    assert all(base64.b64decode(one).startswith(b"\xff\xd8") for one in pictures)
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_label_studio_asks_for_the_bytes_of_a_name_that_is_no_text(hostile: Dataset) -> None:
    other = replace(hostile, files=FlatStrings.of(["caf\udce9.jpg", "b.jpg", "c.jpg"]))
    tasks = label_studio(other, suggestions(other), prefix="/data/?d=")
    assert tasks[0]["data"]["image"] == "/data/?d=caf%E9.jpg"


def test_images_to_label_next_are_unsure_and_different() -> None:
    def seen(scores: list[list[float]]) -> Evidence:
        some = np.array(scores, dtype=np.float32)
        count = len(some)
        boxes = np.tile(np.array([0, 0, 9, 9], dtype=np.float32), (count, 1))
        return Evidence(boxes, some, some, np.full(count, 0.6), np.zeros((0, 2)), np.zeros((0, 1, 4)))

    certain, unsure, same, other = (
        seen([[0.99, 0.0]]),
        seen([[0.5, 0.1], [0.45, 0.1]]),
        seen([[0.5, 0.1], [0.46, 0.1]]),
        seen([[0.1, 0.5], [0.1, 0.44]]),
    )
    picked = [one.image for one in next_images({0: certain, 1: unsure, 2: same, 3: other}, 3)]
    assert picked[0] in (1, 2)
    assert picked[1] == 3  # as unsure as the first one's twin, but of another class
    assert next_images({}, 3) == []
    assert len(next_images({0: certain}, 3)) == 1
