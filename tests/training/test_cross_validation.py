"""Cross-validation where the data have no validation split."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from twostage.data.dataset import Dataset, select_images
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.errors import DataError, UsageError
from twostage.training import batch_size, cross_validation, run, train
from twostage.training.cross_validation import (
    at_best_share,
    best_share,
    classes_of_one_fold,
    fold_parts,
    fold_splits,
    keep_parts,
    mean_of_defined,
    resumed_splits,
)
from twostage.training.options import TrainOptions
from twostage.training.splits import Splits
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


@given(st.lists(st.integers(-1, 3), min_size=2, max_size=40), st.integers(2, 9), st.integers(0, 5))
def test_every_image_is_in_one_fold_and_every_class_in_as_many_as_can_be(
    labels: list[int], folds: int, seed: int
) -> None:
    """Images of one class each, or of none (-1)."""
    samples = [(np.zeros((4, 4, 3), np.uint8), [[0, 0, 3, 3]] * (k >= 0), [k] * (k >= 0)) for k in labels]
    dataset = Dataset.from_samples(samples, ["a", "b", "c", "d"])
    if len(labels) < folds:
        with pytest.raises(UsageError, match=f"more than the {len(labels)} images"):
            fold_splits(dataset, folds, seed)
        return
    splits = fold_splits(dataset, folds, seed)
    parts = [one.val.image_ids.tolist() for one in splits]
    assert sorted(image for part in parts for image in part) == sorted(dataset.image_ids.tolist())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for one, part in zip(splits, parts, strict=True):
        assert sorted([*one.train.image_ids.tolist(), *part]) == sorted(dataset.image_ids.tolist())
    for k in set(labels) - {-1}:
        counts = [int((one.val.labels == k).sum()) for one in splits]
        assert max(counts) - min(counts) <= 1


def test_copies_of_an_image_are_in_the_same_fold(tmp_path: Path) -> None:
    """Else the score would be of images that were learned."""
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    for number, path in enumerate(paths):  # two of each of the first three
        Image.fromarray(np.full((8, 8, 3), 20 * (number % 3 if number < 6 else number), np.uint8)).save(path)
    dataset = Dataset.from_samples([(path, [[0, 0, 5, 5]], [0]) for path in paths], ["a"])
    for folds in (2, 3, 6):
        parts = [part.tolist() for part in fold_parts(dataset, folds, 0)]
        assert sorted(index for part in parts for index in part) == list(range(9))
        assert all(parts)
        assert all((number in part) == (number + 3 in part) for part in parts for number in range(3))
    with pytest.raises(UsageError, match="more than the 6 images, copies not counted"):
        fold_parts(dataset, 7, 0)


def test_folds_of_a_begun_training_follow_the_names_of_its_images(tmp_path: Path) -> None:
    """Whatever was done to the labels, and in whatever order the images come."""
    samples = [(np.zeros((4, 4, 3), np.uint8), [[0, 0, 3, 3]], [k % 2]) for k in range(6)]
    images = Dataset.from_samples(samples, ["a", "b"])
    assert names_of(resumed_splits(tmp_path, images, 3, 0)) == names_of(fold_splits(images, 3, 0))
    folds = fold_splits(images, 3, 0)
    keep_parts(tmp_path, folds)
    mended = replace(images, labels=np.array([0, 0, 0, 0, 1, 1]))
    assert names_of(fold_splits(mended, 3, 0)) != names_of(folds)
    turned = select_images(mended, np.arange(6)[::-1].copy())
    assert names_of(resumed_splits(tmp_path, turned, 3, 0)) == names_of(folds)
    with pytest.raises(DataError, match="has 5 images now, and had 6 when the folds"):
        resumed_splits(tmp_path, select_images(images, np.arange(5)), 3, 0)


def names_of(folds: list[Splits]) -> list[set[str]]:
    """The images that each fold is scored on."""
    return [{one.val.file_name(index) for index in range(len(one.val))} for one in folds]


def test_classes_that_one_fold_alone_has_are_named() -> None:
    """Three images in three folds; what is difficult in the last is not learned from it."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    samples = [(pixels, [[0, 0, 4, 4]] * len(labels), labels) for labels in ([0, 1, 2], [0], [0, 1])]
    images = Dataset.from_samples(samples, ["everywhere", "difficult elsewhere", "once"])
    assert classes_of_one_fold(fold_splits(images, 3, 0)) == ["once"]
    images = replace(images, difficult=np.array([False, False, False, False, False, True]))
    assert classes_of_one_fold(fold_splits(images, 3, 0)) == ["difficult elsewhere", "once"]


