"""Few scenes, a cache of the tests' own, and training runs without plots, which their own tests hold."""

from pathlib import Path

import pytest

from twostage.data.scenes import write_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("experiments") / "scenes", train=8, val=3)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plots of a run take longer than its few steps."""
    monkeypatch.setattr("twostage.training.folder.RunFolder.draw", lambda *_: None)
