"""`twostage eval` on a results file; on a detector, see test_verbs."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from detectors import lively
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from twostage.cli.why import Why, settings_note
from twostage.inspection.settings import MaskScores, Setting, Worth

KEYS = {
    "AP",
    "AP50",
    "AP75",
    "AP90",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
    "voc07",
    "voc12",
}


def test_perfect_results_score_one(shell: Callable, scenes: Path, perfect_results: Path) -> None:
    answer = shell("eval", scenes, "--predictions", perfect_results, "--json")
    assert answer.code == 0
    found = answer.json
    assert set(found["metrics"]) == KEYS
    assert found["metrics"]["AP"] == pytest.approx(1)
    assert found["metrics"]["voc07"] == pytest.approx(1)
    assert set(found["per_class"]) == {"circle", "square", "triangle", "star", "cross"}
    assert found["settings"]["split"] == "val"
    assert found["settings"]["precision"] is None, "of a file it is not known"


@pytest.mark.parametrize(("options", "precision"), [((), "fp32"), (("--precision", "bf16"), "bf16")])
def test_precision_is_fp32_unless_asked(
    shell: Callable, scenes: Path, weights: Path, options: tuple[str, ...], precision: str
) -> None:
    answer = shell("eval", scenes, "--weights", weights, "--device", "cpu", "--workers", 0, "--json", *options)
    assert answer.json["settings"]["precision"] == precision
    assert f"detections in {precision}\n" in answer.messages


def test_table_names_data_split_and_every_class(shell: Callable, scenes: Path, perfect_results: Path) -> None:
    answer = shell("eval", scenes, "--predictions", perfect_results)
    assert answer.code == 0
    assert "COCO layout" in answer.output
    assert "'val'" in answer.output
    assert all(name in answer.output for name in ("circle", "square", "triangle", "star", "cross"))


def test_results_file_needs_no_images(shell: Callable, scenes: Path, perfect_results: Path, tmp_path: Path) -> None:
    only = tmp_path / "instances_val.json"
    only.write_bytes((scenes / "annotations" / "instances_val.json").read_bytes())
    assert shell("eval", only, "--predictions", perfect_results, "--json").json["metrics"]["AP"] == pytest.approx(1)


def test_out_holds_metrics_plots_and_detections(
    shell: Callable, scenes: Path, perfect_results: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "report"
    assert shell("eval", scenes, "--predictions", perfect_results, "--out", out).code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"report.json", "report.txt", "results.json", "pr.png", "confusion.png", "labels.png"}
    again = shell("eval", scenes, "--predictions", out / "results.json", "--json").json
    assert again["metrics"] == json.loads((out / "report.json").read_text())["metrics"]


@pytest.mark.parametrize(("least", "code"), [("AP50=0.99", 0), ("AP50=1.01", 5)])
def test_fail_under(shell: Callable, scenes: Path, perfect_results: Path, least: str, code: int) -> None:
    answer = shell("eval", scenes, "--predictions", perfect_results, "--fail-under", least, "--json")
    assert answer.code == code
    assert answer.json["metrics"]["AP50"] == pytest.approx(1)
    assert ("AP50 is" in answer.messages) == (code == 5)


def test_several_thresholds_hold_together(shell: Callable, scenes: Path, perfect_results: Path) -> None:
    answer = shell("eval", scenes, "--predictions", perfect_results, "--fail-under", "AP=0.5", "AP50=1.1")
    assert answer.code == 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "--predictions", "{results}"], 3, "nowhere: does not exist"),
        (["{scenes}"], 2, "neither of weights and predictions"),
        (["{scenes}", "--predictions", "{results}", "--weights", "w"], 2, "both of weights and predictions"),
        (["{scenes}", "--predictions", "nowhere.json"], 3, "nowhere.json"),
        (["{scenes}", "--predictions", "{scenes}/annotations/instances_val.json"], 3, "instances_val.json"),
        (["{scenes}", "--predictions", "{results}", "--split", "vla"], 2, "Did you mean 'val'"),
        (["{scenes}", "--predictions", "{results}", "--metric", "voc08"], 2, "voc07"),
        (["{scenes}", "--predictions", "{results}", "--fail-under", "AP50"], 2, "METRIC=VALUE"),
        (["{scenes}", "--predictions", "{results}", "--fail-under", "APx=0.5"], 2, "there is no metric 'APx'"),
        (["{scenes}", "--predictions", "{results}", "--out", "{scenes}"], 2, "is not empty"),
        (["{scenes}", "--predictions", "{results}", "--out", "{results}"], 2, "is a file"),
        (["{scenes}", "--predictions", "{results}", "--out", "/proc/nowhere/out"], 2, "cannot be made"),
    ],
)
def test_bad_input_is_named(
    shell: Callable, scenes: Path, perfect_results: Path, arguments: list[str], code: int, message: str
) -> None:
    before = sorted(scenes.rglob("*"))
    answer = shell("eval", *(word.format(scenes=scenes, results=perfect_results) for word in arguments))
    assert answer.code == code
    assert message in answer.messages
    assert "Traceback" not in answer.messages
    assert "internal error" not in answer.messages
    assert sorted(scenes.rglob("*")) == before


def test_boxes_beyond_the_border_and_without_area_count_as_written(
    shell: Callable, scenes: Path, perfect_results: Path, tmp_path: Path
) -> None:
    """The reader clips and drops them for training; pycocotools takes boxes as written."""
    document = json.loads((scenes / "annotations" / "instances_val.json").read_text())
    for number, record in enumerate(document["annotations"]):
        x, y, width, height = record["bbox"]
        record["bbox"] = (
            [x - 1.5 * width, y, 2 * width, height],
            [x, y, 0, height],
            [500, 400, width, height],
            [x, y, width, height],
        )[number % 4]
    truth = tmp_path / "instances_val.json"
    truth.write_text(json.dumps(document))
    results = json.loads(perfect_results.read_text())
    for number, record in enumerate(results):
        record["score"] = 0.5 + number / 1000
    found = tmp_path / "results.json"
    found.write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = COCOeval(COCO(str(truth)), COCO(str(truth)).loadRes(str(found)), "bbox")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    metrics = shell("eval", truth, "--predictions", found, "--json").json["metrics"]
    keys = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    assert [metrics[key] for key in keys] == pytest.approx(oracle.stats.tolist(), abs=1e-9)
    assert 0.2 < metrics["AP50"] < 0.8
    left_out = shell("eval", truth, "--predictions", found, "--json", "--on-error", "skip").json
    assert left_out["settings"]["objects"] < len(document["annotations"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conf", "0.9"], "conf is for --weights"),
        (["--size", "64"], "size is for --weights"),
        (["--fail-under", "AP50=nan"], "METRIC=VALUE"),
        (["--metric", "voc07", "--fail-under", "AP50=0.1"], "AP50 is not computed"),
    ],
)
def test_options_without_effect_are_refused(
    shell: Callable, scenes: Path, perfect_results: Path, arguments: list[str], message: str
) -> None:
    answer = shell("eval", scenes, "--predictions", perfect_results, *arguments)
    assert answer.code == 2
    assert message in answer.messages


@pytest.mark.slow
def test_why_and_tune(shell: Callable, scenes: Path, weights: Path, tmp_path: Path) -> None:
    words = ("eval", scenes, "--weights", weights, "--device", "cpu", "--workers", 0)
    tuned = tmp_path / "tuned.yaml"
    answer = shell(*words, "--why", "--tune", tuned, "--json")
    assert answer.code == 0, answer.messages
    why = answer.json["why"]
    assert {"recall", "stages", "causes", "objects", "tide", "settings"} == set(why)
    assert len(why["objects"]) == sum(cause["objects"] for cause in why["causes"].values())
    assert {"fields", "AP", "AP50", "gain", "milliseconds"} == set(why["settings"][0])
    assert "Missed: " in answer.messages
    assert "Settings, each measured on this split" in answer.messages
    again = shell(*words, "--config", tuned, "--json")
    assert again.code == 0, again.messages
    expected = answer.json["tuned"][-1]["AP"] if answer.json["tuned"] else answer.json["metrics"]["AP"]
    assert again.json["metrics"]["AP"] == pytest.approx(expected, abs=1e-9)
    assert shell(*words, "--tune", tuned).code == 2, "nothing is overwritten"


@pytest.mark.slow
def test_why_and_tune_of_masks(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    """TIDE's types and what settings are worth are of masks too, in the table, the JSON, the page and the file."""
    from twostage.data.recognise import open_dataset
    from twostage.evaluation.results import Results
    from twostage.evaluation.tide import tide

    detector = tmp_path / "masks.safetensors"
    lively("mask_rcnn_tiny_fpn", score_threshold=0.1).save(detector)
    words = ("eval", scenes, "--weights", detector, "--device", "cpu", "--workers", 0)
    out, tuned = tmp_path / "out", tmp_path / "tuned.yaml"
    answer = shell(*words, "--why", "--tune", tuned, "--out", out, "--json")
    assert answer.code == 0, answer.messages
    why = answer.json["why"]
    dataset = open_dataset(scenes, split="val", repair=False)
    results = Results.from_coco(out / "results.json", dataset)
    for masks, found in ((False, why["tide"]), (True, why["tide"]["segm"])):
        expected = tide(dataset, results, masks=masks)
        assert found["counts"] == expected.counts
        assert found["AP50"] == pytest.approx(expected.ap50, abs=1e-9)
        assert found["dAP"] == pytest.approx(expected.dap, abs=1e-9)
    assert why["tide"]["counts"] != why["tide"]["segm"]["counts"]
    assert all({"AP", "AP50", "gain"} == set(row["segm"]) for row in why["settings"])
    page = (out / "why.html").read_text()
    scores = f"of masks {answer.json['segm']['metrics']['AP']:.4f} now"
    for text in (answer.messages, page):
        assert all(words in text for words in ("mask errors", "mask AP50 lost", "mask points", scores))
    assert "of masks" in tuned.read_text()
    assert all("segm" in step for step in answer.json["tuned"])


def test_settings_of_an_exported_file_are_said_to_be_of_boxes_alone() -> None:
    """Such a file computes masks for its own settings alone, of which TIDE has them."""
    now = Setting({}, 0.5, 0.7, 1.0)
    why = Why(None, {}, None, cast(Any, "of masks"), Worth(now, ()))  # type: ignore[arg-type]
    assert "of boxes alone, as an exported file computes no masks for other settings" in settings_note(why)
    assert "alone" not in settings_note(replace(why, mask_tide=None))
    assert "alone" not in settings_note(replace(why, worth=Worth(now._replace(segm=MaskScores(0.4, 0.6)), ())))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--predictions", "{results}"), "not with a results file"),
        (("--weights", "{weights}", "--flip"), "not with several views"),
    ],
)
def test_why_needs_a_detectors_own_prediction(
    shell: Callable, scenes: Path, weights: Path, perfect_results: Path, words: tuple[str, ...], reason: str
) -> None:
    given = [word.format(results=perfect_results, weights=weights) for word in words]
    answer = shell("eval", scenes, *given, "--why")
    assert (answer.code, reason in answer.messages) == (2, True), answer.messages
