"""int8: files that are smaller and still detect, and which parts stay in float32."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twostage.cli import main
from twostage.data.dataset import Dataset
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.detector import Detector
from twostage.export import accuracy
from twostage.export.accuracy import Score, parts_of, with_float_parts
from twostage.export.write import Form, calibration_inputs
from twostage.inference.signature import Signature

FIRST = [f"backbone.body.{k}/Conv" for k in range(4)]
LAYERS = [*FIRST, "backbone.body.4/Conv", "backbone.laterals.0/Conv", "rpn.conv/Conv", "head.body.fc6/MatMul"]
BEFORE = Score(0.5, None)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("int8") / "scenes", train=6, val=3)


@pytest.fixture(scope="module")
def dataset(scenes: Path) -> Dataset:
    return open_dataset(scenes, split="val")


@pytest.fixture
def choose(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[list[str]]]]:
    """The quality of a network whose AP is that of its float32 layers, and what was built in order."""

    def choose(
        score: Callable[[frozenset[str]], Score], allowed: float, before: Score = BEFORE
    ) -> tuple[Any, list[list[str]]]:
        built: list[list[str]] = []

        def build(layers: Sequence[str]) -> Any:
            built.append(list(layers))
            return frozenset(layers)

        monkeypatch.setattr(accuracy, "score_of", lambda detector, _: score(detector))
        return with_float_parts(build, LAYERS, dataset, before, allowed), built

    return choose


def test_where_int8_costs_little_all_is_int8(choose: Callable) -> None:
    quality, built = choose(lambda _: Score(0.497, None), 0.5)
    assert built == [[]]  # once: ranges take a minute
    assert (quality.before, quality.after, tuple(quality.float_parts)) == (0.5, 0.497, ())
    assert quality.passed
    assert quality.lost == pytest.approx(0.3)
    assert (quality.data, quality.images) == ("scenes", 3)


def test_the_part_that_gains_most_stays_in_float32_and_is_built_last(choose: Callable) -> None:
    gains = {"rpn.conv/Conv": 0.01, "head.body.fc6/MatMul": 0.03, "backbone.body.0/Conv": 0.02}
    quality, built = choose(lambda layers: Score(0.45 + sum(gains.get(each, 0) for each in layers), None), 2.5)
    assert tuple(quality.float_parts) == ("the heads",)
    assert built[-1] == ["head.body.fc6/MatMul"]
    assert quality.after == pytest.approx(0.48)
    assert quality.passed
    assert len(built) == 1 + len(parts_of(LAYERS)) + 1  # all in int8, each part, the one that is taken


def test_parts_are_added_until_little_is_lost(choose: Callable) -> None:
    gains = {"rpn.conv/Conv": 0.01, "head.body.fc6/MatMul": 0.03, "backbone.body.0/Conv": 0.02}
    quality, built = choose(lambda layers: Score(0.44 + sum(gains.get(each, 0) for each in layers), None), 1.5)
    assert tuple(quality.float_parts) == ("the heads", "the first layers")
    assert built[-1] == ["head.body.fc6/MatMul", *FIRST]
    assert quality.passed


def test_what_gains_nothing_is_not_kept_and_the_quality_says_so(choose: Callable) -> None:
    quality, built = choose(lambda layers: Score(0.40 - 0.01 * len(layers), None), 0.5)
    assert tuple(quality.float_parts) == ()
    assert built[-1] == []
    assert not quality.passed
    assert quality.lost == pytest.approx(10)


def test_masks_count_where_they_lose_more(choose: Callable) -> None:
    quality, built = choose(
        lambda layers: Score(0.5, 0.3 + 0.1 * ("head.body.fc6/MatMul" in layers)), 0.5, Score(0.5, 0.4)
    )
    assert tuple(quality.float_parts) == ("the heads",)
    assert built[-1] == ["head.body.fc6/MatMul"]
    assert (quality.masks_before, quality.masks_after) == (0.4, 0.4)
    assert Score(0.5, 0.3).below(Score(0.6, 0.3)) == pytest.approx(10)
    assert Score(0.6, 0.2).below(Score(0.6, 0.3)) == pytest.approx(10)
    assert Score(0.6, None).below(Score(0.6, 0.3)) == pytest.approx(0)


def test_every_part_is_in_some_detector() -> None:
    """By the names of modules: one that was renamed would stay in int8 unseen."""
    names = []
    for model in ("faster_rcnn_tiny_fpn", "faster_rcnn_resnet50_fpn"):
        detector = Detector.build(model, ["a"], device="cpu", head_channels=16)
        names += [name for name, _ in detector.model.named_modules()]
    assert set(parts_of(names)) == {"the RPN", "the heads", "the pyramid", "the first layers"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "name", "weight"), [("onnx", "model.onnx", "model.onnx"), ("openvino", "model.xml", "model.bin")]
)
def test_int8_is_smaller_and_detects(
    weights: Callable, exported: Callable, scenes: Path, tmp_path: Path, form: str, name: str, weight: str
) -> None:
    out = tmp_path / "int8"
    words = ("export", "--weights", weights("faster_rcnn_tiny_fpn"), "--format", form, "--precision", "int8")
    words += ("--calibrate", scenes, "--calibration-images", 4, "--max-loss", 100, "--out", out)
    code = main([str(word) for word in words])
    whole = exported("faster_rcnn_tiny_fpn", "--format", form) / weight
    assert (out / weight).stat().st_size < 0.6 * whole.stat().st_size
    certificate = json.loads((out / "certificate.json").read_text())
    # The detector is random, and an AP of 0 before proves nothing about int8.
    proves = certificate["quality"]["before"] > 0
    assert (code, certificate["passed"]) == ((0, True) if proves else (5, False))
    assert (certificate["quality"]["data"], certificate["quality"]["images"]) == ("scenes", 3)
    assert certificate["quality"]["allowed"] == 100
    file = Detector.load(out / name)
    assert file.precision == "int8"
    found = file.predict(sorted((scenes / "val").iterdir())[0], conf=0.1)
    assert len(found) > 0


def test_data_of_other_classes_is_refused(weights: Callable, scenes: Path, tmp_path: Path, shell: Callable) -> None:
    Detector.build("faster_rcnn_tiny_fpn", ["a", "b"], device="cpu").save(tmp_path / "a.safetensors")
    words = ("--precision", "int8", "--calibrate", scenes, "--out", tmp_path / "out")
    code, _, messages = shell("export", "--weights", tmp_path / "a.safetensors", *words)
    assert code == 2
    assert "the detector does not have its classes circle, square, triangle, star, cross. Known: a, b." in messages
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("images", "count", "expected"), [(9, 5, [0, 2, 4, 6, 8]), (5, 3, [0, 2, 4]), (2, 9, [0, 1])])
def test_ranges_are_of_images_from_all_of_the_data(images: int, count: int, expected: list[int]) -> None:
    """Not of the first ones alone: files are often sorted by class or by day."""
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", choose_forms=False)
    data = Dataset.from_samples([(np.full((4, 4, 3), k, np.uint8), [], []) for k in range(images)], ["a"])
    inputs = calibration_inputs(detector, Signature(("pixels",), ()), Form(pixels=True), data, count)
    assert [int(one["pixels"][0, 0, 0, 0]) for one in inputs] == expected
