"""Cross-validation where the data have no validation split."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.errors import UsageError
from twostage.training import train
from twostage.training.cross_validation import best_share, split_into
from twostage.training.options import TrainOptions
from twostage.weights.file import load_weights


@pytest.fixture
def options(scenes: Path, tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        scenes,
        model="faster_rcnn_tiny_fpn",
        size=64,
        epochs=2,
        batch=4,
        workers=0,
        quiet=True,
        folds=2,
        out=tmp_path / "run",
    )


@given(st.integers(2, 60), st.integers(2, 9), st.integers(0, 5))
def test_every_image_is_in_one_fold(images: int, folds: int, seed: int) -> None:
    if images < folds:
        with pytest.raises(UsageError, match=f"there are {images} images"):
            split_into(images, folds, seed)
        return
    parts = split_into(images, folds, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_best_share_is_that_of_the_mean_of_all_folds() -> None:
    """The first fold alone would choose 0.5, the second 1; together 0.75 is best."""
    first, second = [(0.5, 0.6), (0.75, 0.55), (1.0, 0.3)], [(0.5, 0.2), (0.75, 0.45), (1.0, 0.5)]
    assert best_share([first]) == 0.5
    assert best_share([second]) == 1.0
    assert best_share([first, second]) == 0.75


def test_folds_are_scored_on_what_they_have_not_seen_and_the_last_run_has_all_images(options: TrainOptions) -> None:
    result = train(options)
    out = Path(result["out"])
    assert sorted(path.name for path in out.iterdir() if path.is_dir() and path.name != "state") == [
        "all",
        "fold-1",
        "fold-2",
        "weights",
    ]
    summary = json.loads((out / "cross_validation.json").read_text())
    assert summary["metrics"]["AP"] == pytest.approx(np.mean(summary["AP"]))
    assert result["metrics"] == summary["metrics"]
    images = len(open_dataset(options.data, split="train"))
    seen = [json.loads((out / name / "env.json").read_text()) for name in ("fold-1", "fold-2", "all")]
    assert len(seen) == 3
    card, _ = load_weights(Path(result["weights"]))
    assert card.names == open_dataset(options.data, split="train").names
    scored = [line for name in ("fold-1", "fold-2") for line in (out / name / "metrics.csv").read_text().splitlines()]
    assert images > 2
    assert scored


def test_few_images_without_a_validation_split_are_cross_validated(
    options: TrainOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_scenes(tmp_path / "data", train=6, val=1, seed=0)
    (data / "annotations" / "instances_val.json").unlink()
    shutil.rmtree(data / "val")
    with caplog.at_level(logging.INFO, "twostage"):
        result = train(replace(options, data=data, folds=None, epochs=1))
    assert "no split to validate on: cross-validation with 3 folds" in caplog.text
    assert json.loads((Path(result["out"]) / "cross_validation.json").read_text())["folds"] == 3


def test_a_broken_cross_validation_goes_on(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(replace(options, out=options.out.with_name("whole")))
    from twostage.training import cross_validation

    calls = []

    def broken(own: TrainOptions, **given: object) -> dict:
        calls.append(own.out or own.resume)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(own, **given)

    run = cross_validation.run
    monkeypatch.setattr(cross_validation, "run", broken)
    with pytest.raises(KeyboardInterrupt):
        train(options)
    again = train(TrainOptions(resume=options.out, quiet=True))
    assert [path.name for path in calls] == ["fold-1", "fold-2", "fold-2", "all"]
    assert again["metrics"] == whole["metrics"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"val_split": "val"}, "folds and val_split 'val'"),
        ({"patience": 2}, "patience"),
        ({"scheme": "alternating"}, "folds are for joint training"),
        ({"folds": 1}, "folds"),
    ],
)
def test_options_that_contradict_folds(options: TrainOptions, given: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(options, **given)
