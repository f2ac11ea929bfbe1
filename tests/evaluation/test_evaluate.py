"""The report: its JSON, its table, its thresholds, its images."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_tools

from twostage.errors import DataError, ThresholdError, UsageError
from twostage.evaluation.evaluate import evaluate
from twostage.evaluation.results import Accumulator, Results

COCO_KEYS = {"AP", "AP50", "AP75", "AP90", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}


@pytest.fixture
def case(make_dataset):
    truth = [[0, 0, 50, 50], [100, 100, 150, 150], [200, 200, 250, 250]]
    dataset = make_dataset([truth, []], [[0, 0, 1], []], names=("cat", "dog", "bird"))
    boxes = np.array([truth[0], [300, 300, 350, 350], truth[1]], float)
    return dataset, Results(np.zeros(3, np.int64), boxes, np.array([0.9, 0.7, 0.6]), np.zeros(3, np.int64))


def test_the_json_has_exactly_these_keys_and_no_nan(case):
    report = evaluate(*case).to_dict()
    assert set(report) == {"metrics", "per_class", "settings"}
    assert set(report["metrics"]) == COCO_KEYS | {"voc07", "voc12"}
    assert set(report["per_class"]) == {"cat", "dog", "bird"}
    for values in (report["metrics"], *report["per_class"].values()):
        assert set(values) == set(report["metrics"])
        assert all(value == -1 or 0 <= value <= 1 for value in values.values())
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_numbers_by_hand(case):
    report = evaluate(*case).to_dict()
    assert report["per_class"]["cat"]["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert report["per_class"]["cat"]["voc12"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert report["per_class"]["cat"]["voc07"] == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert report["per_class"]["dog"]["AP"] == 0
    assert set(report["per_class"]["bird"].values()) == {-1.0}
    assert report["metrics"]["voc12"] == pytest.approx((0.5 + 0.5 * 2 / 3) / 2)
    settings = report["settings"]
    assert settings["objects_per_class"] == {"cat": 2, "dog": 1, "bird": 0}
    assert (settings["images"], settings["detections"], settings["lowest_score"]) == (2, 3, 0.6)
    assert settings["score_floor"] is None
    assert settings["max_detections"] == 100


@pytest.mark.parametrize(
    ("metric", "keys"),
    [("coco", COCO_KEYS), ("voc07", {"voc07"}), ("voc12", {"voc12"})],
    ids=["coco", "voc07", "voc12"],
)
def test_one_metric_alone(case, metric, keys):
    report = evaluate(*case, metric=metric)
    assert set(report.to_dict()["metrics"]) == set(report.to_dict()["per_class"]["cat"]) == keys
    assert all(key in report.table() for key in keys)


def test_an_unknown_metric_names_the_nearest(case):
    with pytest.raises(UsageError, match="voc07"):
        evaluate(*case, metric="voc7")


def test_the_table_says_what_the_numbers_mean(case):
    table = evaluate(*case, score_floor=0.05).table()
    for words in (
        "0.50:0.05:0.95",
        "100 detections",
        "11-point",
        "inclusive pixels",
        "below 0.05",
        "2 images, 3 objects",
    ):
        assert words in table
    lines = {line.split()[0]: line for line in table.splitlines() if line}
    assert f"{(51 + 50 * 2 / 3) / 101:.3f}" in lines["cat"]
    assert "no objects of: bird" in table
    assert all(len(line) <= 120 for line in table.splitlines())


def test_masks_are_scored_where_both_sides_have_them(make_dataset):
    plane = np.zeros((400, 400), np.uint8, order="F")
    plane[:50, :50] = 1
    half = plane.copy(order="F")
    half[:20] = 0
    dataset = make_dataset([[[0, 0, 50, 50]]], [[0]], masks=[mask_tools.encode(plane)])
    gathered = Accumulator()
    box = np.array([[0.0, 0, 50, 50]])
    gathered.add(0, box, np.array([0.9]), np.array([0]), [mask_tools.encode(half)])
    report = evaluate(dataset, gathered.results()).to_dict()
    assert set(report["segm"]) == {"metrics", "per_class", "settings"}
    assert set(report["segm"]["metrics"]) == set(report["metrics"])
    assert report["metrics"]["AP75"] == 1
    assert report["segm"]["metrics"]["AP50"] == report["segm"]["metrics"]["voc12"] == 1
    assert report["segm"]["metrics"]["AP75"] == 0
    assert "masks" in evaluate(dataset, gathered.results()).table()
    assert "segm" not in evaluate(dataset, gathered.results(), masks=False).to_dict()


def test_masks_asked_for_and_not_there(case):
    with pytest.raises(DataError, match="No masks"):
        evaluate(*case, masks=True)


@pytest.mark.parametrize(("image", "class_id", "words"), [(2, 0, "image 2"), (0, 3, "class 3"), (0, -1, "class -1")])
def test_results_of_another_data_set_are_refused(case, image, class_id, words):
    strange = Results(np.array([image]), np.zeros((1, 4)), np.array([0.5]), np.array([class_id]))
    with pytest.raises(DataError, match=words):
        evaluate(case[0], strange)


def test_thresholds(case):
    report = evaluate(*case)
    report.require({"AP50": 0.4, "voc12": 0.4})
    with pytest.raises(ThresholdError, match=r"AP50 is 0\.4175, below 0\.6"):
        report.require({"AP50": 0.6})
    with pytest.raises(ThresholdError, match="APl"):
        report.require({"APl": 0.0})
    with pytest.raises(UsageError, match="AP50"):
        report.require({"mAP50": 0.6})


def test_plots_are_images(case, tmp_path):
    paths = evaluate(*case).write_plots(tmp_path / "new" / "folder")
    assert sorted(path.name for path in paths) == ["confusion.png", "labels.png", "pr.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 400
    assert sorted(p.name for p in paths[0].parent.iterdir()) == ["confusion.png", "labels.png", "pr.png"]


def test_an_empty_split_can_be_reported(make_dataset, tmp_path):
    dataset = make_dataset([[], []], [[], []], names=("cat", "dog"))
    report = evaluate(dataset, Accumulator().results())
    assert set(report.to_dict()["metrics"].values()) == {-1.0}
    assert report.table()
    assert len(report.write_plots(tmp_path)) == 3


def test_more_detections_than_100_count_where_they_are_asked_for(make_dataset):
    """300 objects of one class in an image (detectron2#3359)."""
    boxes = [[4 + 16 * c, 4 + 16 * r, 14 + 16 * c, 14 + 16 * r] for r in range(15) for c in range(20)]
    data = make_dataset([boxes], [[0] * 300], names=("pig",), size=(250, 330))
    gathered = Accumulator()
    gathered.add(0, np.array(boxes, float), np.linspace(0.9, 0.5, 300), np.zeros(300, int))
    results = gathered.results()
    by_definition = evaluate(data, results)
    assert by_definition.metrics["AP"] < 0.35
    assert "1 images hold more than 100 objects of one class" in by_definition.table()
    more = evaluate(data, results, max_detections=300)
    assert more.metrics["AP"] == pytest.approx(1)
    assert more.metrics["AR300"] == pytest.approx(1)
    assert "at most 300 detections" in more.table()
    assert "larger --max-det" not in more.table()
    fewer = evaluate(data, results, max_detections=50)
    assert fewer.metrics == by_definition.metrics