def test_the_best_share_is_that_of_the_mean_of_all_folds() -> None:
    """The first fold alone would choose 0.5, the second 1; together 0.75 is best."""
    first, second = [(0.5, 0.6), (0.75, 0.55), (1.0, 0.3)], [(0.5, 0.2), (0.75, 0.45), (1.0, 0.5)]
    assert best_share([first]) == 0.5
    assert best_share([second]) == 1.0
    assert best_share([first, second]) == 0.75
    assert best_share([first, [(0.5, -1.0), (1.0, -1.0)]]) == 0.5  # a fold without objects has no AP


def test_nothing_is_cut_short_without_a_gain() -> None:
    assert best_share([[(0.5, 0.0), (1.0, 0.0)]]) == 1.0
    assert best_share([[(0.5, -1.0), (1.0, -1.0)]]) == 1.0


def test_undefined_metrics_of_a_fold_are_left_out_of_the_mean() -> None:
    assert mean_of_defined([0.5, -1.0, 0.3]) == pytest.approx(0.4)
    assert mean_of_defined([-1.0, -1.0]) == -1.0


def test_images_without_objects_do_not_lower_the_mean(options: TrainOptions) -> None:
    """One of three folds has none to be scored on: its AP is undefined."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    samples = [(one, [[8, 8, 40, 40]] * n, [0] * n) for one, n in zip(pixels, (1, 1, 0), strict=True)]
    images = Dataset.from_samples(samples, ["a"])
    result = train(
        images, model=options.model, size=64, epochs=1, batch=2, workers=0, folds=3, out=options.out, quiet=True
    )
    summary = json.loads((Path(result["out"]) / "cross_validation.json").read_text())
    assert sorted(summary["AP"])[0] == -1
    assert result["metrics"]["AP"] == pytest.approx(np.mean(sorted(summary["AP"])[1:]))


def test_the_last_run_ends_where_the_folds_were_best_in_the_same_schedule(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_validation, "best_share", lambda curves: 0.5)
    out = Path(train(replace(options, epochs=4))["out"])
    last, fold = progress_of(out / "all"), progress_of(out / "fold-1")
    assert (last["step"], last["total"], fold["step"], fold["total"]) == (4, 8, 4, 4)
    assert last["lr"] > 2 * fold["lr"]  # which has come to the end of the cosine


def test_an_exported_file_is_refused_before_the_folds_are_written(options: TrainOptions, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(DataError, match="an exported file, which holds a program"):
        train(replace(options, weights=str(tmp_path / "model.onnx"), folds=3))
    assert not options.out.exists()


def test_what_is_wrong_with_the_first_run_leaves_no_folder(options: TrainOptions) -> None:
    """With what is wrong put right, the same --out is taken."""
    with pytest.raises(UsageError, match=r"freeze is 9"):
        train(replace(options, freeze=9))
    assert not options.out.exists()


def test_the_weights_hold_the_means_of_the_folds(options: TrainOptions) -> None:
    result = train(options)
    card, _ = load_weights(Path(result["weights"]))
    share = json.loads((options.out / "cross_validation.json").read_text())["share"]
    assert card.metrics == result["metrics"]
    assert card.origin["metrics"] == (
        f"means of 2 runs on other parts of the images, each on its rest, after {share:.0%} of it"
    )


def test_the_best_weights_of_one_run_name_what_they_were_measured_on(options: TrainOptions) -> None:
    card, _ = load_weights(Path(train(replace(options, folds=None))["weights"]))
    assert card.origin["metrics"] == "on 4 images of val, by which these weights were chosen"


def test_the_weights_of_a_fold_name_the_rest_of_the_split(options: TrainOptions) -> None:
    train(replace(options, learn=("rpn",)))
    card, _ = load_weights(options.out / "fold-1" / "weights" / "best.safetensors")
    assert card.origin["metrics"] == f"on {8 - card.origin['images']} images of train that were not learned from"


def test_ap_chooses_nothing_where_the_rpn_alone_is_trained(
    options: TrainOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """It is that of a head that stays random; one step of the last run would be enough for it."""
    with caplog.at_level(logging.INFO, "twostage"):
        train(replace(options, learn=("rpn",), eval_every=1))
    assert json.loads((options.out / "cross_validation.json").read_text())["share"] == 1
    assert "Cross-validation: AP" not in caplog.text


def test_what_stops_a_fold_names_the_folder_of_all_runs(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fold's own folder cannot be resumed alone: it does not say which images it has."""

    def unreadable(*_: object) -> None:
        raise DataError("an image is broken")

    monkeypatch.setattr(run, "train_until", unreadable)
    with pytest.raises(DataError, match="broken"):
        train(options)
    assert f"continue with: twostage train --resume {options.out}\n" in caplog.text


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
    learned = [images_of(out / name) for name in ("fold-1", "fold-2", "all")]
    assert learned[0] + learned[1] == learned[2] == images
    card, _ = load_weights(Path(result["weights"]))
    assert card.names == open_dataset(options.data, split="train").names


