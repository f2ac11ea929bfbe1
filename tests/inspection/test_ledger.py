"""The account of a data set adds up, and every AP of a setting is the one that evaluation gives with it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectors import lively

from twostage.data.dataset import Dataset, select_images, without_objects
from twostage.data.flat import RLE, FlatMasks, Mask
from twostage.data.scenes import HARD, NAMES, make_scene
from twostage.detector import Detector
from twostage.evaluation.coco import coco_scores
from twostage.inspection.causes import Cause, Step
from twostage.inspection.ledger import Ledger, ledger
from twostage.inspection.settings import candidates, worth
from twostage.inspection.tune import LEAST, tune
from twostage.models.configure import configure
from twostage.ops.masks import decode, encode

FASTER = "faster_rcnn_tiny_fpn"
FIELDS = {"score_threshold": 0.1, "max_det": 20, "max_size": 160}


@pytest.fixture(scope="module")
def dataset(detector: Detector) -> Dataset:
    """Scenes, with objects near some of what random weights detect, and with those of the scenes."""
    generator = np.random.default_rng(0)
    loose = lively(FASTER, **(FIELDS | {"score_threshold": 0.05, "max_det": 60, "rpn_keep_test": 60}))
    samples = []
    for number in range(4):
        scene = make_scene(0, 0, number, style=HARD)
        found = loose.predict(scene.image, conf=0.05)
        rows = np.arange(0, len(found), 3)
        boxes = found.boxes[rows] + generator.normal(size=(len(rows), 4)) * 3
        large = ((boxes[:, 2:] - boxes[:, :2]) > 4).all(axis=1)
        labels = found.class_ids[rows]
        samples.append((scene.image, boxes[large], labels[large].tolist()))
    return Dataset.from_samples(samples, list(NAMES), on_error="skip")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    lively(FASTER, **FIELDS).save(path)
    return path


@pytest.fixture(scope="module")
def detector(saved: Path) -> Detector:
    return Detector.load(saved, device="cpu")


@pytest.fixture(scope="module")
def seen(detector: Detector, dataset: Dataset) -> Ledger:
    return ledger(detector.runner, dataset, detector.config.postprocess)


def test_the_causes_add_up_to_what_recall_lacks(seen: Ledger, detector: Detector, dataset: Dataset) -> None:
    results = detector.detect_dataset(dataset, workers=0)
    recall = coco_scores(dataset, results, ious=(0.5,)).recall[0, :, 0, -1]
    counted = np.bincount(dataset.labels, minlength=len(dataset.names))
    assert seen.recall == pytest.approx((recall.clip(min=0) * counted).sum() / counted.sum(), abs=1e-9)
    assert sum(seen.causes().values()) / counted.sum() == pytest.approx(1 - seen.recall)
    rows = [one.row for one in seen.missed]
    assert len(set(rows)) == len(rows)
    assert not seen.found[rows].any()
    assert seen.found.sum() + len(rows) == counted.sum()


def test_it_is_written_as_json_and_in_words(seen: Ledger, detector: Detector, dataset: Dataset) -> None:
    costs = seen.costs(detector.detect_dataset(dataset, workers=0))
    assert costs.keys() == seen.causes().keys()
    assert all(cost["AP50"] >= -1e-9 for cost in costs.values()), "fewer objects to find"
    content = json.loads(json.dumps(seen.to_dict(costs)))
    assert content["recall"] == seen.recall
    assert set(content["stages"]) == {"all", *dataset.names, "small", "medium", "large"}
    assert list(content["stages"]["all"]) == [str(step) for step in Step]
    needing = sum(one["needs_training"] for one in content["objects"])
    assert sum(cause["need_training"] for cause in content["causes"].values()) == needing
    assert sum(cause["objects"] for cause in content["causes"].values()) == len(content["objects"]) == len(seen.missed)
    for one, missed in zip(content["objects"], seen.missed, strict=True):
        assert one["cause"] == missed.miss.cause
        assert one["label"] == dataset.names[dataset.labels[missed.row]]
        np.testing.assert_allclose(one["truth"], dataset.boxes[missed.row])
        assert bool(one["changes"]) != bool(one["reason"])
        assert [change["field"] for change in one["changes"]] == (
            [change.field for change in missed.remedy.changes] if missed.remedy.keeps else []
        )


def test_a_stricter_run_misses_more(seen: Ledger, detector: Detector, dataset: Dataset) -> None:
    few = ledger(detector.runner, dataset, detector.postprocess(0.5, None, 3))
    assert len(few.missed) > len(seen.missed)
    assert few.reached[Step.DECODED].sum() == seen.reached[Step.DECODED].sum()
    assert few.causes().keys() - {Cause.NO_ANCHOR, Cause.BELOW_TOP_K, Cause.RPN_NMS, Cause.BELOW_TOP_N}


def test_crowds_and_difficult_objects_have_no_account(detector: Detector, dataset: Dataset) -> None:
    difficult = replace(dataset, difficult=np.ones(len(dataset.labels), dtype=bool))
    none = ledger(detector.runner, difficult, detector.config.postprocess)
    assert (len(none.missed), none.recall) == (0, -1.0)
    assert set(none.funnel()["all"].values()) == {-1.0}


@pytest.mark.slow
def test_every_ap_is_that_of_an_evaluation_with_the_setting(detector: Detector, dataset: Dataset, saved: Path) -> None:
    post = detector.postprocess(None, None, 100)
    trials = list(candidates(detector.config, post))
    found = worth(detector.runner, dataset, post, trials)
    assert [one.fields for one in found.others] == trials
    assert len({one.AP for one in found.others}) > 5
    now = coco_scores(dataset, detector.detect_dataset(dataset, workers=0, max_det=100)).summary()
    assert pytest.approx(now["AP"], abs=1e-9) == found.now.AP
    for one in found.others:
        other = Detector.load(saved, device="cpu", **{"postprocess.max_det": 100, **one.fields})
        limits = (1, 10, max(100, other.config.postprocess.max_det))
        results = other.detect_dataset(dataset, workers=0)
        expected = coco_scores(dataset, results, max_detections=limits).summary()
        assert pytest.approx(expected["AP"], abs=1e-9) == one.AP, one.fields
        assert pytest.approx(expected["AP50"], abs=1e-9) == one.AP50, one.fields


def test_every_ap_of_masks_is_that_of_an_evaluation_with_the_setting(tmp_path: Path) -> None:
    """Of objects whose boxes are those of some detections, and whose masks are 4 pixels beside theirs."""
    lively("mask_rcnn_tiny_fpn", **FIELDS).save(tmp_path / "w.safetensors")
    detector = Detector.load(tmp_path / "w.safetensors", device="cpu")
    images = [make_scene(0, 0, number, style=HARD).image for number in range(3)]
    samples, masks = [], []
    for image in images:
        some = detector.predict(image, conf=0.1)[::2]
        assert some.masks is not None
        samples.append((image, some.boxes, some.class_ids.tolist()))
        moved = np.roll(decode(some.masks), 4, axis=2)
        masks += [Mask(RLE, rle["counts"]) for rle in encode(moved)]
    dataset = replace(Dataset.from_samples(samples, list(NAMES)), masks=FlatMasks.of(masks))
    post = detector.postprocess(None, None, 100)
    trials = [{"postprocess.nms": 0.7}, {"rpn.nms": 0.9}, {"proposals.keep_test": 10}]
    found = worth(detector.runner, dataset, post, trials)
    assert len({one.segm for one in (found.now, *found.others)}) == 4
    for one in (found.now, *found.others):
        other = Detector.load(tmp_path / "w.safetensors", device="cpu", **{"postprocess.max_det": 100, **one.fields})
        expected = coco_scores(dataset, other.detect_dataset(dataset, workers=0), masks=True).summary()
        assert one.segm is not None
        assert one.segm == pytest.approx((expected["AP"], expected["AP50"]), abs=1e-9)
        assert one.segm.AP != one.AP
    rows = found.to_list()
    assert [row["segm"]["gain"] for row in rows] == [one.segm.AP - found.now.segm.AP for one in found.others]  # type: ignore[union-attr]
    without = worth(detector.runner, replace(dataset, masks=None), post, trials[:1])
    assert (without.now.segm, without.now.AP) == (None, found.now.AP)
    assert "segm" not in without.to_list()[0]


@pytest.mark.slow
def test_what_pays_together_gains_at_every_step(detector: Detector, dataset: Dataset) -> None:
    one = select_images(dataset, np.arange(2))
    tuned = tune(detector.runner, one, detector.postprocess(None, None, 100))
    before = tuned.singles.now.AP
    for step in tuned.steps:
        assert step.AP - before >= LEAST
        before = step.AP
    names = [name for step in tuned.steps for name in step.fields]
    assert set(tuned.fields) == set(names)


@pytest.mark.parametrize("name", ["retinanet_tiny_fpn", "fast_rcnn_tiny", "rcnn_tiny"])
def test_families_have_the_settings_that_they_read(name: str, dataset: Dataset) -> None:
    detector = lively(name, **FIELDS)
    fields = {field for trial in candidates(detector.config, detector.config.postprocess) for field in trial}
    assert not any(field.startswith("rpn.") for field in fields)
    assert ("retinanet.top" in fields) == (name == "retinanet_tiny_fpn")
    some = select_images(dataset, np.arange(1))
    found = worth(detector.runner, some, detector.config.postprocess, [{"postprocess.nms": 0.9}])
    results = detector.detect_dataset(some, workers=0, iou=0.9)
    assert pytest.approx(coco_scores(some, results).summary()["AP"], abs=1e-9) == found.others[0].AP


def test_few_proposals_are_not_tried_with_none(detector: Detector) -> None:
    """A quarter of 3 would be 0, which no detector takes."""
    config = configure(detector.config, {"proposals.keep_test": 3, "rpn.top_test": 1})
    tried = [value for trial in candidates(config, config.postprocess) for value in trial.items()]
    assert [value for field, value in tried if field == "proposals.keep_test"] == [1, 6, 12]
    assert [value for field, value in tried if field == "rpn.top_test"] == [2, 4]


def test_without_objects_keeps_the_others(dataset: Dataset) -> None:
    rows = [0, 3, len(dataset.labels) - 1]
    left = without_objects(dataset, rows)
    kept = np.setdiff1d(np.arange(len(dataset.labels)), rows)
    np.testing.assert_array_equal(left.annotation_ids, dataset.annotation_ids[kept])
    np.testing.assert_array_equal(left.image_indices, dataset.image_indices[kept])
    assert len(left) == len(dataset)
