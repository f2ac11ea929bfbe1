"""Fixtures for tests of verbs: a small data set, and the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from twostage.cli import main
from twostage.data.scenes import write_scenes


class Answer(NamedTuple):
    """Exit code, standard output and standard error of a call."""

    code: int
    output: str
    messages: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output with --json: one object."""
        return json.loads(self.output)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO data set with 8 training and 4 validation images. Tests that change it copy it first."""
    return write_scenes(tmp_path_factory.mktemp("cli") / "scenes", train=8, val=4)


@pytest.fixture(scope="session")
def perfect_results(scenes: Path) -> Path:
    """A results file that repeats the ground truth of the validation split."""
    truth = json.loads((scenes / "annotations" / "instances_val.json").read_text())
    path = scenes.parent / "perfect.json"
    rows = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in truth["annotations"]
    ]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="session")
def weights(scenes: Path) -> Path:
    """Random weights of a detector of the scenes' classes."""
    from twostage.detector import Detector

    path = scenes.parent / "untrained.safetensors"
    names = ["circle", "square", "triangle", "star", "cross"]
    Detector.build("faster_rcnn_tiny_fpn", names, device="cpu", size=64, max_size=128).save(path)
    return path
