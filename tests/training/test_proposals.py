"""Training and evaluation on proposals from elsewhere, from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from twostage.cli import main
from twostage.detector import Detector
from twostage.training import TrainOptions

FIELDS = ("proposals=sliding_window", "rpn_keep_train=60", "rpn_keep_test=40", "region_batch=16")
SETS = [f"--set=model.{field}" for field in FIELDS]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))


def call(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    code = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


@pytest.mark.slow
def test_fast_rcnn_on_computed_proposals(
    options: TrainOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = options.data, tmp_path / "run"
    common = ("--model", "fast_rcnn_tiny", "--epochs", 1, "--size", 64, "--workers", 0, "--quiet")
    found = call(capsys, "train", data, *common, *SETS, "--out", out)
    scored = call(capsys, "eval", data, "--weights", found["weights"])
    assert scored["metrics"]["AP"] == pytest.approx(found["metrics"]["AP"], abs=1e-6)
    detector = Detector.load(found["weights"])
    picture = next((Path(data) / "val").iterdir())
    detections = detector.predict(picture, conf=0.0)
    assert len(detections)
    call(capsys, "predict", picture, "--weights", found["weights"])
    call(capsys, "bench", "--weights", found["weights"], "--repeats", 1)

    # The same proposals from a file give the same training.
    call(capsys, "data", "proposals", data, "--source", "sliding_window", "--out", tmp_path / "p")
    given = ("--proposals", tmp_path / "p" / "sliding_window.safetensors")
    again = call(capsys, "train", data, *common, *SETS, *given, "--out", tmp_path / "again")
    for name, tensor in load_file(found["weights"]).items():
        np.testing.assert_array_equal(tensor, load_file(again["weights"])[name])
    assert call(capsys, "eval", data, "--weights", found["weights"], *given)["metrics"] == scored["metrics"]


def test_a_detector_of_a_files_proposals_asks_for_it(
    options: TrainOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"proposals": "file", "rpn_keep_test": 40}
    Detector.build("fast_rcnn_tiny", ["circle", "square", "triangle", "star", "cross"], **fields).save(
        tmp_path / "w.safetensors"
    )
    assert main(["eval", str(options.data), "--weights", str(tmp_path / "w.safetensors")]) == 2
    assert "--proposals" in capsys.readouterr().err
    assert main(["eval", str(options.data), "--weights", str(tmp_path / "w.safetensors"), "--proposals", "no"]) == 4
    assert "twostage data proposals" in capsys.readouterr().err


def test_a_networks_proposals_beside_others(
    options: TrainOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "w.safetensors"
    Detector.build("faster_rcnn_tiny", ["a", "b", "c", "d", "e"], size=64, rpn_keep_test=30).save(weights)
    report = call(
        capsys, "data", "proposals", options.data, "--source", "sliding_window", weights, "--split", "val", "--out",
        tmp_path / "p",
    )  # fmt: skip
    rows = report["splits"]["val"]
    assert set(rows) == {"sliding_window", str(weights)}
    assert 0 < rows[str(weights)]["proposals_an_image"] <= 30
    recall = rows["sliding_window"]["recall"]
    assert recall["50"]["0.5"] <= recall["2000"]["0.5"] <= recall["all"]["0.5"]
    names = {path.name for path in (tmp_path / "p").iterdir()}
    assert names == {"recall.json", "recall-val.png", "sliding_window.safetensors", "w.safetensors"}
    read = call(
        capsys, "data", "proposals", options.data, "--source", tmp_path / "p" / "w.safetensors", "--split", "val"
    )
    assert read["splits"]["val"][str(tmp_path / "p" / "w.safetensors")]["recall"] == rows[str(weights)]["recall"]


def test_two_sources_of_one_name_would_write_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    both = ["selective_search", "p/selective_search.safetensors"]
    assert main(["data", "proposals", "x", "--source", *both]) == 2
    assert "two are named 'selective_search'" in capsys.readouterr().err


def test_unknown_source(options: TrainOptions, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "proposals", str(options.data), "--source", "selective-search"]) == 2
    assert "Did you mean 'selective_search'" in capsys.readouterr().err
