"""Predictions on images: their own pixels, any source, any batch."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from twostage.data.batch import stack_images
from twostage.data.images import read_image
from twostage.data.scenes import write_scenes
from twostage.detector import Detector
from twostage.errors import DataError, UsageError
from twostage.inference import prepare as prepare_module
from twostage.inference.predictor import make_batch
from twostage.models.component import to_dict
from twostage.models.zoo import ZOO
from twostage.weights.file import KEY, Card

FIELDS = {"size": 96, "rpn_top_test": 100, "rpn_keep_test": 60, "anchors_in_padding": False}


@pytest.fixture(scope="module")
def detector() -> Detector:
    """Random weights whose outputs differ from place to place."""
    torch.manual_seed(0)
    made = Detector.build("faster_rcnn_tiny_fpn", ["a", "b", "c"], device="cpu", **FIELDS)
    made.model.train()
    with torch.no_grad():
        for layer in (made.model.rpn.objectness, made.model.head.classes):
            layer.weight.mul_(100)
        made.model.head.deltas.weight.mul_(100)
    made.model.eval()
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = write_scenes(tmp_path_factory.mktemp("scenes") / "s", train=3, val=1, seed=1)
    return sorted((folder / "train").iterdir())


def test_path_array_tensor_and_image_give_the_same(detector: Detector, pictures: list[Path]) -> None:
    image = Image.open(pictures[0]).convert("RGB")
    array = np.asarray(image)
    sources = [pictures[0], str(pictures[0]), image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    found = [detector.predict(source, conf=0.05) for source in sources]
    assert len(found[0]) > 0
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].boxes, other.boxes)
        np.testing.assert_array_equal(found[0].scores, other.scores)


def test_boxes_are_on_the_images_own_pixels(detector: Detector, pictures: list[Path]) -> None:
    small = Image.open(pictures[0]).convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)
    large = small.resize((288, 192), Image.Resampling.NEAREST)
    found = detector.predict(large, conf=0.05)
    assert found.size == (192, 288)
    assert (found.boxes[:, 2] <= 288).all()
    assert found.boxes[:, 2].max() > 192
    assert (np.diff(found.scores) <= 0).all()


def test_batch_equals_one_by_one(detector: Detector, pictures: list[Path]) -> None:
    together = list(detector.predict(pictures, conf=0.05, batch=3))
    alone = [detector.predict(path, conf=0.05) for path in pictures]
    for a, b in zip(together, alone, strict=True):
        assert len(a) == len(b)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)


def test_an_image_does_not_depend_on_those_of_other_shapes_beside_it(detector: Detector, pictures: list[Path]) -> None:
    image = np.asarray(Image.open(pictures[0]).convert("RGB"))
    shapes = [image, image[:60], image[:, :100], image[20:], image[:, :60]]
    together = list(detector.predict(shapes, conf=0.05, batch=5))
    for found, shape in zip(together, shapes, strict=True):
        alone = detector.predict(shape, conf=0.05)
        assert found.size == alone.size
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-2)


def test_images_of_different_sizes_share_a_batch(detector: Detector, pictures: list[Path]) -> None:
    image = np.asarray(Image.open(pictures[0]).convert("RGB"))
    narrow, wide = detector.predict([image[:, :60], image], conf=0.05, batch=2)
    assert (narrow.size, wide.size) == ((192, 60), (192, 192))
    assert len(narrow) > 0
    assert narrow.boxes[:, 2].max() <= 60
    assert wide.boxes[:, 2].max() > 60


def test_thresholds_are_those_of_the_call(detector: Detector, pictures: list[Path]) -> None:
    every = detector.predict(pictures[0], conf=0.0, max_det=50)
    few = detector.predict(pictures[0], conf=float(np.median(every.scores)), max_det=5)
    assert len(every) == 50
    assert len(few) <= 5
    assert few.scores.min() >= np.median(every.scores)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"conf": 50}, "conf is 50, and must be a number from 0 to 1"),
        ({"conf": 1.5}, "conf is 1.5, and must be a number from 0 to 1"),
        ({"iou": -0.5}, "iou is -0.5, and must be a number from 0 to 1"),
        ({"max_det": 0}, "max_det is 0, and must be a whole number of at least 1"),
        ({"batch": 0}, "batch is 0, and must be a whole number of at least 1"),
    ],
)
def test_arguments_out_of_range_are_named(detector: Detector, pictures: list[Path], given, message) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        detector.predict(pictures[0], **given)


def test_unreadable_image_does_not_lose_the_others(detector: Detector, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    found = []
    with pytest.raises(DataError, match=r"broken\.jpg"):
        found.extend(detector.predict([pictures[0], broken, pictures[1]]))
    assert [f.path for f in found] == [str(pictures[0]), str(pictures[1])]


def test_trace_ends_in_the_prediction(detector: Detector, pictures: list[Path]) -> None:
    stages = detector.trace(pictures[0]).stages
    found = detector.predict(pictures[0], conf=detector.model.config.postprocess.score_threshold)
    valid = stages.detections.valid[0]
    np.testing.assert_array_equal(stages.detections.scores[0][valid].numpy(), found.scores)
    # Every detection has the index of its proposal, every proposal that of its anchor.
    parents = stages.detections.proposals[0][valid]
    np.testing.assert_array_equal(parents.numpy(), found.proposals)
    assert stages.proposals.valid[0][parents].all()
    assert stages.proposals.anchors[0].max() < sum(len(a) for a in stages.anchors.anchors)


def test_saved_detector_predicts_the_same(detector: Detector, pictures: list[Path], tmp_path: Path) -> None:
    detector.save(tmp_path / "d.safetensors", metrics={"AP": 0.5})
    loaded = Detector.load(tmp_path / "d.safetensors", device="cpu")
    assert loaded.names == detector.names
    assert loaded.model.config == detector.model.config
    a, b = (d.predict(pictures[0], conf=0.05) for d in (detector, loaded))
    np.testing.assert_array_equal(a.boxes, b.boxes)


@pytest.mark.parametrize("names", [[], ["a", "a"], "abc"])
def test_names_must_be_different_classes(names: list[str]) -> None:
    with pytest.raises(UsageError, match="names is"):
        Detector.build("faster_rcnn_tiny_fpn", names, device="cpu")


def test_detections_that_may_be_missing_are_told(caplog: pytest.LogCaptureFixture) -> None:
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a", "b"], device="cpu", candidates=1, score_threshold=0.0)
    with caplog.at_level("WARNING", "twostage"):
        detector.predict(np.zeros((64, 64, 3), np.uint8), conf=0.0)
    assert "1 of 1 images: more boxes above the threshold than" in caplog.text


def test_a_list_has_no_trace_and_meta_is_no_device() -> None:
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu")
    with pytest.raises(UsageError, match="more than one image"):
        detector.trace([np.zeros((64, 64, 3), np.uint8)] * 2)
    with pytest.raises(UsageError, match="meta"):
        Detector.build("faster_rcnn_tiny_fpn", ["a"], device="meta")


@pytest.mark.parametrize("names", [[], "ab", ["a", "a"]])
def test_names_are_different_texts(names: list[str] | str) -> None:
    with pytest.raises(UsageError, match="names is"):
        Detector.build("faster_rcnn_tiny_fpn", names, device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "faster_rcnn_later"},
        {"format": 1, "fields": {"size": 64, "later": 1}},
        {"config": {**to_dict(ZOO["faster_rcnn_tiny_fpn"]), "later": 1}},
        {"config": {**to_dict(ZOO["faster_rcnn_tiny_fpn"]), "later": {"type": "LaterConfig", "later": 1}}},
    ],
    ids=["model", "field of format 1", "field", "component"],
)
def test_a_file_of_a_later_version_is_named(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "later.safetensors"
    card = Card("faster_rcnn_tiny_fpn", ("a",), ZOO["faster_rcnn_tiny_fpn"])
    content = json.loads(card.to_json()) | change
    save_file({"a": torch.zeros(1)}, path, metadata={KEY: json.dumps(content)})
    with pytest.raises(DataError, match=r"later\.safetensors: .*does not have the (model|field) .*later.*Update"):
        Detector.load(path)


def test_suppression_repeated_by_the_processor_finds_the_same(detector: Detector, pictures: list[Path]) -> None:
    """What a device could not finish; here the forward pass had nothing left to do."""
    config = detector.model.config
    batch = make_batch([read_image(path) for path in pictures[:2]], config)
    stages = detector.prepared.stages(batch)
    with torch.inference_mode():
        again = detector.prepared.model.suppress_again(stages, batch.sizes, config.postprocess).detections
    assert again.valid.any()
    for found, expected in zip(again, stages.detections, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_processor_takes_a_large_batch_in_parts_and_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Detector.build("faster_rcnn_tiny_fpn", ["a", "b"], device="cpu", score_threshold=0.0).prepared
    batch = stack_images(list(torch.rand(5, 3, 64, 96)))
    whole = model.detect(batch, model.config.postprocess)
    monkeypatch.setattr(prepare_module, "_PIXELS", 2 * 64 * 96 + 1)
    seen = []
    hook = model.model.rpn.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0][0])))
    divided = model.detect(batch, model.config.postprocess)
    hook.remove()
    assert seen == [2, 2, 1]
    for got, expected in zip(divided, whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    monkeypatch.setattr(prepare_module, "_PIXELS", 1)
    assert len(model.detect(batch, model.config.postprocess).boxes) == 5
