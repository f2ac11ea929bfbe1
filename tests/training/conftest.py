"""A data set and options small enough to train on in a second."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twostage.data.scenes import write_scenes
from twostage.training import TrainOptions, subruns, train
from twostage.training.folder import RunFolder

SMALL = {"rpn_top_train": 60, "rpn_keep_train": 40, "rpn_top_test": 60, "rpn_keep_test": 40, "region_batch": 16}
DRAW = RunFolder.draw


@pytest.fixture(scope="module", autouse=True)
def _undrawn() -> Iterator[None]:
    """Plots take longer than the training of most tests: they are made for the tests that look at them (`drawn`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "draw", lambda *_: None)
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test end with their plots and images."""
    monkeypatch.setattr(RunFolder, "draw", DRAW)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 scenes to learn from and 4 others."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=8, val=4, seed=0)


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 scenes to learn from and 1 other, for nets that are not small."""
    return write_scenes(tmp_path_factory.mktemp("few") / "scenes", train=2, val=1, seed=0)


@pytest.fixture
def options(scenes: Path, tmp_path: Path) -> TrainOptions:
    """Two epochs of two steps, everything in this process, in arithmetic that every machine has."""
    return TrainOptions(
        scenes,
        model="faster_rcnn_tiny_fpn",
        model_fields=SMALL,
        size=64,
        batch=4,
        epochs=2,
        workers=0,
        precision="fp32",
        out=tmp_path / "run",
        quiet=True,
    )


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrainOptions], dict[str, Any]]:
    """The result of a run that nobody stops. There is one for all tests with the same options: copy it to change it."""
    results: dict[str, dict[str, Any]] = {}

    def run(options: TrainOptions) -> dict[str, Any]:
        key = repr(replace(options, out=None))
        if key not in results:
            results[key] = train(replace(options, out=tmp_path_factory.mktemp("unbroken") / "run"))
        return results[key]

    return run


@pytest.fixture
def second_run_stops(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The second run that a training begins in a folder of its own is stopped; the names of these folders."""
    names: list[str] = []

    def stopped(own: TrainOptions, **given: object) -> dict:
        folder = own.out or own.resume
        assert folder is not None
        names.append(folder.name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return run(own, **given)

    run = subruns.run
    monkeypatch.setattr(subruns, "run", stopped)
    return names
