"""Detectors that judge the labels that they have not learned from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twostage.data.dataset import Dataset, select_images
from twostage.errors import DataError, MissingError, UsageError
from twostage.training import train
from twostage.training.cross_fitting import cross_fit, fold_detectors, is_folds_run
from twostage.training.cross_validation import fold_parts
from twostage.training.options import TrainOptions
from twostage.weights.file import load_weights


@pytest.fixture(scope="module")
def images() -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    return Dataset.from_samples([(one, [[8, 8, 40, 40]], [k % 2]) for k, one in enumerate(pixels)], ["a", "b"])


def options(out: Path, **given: object) -> TrainOptions:
    return TrainOptions(
        Path("in memory"),
        model="faster_rcnn_tiny_fpn",
        size=64,
        epochs=1,
        batch=2,
        workers=0,
        quiet=True,
        out=out,
        **given,  # type: ignore[arg-type]
    )


def test_each_fold_judges_what_it_has_not_learned(images: Dataset, tmp_path: Path) -> None:
    folds = cross_fit(images, options(tmp_path / "run", folds=2))
    assert sorted(int(image) for fold in folds for image in fold.images) == [0, 1, 2, 3]
    assert [load_weights(fold.weights)[0].origin["images"] for fold in folds] == [2, 2]
    assert is_folds_run(tmp_path / "run")
    assert not is_folds_run(tmp_path / "run" / "fold-1")
    written = [fold.weights.stat().st_mtime_ns for fold in folds]
    again = cross_fit(images, TrainOptions(resume=tmp_path / "run", quiet=True))
    assert [fold.weights.stat().st_mtime_ns for fold in again] == written


def test_labels_mended_before_it_goes_on_leave_the_folds_as_they_were(
    images: Dataset, tmp_path: Path, second_run_stops: list[str]
) -> None:
    """Else the first fold would judge what it has learned."""
    with pytest.raises(KeyboardInterrupt):
        cross_fit(images, options(tmp_path / "run", folds=2))
    first = json.loads((tmp_path / "run" / "folds.json").read_text())
    mended = replace(images, labels=np.array([0, 0, 1, 1]))
    assert sorted(fold_parts(mended, 2, 0)[0]) != sorted(fold_parts(images, 2, 0)[0])
    folds = cross_fit(mended, TrainOptions(resume=tmp_path / "run", quiet=True))
    with pytest.raises(UsageError, match=r"the folds of an audit.*Give the command of the audit again"):
        train(TrainOptions(resume=tmp_path / "run", quiet=True))
    assert second_run_stops == ["fold-1", "fold-2", "fold-2"]
    assert [[mended.file_name(int(index)) for index in fold.images] for fold in folds] == first["folds"]
    other = Dataset.from_samples([(np.zeros((64, 64, 3), np.uint8), [[8, 8, 40, 40]], [0])] * 5, ["a", "b"])
    with pytest.raises(DataError, match="has 5 images now, and had 4 when the folds"):
        cross_fit(other, TrainOptions(resume=tmp_path / "run", quiet=True))


def test_a_cross_validated_training_judges_by_the_names_of_its_images(images: Dataset, tmp_path: Path) -> None:
    """Labels are mended after an audit, which would change the order of a new division into folds."""
    root = tmp_path / "run"
    how = {
        name: getattr(options(root), name) for name in ("model", "size", "epochs", "batch", "workers", "quiet", "out")
    }
    train(images, folds=2, **how)
    before = fold_detectors(root, images)
    assert [fold.weights.name for fold in before] == ["best.safetensors"] * 2
    mended = replace(images, labels=np.array([0, 0, 0, 1]))
    after = fold_detectors(root, mended)
    assert [fold.images.tolist() for fold in after] == [fold.images.tolist() for fold in before]
    turned = fold_detectors(root, select_images(images, np.array([3, 2, 1, 0])))
    assert [sorted(3 - fold.images) for fold in turned] == [fold.images.tolist() for fold in before]


def test_other_images_and_unfinished_folds_are_refused(images: Dataset, tmp_path: Path) -> None:
    (tmp_path / "folds.json").write_text(json.dumps({"folds": [["image_0"], ["image_1"]]}))
    with pytest.raises(MissingError, match="fold is not done"):
        fold_detectors(tmp_path, images)
    (tmp_path / "folds.json").write_text(json.dumps({"folds": [["elsewhere.jpg"]]}))
    with pytest.raises(DataError, match="none of the 1 images"):
        fold_detectors(tmp_path, images)
    with pytest.raises(UsageError, match="folds is not given"):
        cross_fit(images, options(tmp_path / "run"))