def images_of(folder: Path) -> int:
    """How many images a run has learned from, by its state."""
    return progress_of(folder)["images"]


def progress_of(folder: Path) -> dict:
    """Where a run stands, by its state."""
    with safe_open(folder / "state" / "state.safetensors", "pt") as file:
        return json.loads(file.metadata()["twostage-state"])["progress"]


def test_folds_are_measured_at_the_share_that_is_best_for_all_and_not_at_their_own_best() -> None:
    first = [(0.5, {"AP": 0.6}), (0.75, {"AP": 0.55}), (1.0, {"AP": 0.3})]
    second = [(0.48, {"AP": 0.2}), (0.76, {"AP": 0.45}), (1.0, {"AP": 0.5})]
    assert at_best_share([first, second]) == (0.75, [{"AP": 0.55}, {"AP": 0.45}])


def test_with_masks_the_share_is_chosen_by_both_ap_as_in_one_run() -> None:
    fold = [(0.5, {"AP": 0.50, "segm_AP": 0.30}), (1.0, {"AP": 0.49, "segm_AP": 0.50})]
    assert at_best_share([fold, fold])[0] == 1.0


@pytest.mark.parametrize(("images", "folds"), [(6, 3), (2, 2)])
def test_few_images_without_a_validation_split_are_cross_validated(
    options: TrainOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture, images: int, folds: int
) -> None:
    with caplog.at_level(logging.INFO, "twostage"):
        result = train(replace(options, data=train_split_of(tmp_path / "data", images), folds=None, epochs=1))
    assert f"no split to validate on: cross-validation with {folds} folds" in caplog.text
    assert json.loads((Path(result["out"]) / "cross_validation.json").read_text())["folds"] == folds


def test_copies_do_not_count_where_the_number_of_folds_is_chosen(options: TrainOptions, tmp_path: Path) -> None:
    """Three files of two images: three folds, which nobody asked for, would be refused."""
    data = train_split_of(tmp_path / "data", 3)
    first, second, _ = sorted((data / "train").glob("*.jpg"))
    second.write_bytes(first.read_bytes())
    result = train(replace(options, data=data, folds=None, epochs=1))
    assert json.loads((Path(result["out"]) / "cross_validation.json").read_text())["folds"] == 2


def test_one_image_cannot_be_validated_on_itself(options: TrainOptions, tmp_path: Path) -> None:
    data = train_split_of(tmp_path / "data", 1)
    with pytest.raises(UsageError, match=r"one image to learn from, and none to validate on.*--val-split none"):
        train(replace(options, data=data, folds=None))
    assert train(replace(options, data=data, folds=None, val_split="none"))["steps"] == 2


def train_split_of(folder: Path, images: int) -> Path:
    """So many scenes, and no others."""
    data = write_scenes(folder, train=images, val=1, seed=0)
    (data / "annotations" / "instances_val.json").unlink()
    shutil.rmtree(data / "val")
    return data


def test_a_broken_cross_validation_goes_on(
    options: TrainOptions, second_run_stops: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(options)
    assert f"Continue with: twostage train --resume {options.out}\n" in caplog.text
    with pytest.raises(UsageError, match=f"Resume that: twostage train --resume {options.out}"):
        train(TrainOptions(resume=options.out / "fold-1"))
    with pytest.raises(UsageError, match=r"Leave it out, or begin a new run\.$"):
        train(TrainOptions(resume=options.out, epochs=5))
    again = train(TrainOptions(resume=options.out, quiet=True))
    assert second_run_stops == ["fold-1", "fold-2", "fold-2", "all"]
    assert again["metrics"] == train(replace(options, out=options.out.with_name("whole")))["metrics"]


def test_all_runs_have_the_batch_that_a_time_budget_gave_the_first(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside other work each run might choose another."""
    batches = iter([4, 2, 8])
    monkeypatch.setattr(batch_size, "batch_for", lambda *_: next(batches))
    out = Path(train(replace(options, epochs=None, minutes=0.02, batch=None))["out"])
    chosen = [yaml.safe_load((out / name / "config.yaml").read_text()) for name in ("fold-1", "fold-2", "all")]
    assert [(one["batch"], one["scale"]) for one in chosen] == [(4, [1.0, 1.0])] * 3


@pytest.mark.parametrize("given", [{"patience": 2}, {"proposals": Path("unread.npz")}])
def test_folds_are_not_suggested_where_another_option_excludes_them(
    options: TrainOptions, tmp_path: Path, given: dict
) -> None:
    data = train_split_of(tmp_path / "data", 4)
    with pytest.raises(UsageError, match=r"Choose one by --val-split, or train without by --val-split none"):
        train(replace(options, data=data, folds=None, **given))


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
