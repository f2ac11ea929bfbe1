"""`train` on data in memory, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twostage import Detector, train
from twostage.data.dataset import Dataset
from twostage.errors import UsageError

TINY = {"model": "faster_rcnn_tiny_fpn", "size": 64, "epochs": 1, "batch": 2, "workers": 0, "quiet": True}


def samples() -> list[tuple[Any, ...]]:
    image = np.full((64, 64, 3), 90, dtype=np.uint8)
    return [(image, [[8, 8, 40, 40], [20, 20, 60, 60]], ["a", "b"])] * 4


def test_chosen_classes_are_those_of_the_detector(tmp_path: Path) -> None:
    data = Dataset.from_samples(samples(), ["a", "b"])
    run = train(data, val=data, names=("b",), out=tmp_path / "run", **TINY)
    assert Detector.load(run["weights"], device="cpu").names == ("b",)


def test_a_finished_run_is_resumed_with_its_data_alone(tmp_path: Path) -> None:
    data, out = Dataset.from_samples(samples(), ["a", "b"]), tmp_path / "run"
    first = train(data, val=data, out=out, resume=None, **TINY)
    assert train(data, val=data, resume=out, quiet=True)["steps"] == first["steps"]
    with pytest.raises(UsageError, match="val: a resumed run is validated on the same"):
        train(data, resume=out)
    with pytest.raises(UsageError, match="trained on data in memory"):
        train(resume=out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "train"}, "train_split chooses from files"),
        ({"val_split": "val"}, "val_split chooses from files"),
        ({"val": "folder"}, "val is str"),
        ({"modle": "x"}, "no option 'modle'. Did you mean 'model'"),
        ({"rpn_nms": 0.5}, "go into model_fields"),
    ],
)
def test_options_that_do_not_apply_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(Dataset.from_samples(samples(), ["a", "b"]), **options)


def test_samples_are_no_data_set() -> None:
    with pytest.raises(UsageError, match="from_samples"):
        train(samples())  # type: ignore[arg-type]
