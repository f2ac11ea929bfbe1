"""What more images would bring."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twostage.errors import UsageError
from twostage.training import train
from twostage.training.learning_curve import expected_with_twice
from twostage.training.options import TrainOptions


@pytest.fixture
def options(scenes: Path, tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        scenes, model="faster_rcnn_tiny_fpn", size=64, epochs=1, batch=4, workers=0, quiet=True, out=tmp_path / "run"
    )


@given(st.floats(0.05, 0.9), st.floats(0.0, 0.8), st.integers(2, 500))
def test_an_error_that_is_a_power_of_the_images_is_extrapolated_exactly(
    error: float, exponent: float, quarter: int
) -> None:
    images = [quarter, 2 * quarter, 4 * quarter]
    ap = [1 - error * (n / quarter) ** -exponent for n in images]
    assert expected_with_twice(images, ap) == pytest.approx([1 - error * 8**-exponent] * 3, abs=1e-6)


def test_twice_the_images_are_not_expected_to_harm() -> None:
    assert expected_with_twice([10, 20, 40], [0.6, 0.5, 0.4]) == pytest.approx([0.4] * 3)


def test_the_range_is_that_of_the_lines_through_two_points() -> None:
    """The error halves, and then stays at 0.2: it would be 0.1 by the first step, 0.2 by the last."""
    expected, low, high = expected_with_twice([10, 20, 40], [0.6, 0.8, 0.8])
    assert [low, high] == pytest.approx([0.8, 0.9])
    assert expected == pytest.approx(1 - 0.2 * 2**-0.5)


def test_parts_of_the_images_are_trained_as_long_and_scored_on_the_same(options: TrainOptions) -> None:
    result = train(replace(options, curve=True))
    out = Path(result["out"])
    curve = json.loads((out / "learning_curve.json").read_text())
    quarter, half, whole = curve["images"]
    assert [half, whole] == [2 * quarter, 4 * quarter]
    assert curve["AP"][-1] == result["metrics"]["AP"]
    each = [json.loads((out / "curve" / str(n) / "result.json").read_text()) for n in (quarter, half)]
    assert [one["metrics"]["AP"] for one in each] == curve["AP"][:2]
    assert {one["steps"] for one in each} == {result["steps"]}
    assert (
        f"twice as many, {2 * whole}, probably about {curve['expected']:.3f} by a line through these few points, "
        f"{curve['low']:.3f} to {curve['high']:.3f}" in (out / "report.txt").read_text()
    )
    assert (out / "learning_curve.png").stat().st_size > 1000


def test_folds_have_a_curve_each(options: TrainOptions) -> None:
    result = train(replace(options, curve=True, folds=2))
    out = Path(result["out"])
    found = [sorted(int(path.name) for path in (out / f"fold-{k}" / "curve").iterdir()) for k in (1, 2)]
    curve = json.loads((out / "learning_curve.json").read_text())
    assert np.mean(found, axis=0).round().tolist() == curve["images"][:2]
    assert curve["AP"][-1] == pytest.approx(result["metrics"]["AP"])


def test_a_broken_curve_goes_on(
    options: TrainOptions, second_run_stops: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(replace(options, curve=True))
    assert f"Continue with: twostage train --resume {options.out}\n" in caplog.text
    again = train(TrainOptions(resume=options.out, quiet=True))
    whole = train(replace(options, curve=True, out=options.out.with_name("whole")))
    quarter, half = (str(n) for n in whole["learning_curve"]["images"][:2])
    assert second_run_stops == [quarter, half, half, quarter, half]
    assert again["learning_curve"] == whole["learning_curve"]


@pytest.mark.parametrize("folds", [None, 2])
def test_a_broken_curve_goes_on_with_the_images_where_they_are(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folds: int | None
) -> None:
    """--images is not given again, as for any resumed run; the data may have moved."""
    data, images = tmp_path / "data", tmp_path / "images"
    shutil.copytree(options.data / "annotations", data / "annotations")
    for split in ("train", "val"):
        shutil.copytree(options.data / split, images, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr("twostage.training.learning_curve.begin_or_resume", stop)
        with pytest.raises(KeyboardInterrupt):
            train(replace(options, data=data, images=images, folds=folds, curve=True))
    moved = data.rename(tmp_path / "moved")
    assert "learning_curve" in train(TrainOptions(moved, resume=options.out, quiet=True))


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_curve_needs_a_quarter_of_the_images(options: TrainOptions, few: Path) -> None:
    """2 images: said before anything is trained."""
    with pytest.raises(UsageError, match="these are 2: leave it out"):
        train(replace(options, data=few, curve=True))
    assert not options.out.exists()


def test_a_resumed_curve_is_reported_once(options: TrainOptions) -> None:
    out = Path(train(replace(options, curve=True, folds=2))["out"])
    train(TrainOptions(resume=out, quiet=True))
    assert (out / "report.txt").read_text().count("images to learn from") == 1


def test_parts_are_validated_as_often_as_the_whole(options: TrainOptions) -> None:
    out = Path(train(replace(options, curve=True, epochs=4, eval_every=1))["out"])
    rows = [(folder / "metrics.csv").read_text() for folder in (out, out / "curve" / "4")]
    counts = [sum(bool(row["AP"]) for row in csv.DictReader(text.splitlines())) for text in rows]
    assert counts == [4, 4]


def test_parts_of_a_short_training_are_validated_as_often(options: TrainOptions) -> None:
    """Their many epochs were, and the best of several AP compared with the only one of the whole."""
    out = Path(train(replace(options, curve=True))["out"])
    rows = [(folder / "metrics.csv").read_text() for folder in (out, out / "curve" / "4")]
    counts = [sum(bool(row["AP"]) for row in csv.DictReader(text.splitlines())) for text in rows]
    assert counts == [1, 1]


def test_images_that_come_twice_count_in_the_length_of_each_part(options: TrainOptions) -> None:
    """Rare classes come more often in the whole, and a part was trained too short."""
    out = Path(train(replace(options, curve=True, batch=1, epochs=6, repeat_threshold=1.0, val_split=None))["out"])
    steps = [json.loads((folder / "result.json").read_text())["steps"] for folder in (out / "curve").iterdir()]
    whole = int(list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))[-1]["step"])
    assert steps == pytest.approx([whole, whole], rel=0.05)


def test_a_curve_needs_objects_to_be_scored_on(options: TrainOptions, tmp_path: Path) -> None:
    """AP is -1 without them, and no number of images changes that."""
    data = tmp_path / "data"
    shutil.copytree(options.data, data)
    file = data / "annotations" / "instances_val.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    with pytest.raises(UsageError, match=r"'val' of .* has no object that counts"):
        train(replace(options, data=data, curve=True))
    assert not options.out.exists()


def test_a_curve_needs_a_validation(options: TrainOptions) -> None:
    with pytest.raises(UsageError, match="curve compares AP"):
        replace(options, curve=True, val_split="none")
