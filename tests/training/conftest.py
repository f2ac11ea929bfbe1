"""A data set and options small enough to train on in a second."""

from pathlib import Path

import pytest

from twostage.data.scenes import write_scenes
from twostage.training import TrainOptions

SMALL = {"rpn_top_train": 60, "rpn_keep_train": 40, "rpn_top_test": 60, "rpn_keep_test": 40, "region_batch": 16}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 scenes to learn from and 4 others."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=8, val=4, seed=0)


@pytest.fixture
def options(scenes: Path, tmp_path: Path) -> TrainOptions:
    """Two epochs of two steps, everything in this process."""
    return TrainOptions(
        scenes,
        model="faster_rcnn_tiny_fpn",
        model_fields=SMALL,
        size=64,
        batch=4,
        epochs=2,
        workers=0,
        out=tmp_path / "run",
        quiet=True,
    )
