"""`twostage export`: the files find what the detector finds, say what they cannot do, and come whole or not at all."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from twostage.cli import main
from twostage.data.dataset import Dataset
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.detections import Detections
from twostage.detector import Detector
from twostage.errors import DataError, MissingError, UsageError
from twostage.inspection.account import Objects, account
from twostage.inspection.fates import Fate
from twostage.inspection.remedy import remedy
from twostage.ops.masks import decode
from twostage.weights.file import sha256

FASTER, MASK = "faster_rcnn_tiny_fpn", "mask_rcnn_tiny_fpn"
FILES = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}
every = pytest.mark.parametrize("form", FILES)
FAMILIES = ["faster_rcnn_tiny", MASK, "cascade_mask_rcnn_tiny_fpn", "hybrid_task_cascade_tiny_fpn"]
FAMILIES += ["retinanet_tiny_fpn", "fast_rcnn_tiny"]
SETTINGS = ("--conf", 0.2, "--max-det", 20, "--precision", "fp32")
ISOLATED = """
import runpy, sys
for name in ("torch", "twostage", "jaxtyping", "torchvision"):
    sys.modules[name] = None  # what is None cannot be imported
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def opened(exported: Callable[..., Path]) -> Callable[..., Detector]:
    """The exported detector of a format."""
    return lambda form, name=FASTER, *options: Detector.load(exported(name, "--format", form, *options) / FILES[form])


@pytest.fixture
def original(weights: Callable[..., Path]) -> Callable[..., Detector]:
    return lambda name=FASTER, **fields: Detector.load(weights(name, **fields), device="cpu")


def assert_same(found: Detections, expected: Detections) -> None:
    assert found.size == expected.size
    assert len(found) == len(expected) > 0
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=1e-2)
    assert (found.masks is None) == (expected.masks is None)
    if found.masks is not None:  # random masks are flat: rounding decides about some of their pixels
        assert (np.stack(decode(found.masks)) == np.stack(decode(expected.masks))).mean() > 0.995


def predict_alone(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`python predict.py ...` where neither torch nor twostage is installed."""
    code = ISOLATED.format(arguments=[str(folder / "predict.py"), *map(str, arguments)])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
@every
def test_the_file_finds_what_the_detector_finds(
    opened: Callable, original: Callable, photos: list[Path], form: str
) -> None:
    detector, file = original(), opened(form)
    assert (file.name, file.names) == (detector.name, detector.names)
    expected = list(detector.predict(photos, conf=0.1))
    assert len({tuple(each.class_ids) for each in expected}) > 1
    for batch in (1, 3):
        for a, b in zip(file.predict(photos, conf=0.1, batch=batch), expected, strict=True):
            assert_same(a, b)
            assert a.path == b.path


@pytest.mark.slow
@every
def test_the_certificate_names_both_sides_and_what_was_compared(
    exported: Callable, weights: Callable, form: str
) -> None:
    certificate = json.loads((exported(FASTER, "--format", form) / "certificate.json").read_text())
    runtime = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "torch": "torch"}[form]
    assert certificate["passed"]
    assert (certificate["subject"]["file"], certificate["subject"]["computed_by"]) == (FILES[form], runtime)
    assert (certificate["oracle"]["file"], certificate["oracle"]["computed_by"]) == (weights(FASTER).name, "twostage")
    assert len(certificate["images"]) == 6
    assert any(image["height"] != image["width"] for image in certificate["images"])
    assert [each["batch"] for each in certificate["batches"]] == [1, 3]
    for each in certificate["batches"]:
        assert each["matched"] == each["expected"] == each["found"] > 50
        assert each["pixels"]["largest"] <= 1e-2
        assert each["scores"]["largest"] <= 1e-4


@pytest.mark.slow
def test_what_is_in_the_folder(exported: Callable) -> None:
    of = {form: {path.name for path in exported(FASTER, "--format", form).iterdir()} for form in FILES}
    beside = {"predict.py", "requirements.txt", "certificate.json"}
    assert of["onnx"] == {"model.onnx", *beside}
    assert of["openvino"] == {"model.xml", "model.bin", *beside}
    assert of["torch"] == {"model.pt2", "certificate.json"}
    requirements = (exported(FASTER, "--format", "openvino") / "requirements.txt").read_text().split()
    assert requirements[-1] == "openvino"


@pytest.mark.slow
@every
def test_the_file_is_evaluated_as_the_detector(opened: Callable, original: Callable, tmp_path: Path, form: str) -> None:
    dataset = open_dataset(write_scenes(tmp_path / "scenes", train=1, val=4), split="val")
    expected = original().detect_dataset(dataset, workers=0)
    found = opened(form).detect_dataset(dataset, workers=0, batch=3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    report = opened(form).evaluate(dataset, workers=0).to_dict()
    assert report["metrics"] == pytest.approx(original().evaluate(dataset, workers=0).to_dict()["metrics"], abs=1e-4)


@pytest.mark.slow
@every
def test_thresholds_are_followed_as_far_as_the_file_can(
    opened: Callable, original: Callable, pixels: list[np.ndarray], form: str
) -> None:
    file, detector = opened(form), original()
    least, own = detector.config.postprocess.score_threshold, detector.config.postprocess
    whole = file.predict(pixels[0], conf=least)
    assert len(whole) == own.max_det
    middle = float(np.median(whole.scores))
    few = file.predict(pixels[0], conf=middle)
    assert len(few) == (whole.scores > middle).sum() > 0
    np.testing.assert_array_equal(few.boxes, whole.boxes[: len(few)])
    assert_same(file.predict(pixels[0], conf=least, max_det=5), whole[:5])
    for given, flag, words in (
        ({"conf": least / 2}, f"--conf {least / 2:g}", f"{least:g}, and goes no lower"),
        ({"iou": own.nms / 2}, f"--iou {own.nms / 2:g}", f"exported with {own.nms}"),
        ({"max_det": own.max_det + 1}, f"--max-det {own.max_det + 1}", f"{own.max_det}, and gives no more"),
    ):
        with pytest.raises(UsageError) as caught:
            file.predict(pixels[0], **{"conf": 0.5, **given})
        assert words in str(caught.value)
        command = f"twostage export --weights {FASTER}.safetensors --format {form} {flag}"
        assert command in str(caught.value)
    assert file.predict(pixels[0], conf=0.5, iou=own.nms) is not None


@pytest.mark.slow
@every
def test_a_file_is_no_model_and_its_fields_are_fixed(
    exported: Callable, opened: Callable, photos: list[Path], form: str, tmp_path: Path
) -> None:
    path = exported(FASTER, "--format", form) / FILES[form]
    file = opened(form)
    for use in (lambda: file.model, lambda: file.prepared, lambda: file.save(tmp_path / "a.safetensors")):
        with pytest.raises(UsageError, match=rf"{FILES[form]}: an exported file has no network.*{FASTER}\.safetensors"):
            use()
    with pytest.raises(UsageError, match="size is fixed in an exported file"):
        Detector.load(path, size=64)
    with pytest.raises(UsageError, match="backbone is fixed in an exported file"):
        Detector.load(path, backbone=torch.nn.Identity())
    with pytest.raises(UsageError, match="with --with-stages"):
        file.trace(photos[0])


@pytest.mark.slow
def test_precisions_that_a_runtime_does_not_have(exported: Callable) -> None:
    for form in ("onnx", "torch"):
        with pytest.raises(UsageError, match="computed as it was exported, not in bf16"):
            Detector.load(exported(FASTER, "--format", form) / FILES[form], precision="bf16")
    with pytest.raises(UsageError):
        Detector.load(exported(FASTER, "--format", "openvino") / "model.xml", precision="fp16")


@pytest.mark.slow
def test_predict_takes_a_file(exported: Callable, weights: Callable, shell: Callable, photos: list[Path]) -> None:
    model = exported(FASTER, "--format", "onnx") / "model.onnx"
    said = [
        json.loads(shell("predict", *photos, "--weights", path, *SETTINGS, "--json").output)["images"]
        for path in (model, weights(FASTER))
    ]
    assert [image["path"] for image in said[0]] == [image["path"] for image in said[1]]
    assert [len(image["detections"]) for image in said[0]] == [len(image["detections"]) for image in said[1]]
    code, _, messages = shell("predict", photos[0], "--weights", model, "--conf", 0.01, "--max-det", 20)
    assert code == 2
    assert "--conf 0.01" in messages


@pytest.mark.slow
def test_info_and_card_of_a_file(exported: Callable, weights: Callable, shell: Callable) -> None:
    model = exported(FASTER, "--format", "onnx") / "model.onnx"
    code, output, messages = shell("weights", "info", model, "--json")
    assert code == 0, messages
    found = json.loads(output)
    assert (found["model"], found["runtime"], found["precision"]) == (FASTER, "ONNX Runtime", "fp32")
    assert found["exported_from"] == {"file": f"{FASTER}.safetensors", "sha256": sha256(weights(FASTER))}
    card = shell("weights", "card", model).output
    assert f"exported from {FASTER}.safetensors (SHA-256 {sha256(weights(FASTER))}) for ONNX Runtime in fp32" in card
    assert f"certificate.json: the same detections as twostage finds with {FASTER}.safetensors." in card


@pytest.mark.slow
def test_the_suffix_may_be_in_capitals(exported: Callable, tmp_path: Path, pixels: list[np.ndarray]) -> None:
    path = tmp_path / "MODEL.ONNX"
    path.write_bytes((exported(FASTER, "--format", "onnx") / "model.onnx").read_bytes())
    assert Detector.load(path).predict(pixels[0], conf=0.1) is not None


@pytest.mark.slow
def test_what_needs_weights_refuses_a_file(exported: Callable, shell: Callable, tmp_path: Path) -> None:
    model = exported(FASTER, "--format", "onnx") / "model.onnx"
    code, _, messages = shell("export", "--weights", model, "--out", tmp_path / "again")
    assert (code, f"{model}: an exported file" in messages) == (3, True), messages


@pytest.mark.slow
def test_eval_takes_a_file(exported: Callable, shell: Callable, tmp_path: Path) -> None:
    model = exported(FASTER, "--format", "onnx") / "model.onnx"
    scenes = write_scenes(tmp_path / "scenes", train=1, val=2)
    code, output, messages = shell("eval", scenes, "--weights", model, "--workers", 0, "--max-det", 20, "--json")
    assert code == 0, messages
    assert 0 <= json.loads(output)["metrics"]["AP"] <= 1


@pytest.mark.slow
def test_pixels_are_resized_in_the_file(exported: Callable, original: Callable, pixels: list[np.ndarray]) -> None:
    folder = exported(FASTER, "--format", "onnx", "--pixels")
    model = onnx.load(folder / "model.onnx")
    assert [(each.name, each.type.tensor_type.elem_type) for each in model.graph.input] == [
        ("pixels", onnx.TensorProto.UINT8)
    ]
    detector, file = original(), Detector.load(folder / "model.onnx")
    expected = list(detector.predict(pixels, conf=0.1))
    for batch in (1, 3):
        for a, b in zip(file.predict(pixels, conf=0.1, batch=batch), expected, strict=True):
            assert_same(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx"])
def test_stages_are_those_of_the_detector(opened: Callable, original: Callable, photos: list[Path], form: str) -> None:
    file, detector = opened(form, FASTER, "--with-stages"), original()
    for photo in photos[:2]:
        found, expected = file.trace(photo).stages, detector.trace(photo).stages
        for one, other in zip(found.anchors.logits, expected.anchors.logits, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        for one, other in zip(found.anchors.anchors, expected.anchors.anchors, strict=True):
            torch.testing.assert_close(one, other)
        valid = expected.proposals.valid
        assert torch.equal(found.proposals.valid, valid)
        assert valid.sum() > 10
        for name, tolerance in (("boxes", 1e-2), ("scores", 1e-4)):
            one, other = (getattr(stages.proposals, name)[valid] for stages in (found, expected))
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
        assert torch.equal(found.proposals.anchors[valid], expected.proposals.anchors[valid])
        assert len(found.predictions) == len(expected.predictions) == 1
        torch.testing.assert_close(
            found.predictions[0].logits[valid], expected.predictions[0].logits[valid], rtol=1e-3, atol=1e-3
        )
        kept = expected.detections.valid
        assert torch.equal(found.detections.valid, kept)
        assert torch.equal(found.detections.proposals[kept], expected.detections.proposals[kept])
    assert_same(file.predict(photos[0], conf=0.1), detector.predict(photos[0], conf=0.1))


@pytest.mark.slow
def test_missed_objects_are_explained_by_the_file_itself(
    opened: Callable, original: Callable, photos: list[Path]
) -> None:
    """What became of each box is worked out from the file's stages; settings behind the regions can be tried."""
    file, detector = opened("onnx", FASTER, "--with-stages"), original()
    found, expected = file.trace(photos[0]), detector.trace(photos[0])
    assert (found.anchors.fate == expected.anchors.fate).float().mean() > 0.999
    assert torch.equal(found.pairs.fate, expected.pairs.fate)
    post = detector.config.postprocess
    dropped = found.to_image(found.pairs.boxes[found.pairs.fate < Fate.KEPT][:40])
    kept = 0
    for box, label in zip(dropped, found.pairs.labels[found.pairs.fate < Fate.KEPT].tolist(), strict=False):
        objects = Objects.of(box[None].numpy(), np.array([label]))
        ours, theirs = (account(trace, objects, post).misses for trace in (found, expected))
        assert [miss.cause for miss in ours.values()] == [miss.cause for miss in theirs.values()]
        tried = [remedy(file.runner, found, objects, 0, miss, post) for miss in ours.values()]
        assert all(change.field.startswith("postprocess.") for one in tried for change in one.changes)
        kept += any(one.keeps for one in tried)
    assert kept


@pytest.mark.slow
@pytest.mark.parametrize(("form", "name"), [("onnx", "model.onnx"), ("openvino", "model.bin")])
def test_half_precision_halves_the_file(
    exported: Callable, opened: Callable, original: Callable, photos: list[Path], form: str, name: str
) -> None:
    whole = (exported(FASTER, "--format", form) / name).stat().st_size
    half = (exported(FASTER, "--format", form, "--precision", "fp16") / name).stat().st_size
    assert 0.45 < half / whole < 0.62
    file, detector = opened(form, FASTER, "--precision", "fp16"), original()
    found, expected = (each.predict(photos[0], conf=0.3) for each in (file, detector))
    assert file.precision == "fp16"
    assert not np.array_equal(found.scores, expected.scores)
    np.testing.assert_allclose(found.scores[:5], expected.scores[:5], atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_predict_py_says_what_twostage_says(
    exported: Callable, weights: Callable, shell: Callable, photos: list[Path], form: str, tmp_path: Path
) -> None:
    """Masks too; on images that are wide, high and grey, turned by their EXIF tag, and small."""
    folder = exported(MASK, "--format", form)
    run = predict_alone(folder, *photos, "--conf", 0.2, "--json", "--threads", 1, "--save", tmp_path / "drawn")
    assert (run.returncode, run.stderr) == (0, "")
    found = json.loads(run.stdout)["images"]
    by_file, by_weights = (
        json.loads(shell("predict", *photos, "--weights", path, *SETTINGS, "--json").output)["images"]
        for path in (folder / FILES[form], weights(MASK))
    )
    assert sum(len(image["detections"]) for image in found) > 20
    for one, other, third in zip(found, by_file, by_weights, strict=True):
        assert {name: one[name] for name in ("path", "width", "height")} == {
            name: other[name] for name in ("path", "width", "height")
        }
        assert len(one["detections"]) == len(other["detections"]) == len(third["detections"])
        for a, b, c in zip(one["detections"], other["detections"], third["detections"], strict=True):
            assert set(a) == set(b)
            assert (a["label"], a["class_id"]) == (b["label"], b["class_id"]) == (c["label"], c["class_id"])
            assert a["score"] == pytest.approx(b["score"], abs=1e-5) == pytest.approx(c["score"], abs=1e-4)
            assert a["box"] == pytest.approx(b["box"], abs=1e-3)
            assert a["box"] == pytest.approx(c["box"], abs=1e-2)
            assert a["mask"]["size"] == b["mask"]["size"] == c["mask"]["size"]
            # Random masks are flat: rounding decides about some of their pixels.
            for mask in (b["mask"], c["mask"]):
                assert (decode([a["mask"]])[0] == decode([mask])[0]).mean() > 0.995
    assert sorted(path.stem for path in (tmp_path / "drawn").iterdir()) == [path.stem for path in photos]
    lines = predict_alone(folder, photos[0], "--conf", 0.2).stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{photos[0]}  {found[0]['width']} x {found[0]['height']}: ")


@pytest.mark.slow
def test_predict_py_on_real_images(exported: Callable, shell: Callable, real_data: Path) -> None:
    folder = exported(FASTER, "--format", "onnx")
    files = sorted((real_data / "coco-photos" / "images").iterdir())[:6]
    run = predict_alone(folder, *files, "--conf", 0.1, "--json")
    expected = json.loads(
        shell("predict", *files, "--weights", folder / "model.onnx", "--conf", 0.1, "--max-det", 20, "--json").output
    )["images"]
    for one, other in zip(json.loads(run.stdout)["images"], expected, strict=True):
        assert len(one["detections"]) == len(other["detections"]) > 0
        for a, b in zip(one["detections"], other["detections"], strict=True):
            assert a["label"] == b["label"]
            assert a["box"] == pytest.approx(b["box"], abs=1e-2)


@pytest.mark.slow
def test_predict_py_goes_on_after_a_bad_image(exported: Callable, photos: list[Path], tmp_path: Path) -> None:
    folder = exported(FASTER, "--format", "onnx")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    run = predict_alone(folder, photos[0], broken, photos[1], "--json")
    assert run.returncode == 3
    assert [image["path"] for image in json.loads(run.stdout)["images"]] == [str(photos[0]), str(photos[1])]
    assert f"{broken}: cannot be read as an image" in run.stderr
    assert "Traceback" not in run.stderr
    low = predict_alone(folder, photos[0], "--conf", 0.01)
    assert low.returncode == 3
    assert "conf 0.01 is not from 0.05, the threshold that the file was exported with" in low.stderr


@pytest.mark.slow
def test_a_file_that_takes_pixels_passes_at_every_batch_size(exported: Callable) -> None:
    folder = exported(FASTER, "--format", "onnx", "--pixels")
    assert json.loads((folder / "certificate.json").read_text())["passed"]


@pytest.mark.slow
def test_an_image_too_small_for_a_torch_file_is_named_and_the_others_are_predicted(
    exported: Callable, shell: Callable, photos: list[Path], tmp_path: Path
) -> None:
    model = exported(FASTER, "--format", "torch") / "model.pt2"
    strip = tmp_path / "strip.png"
    Image.new("RGB", (900, 6)).save(strip)
    for batch in (1, 4):
        code, output, messages = shell("predict", photos[0], strip, photos[1], "--weights", model, "--batch", batch)
        assert code == 3
        assert re.search(rf"^twostage: {re.escape(str(strip))} \(900 x 6 pixels\): \d+ x 32 after res", messages, re.M)
        assert [line.split("  ")[0] for line in output.splitlines()[:-1]] == [str(photos[0]), str(photos[1])]
    detector = Detector.load(model)
    with pytest.raises(DataError, match=r"strip\.png \(900 x 6 pixels\): "):
        detector.detect_dataset(Dataset.from_samples([(strip, [], [])], detector.names), workers=0)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["predict", "eval"])
def test_verbs_take_a_file_with_few_places_as_it_is(
    exported: Callable, shell: Callable, photos: list[Path], tmp_path: Path, verb: str
) -> None:
    model = exported(FASTER, "--format", "onnx") / "model.onnx"
    source = photos[0] if verb == "predict" else write_scenes(tmp_path / "scenes", train=1, val=1)
    assert shell(verb, source, "--weights", model).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_bench_names_the_precision_of_the_file(
    exported: Callable, shell: Callable, photos: list[Path], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one that `auto` chooses for weights on this machine."""
    monkeypatch.setattr("twostage.inference.precision.choose_precision", lambda *_: "bf16")
    model = exported(FASTER, "--format", form) / FILES[form]
    _, output, _ = shell("bench", photos[0], "--weights", model, "--seconds", 0.001, "--batch", 1)
    assert output.startswith(f"{model}, fp32 on cpu: ")


def spoiled(folder: Path, change: Callable[[bytes], bytes], tmp_path: Path, name: str) -> Path:
    """A copy of an exported model with other bytes."""
    path = tmp_path / name
    path.write_bytes(change((folder / name).read_bytes()))
    if name.endswith(".xml"):
        path.with_suffix(".bin").write_bytes((folder / "model.bin").read_bytes())
    return path


@pytest.mark.slow
@every
@pytest.mark.parametrize("fault", ["truncated", "empty", "garbage"])
def test_a_damaged_file_is_named(
    exported: Callable, shell: Callable, photos: list[Path], tmp_path: Path, form: str, fault: str
) -> None:
    change = {"truncated": lambda x: x[: len(x) // 2], "empty": lambda _: b"", "garbage": lambda _: b"hello" * 100}
    path = spoiled(exported(FASTER, "--format", form), change[fault], tmp_path, FILES[form])
    code, output, messages = shell("predict", photos[0], "--weights", path)
    assert (code, str(path) in messages) == (3, True), messages
    assert output == ""


@pytest.mark.slow
def test_a_damaged_file_of_torch_gives_no_traceback(shell: Callable, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"hello")
    messages = shell("predict", photos[0], "--weights", tmp_path / "model.pt2").messages
    assert "Traceback" not in messages
    assert f"torch {torch.__version__} cannot read it" in messages  # that of a newer one can be read by none before it


@pytest.mark.slow
@every
def test_another_format_number_is_named(
    exported: Callable, shell: Callable, photos: list[Path], tmp_path: Path, form: str
) -> None:
    """The text of the metadata stands in each file as it is, or with its quotation marks escaped."""

    def later(content: bytes) -> bytes:
        for old in (b'{"format": 1, "version"', b"{&quot;format&quot;: 1, &quot;version&quot;"):
            content = content.replace(old, old.replace(b"1", b"7"))
        return content

    folder = exported(FASTER, "--format", form)
    if form == "torch":
        from torch.export import load, save

        extra = {"twostage-export": ""}
        program = load(folder / "model.pt2", extra_files=extra)
        path = tmp_path / "model.pt2"
        save(program, path, extra_files={"twostage-export": later(extra["twostage-export"].encode()).decode()})
    else:
        path = spoiled(folder, later, tmp_path, FILES[form])
    code, _, messages = shell("predict", photos[0], "--weights", path)
    assert code == 3, messages
    assert f"{path}: was exported in format 7 by twostage" in messages


def test_a_file_of_others_is_named(shell: Callable, photos: list[Path], tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [output])
    path = tmp_path / "theirs.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    code, _, messages = shell("predict", photos[0], "--weights", path)
    assert code == 3
    assert f"{path}: was not written by `twostage export`" in messages
    assert "Export it again" not in messages  # which nobody can who did not write it
    assert shell("predict", photos[0], "--weights", tmp_path / "nowhere.onnx").code == 4


@pytest.mark.slow
def test_an_openvino_file_without_its_weights_is_named(exported: Callable, tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.write_bytes((exported(FASTER, "--format", "openvino") / "model.xml").read_bytes())
    with pytest.raises(DataError, match=r"model\.xml: its weights, model\.bin, are not beside it"):
        Detector.load(path)


def words_of(weights: Path, out: Path, *options: object) -> list[str]:
    return [str(word) for word in ("export", "--weights", weights, *options, "--out", out)]


@pytest.mark.parametrize(
    ("name", "fields", "options", "words"),
    [
        ("rcnn_tiny", {}, (), "R-CNN and SPPnet are not exported: R-CNN crops every region"),
        (
            FASTER,
            {"roi_sampling_ratio": 0, "roi_max_samples": 4},
            (),
            "roi_sampling_ratio is 0 (as many samples as a bin has pixels), at most 4",
        ),
        (FASTER, {}, ("--format", "torch", "--precision", "fp16"), "a file for torch is in fp32"),
        (FASTER, {}, ("--format", "torch", "--pixels"), "pixels: a file for torch"),
        (FASTER, {}, ("--format", "openvino", "--pixels"), "pixels: OpenVINO computes the resized shape in 32 bits"),
        (FASTER, {}, ("--precision", "int8"), "--precision int8 and --calibrate DATA go together"),
        (FASTER, {}, ("--calibrate", "data"), "--precision int8 and --calibrate DATA go together"),
        (FASTER, {"resize_by": "pillow"}, ("--pixels",), "--pixels: this detector resizes by pillow's rule"),
        (FASTER, {}, ("--set", "model.score_treshold=0.1"), "score_threshold"),
    ],
    ids=["R-CNN", "limit of samples", "fp16", "pixels", "openvino", "no data", "no int8", "pillow", "unknown field"],
)
def test_what_is_not_possible_is_refused_with_its_reason(
    weights: Callable, shell: Callable, tmp_path: Path, name: str, fields: dict, options: tuple, words: str
) -> None:
    code, _, messages = shell(*words_of(weights(name, **fields), tmp_path / "out", *options))
    assert code == 2, messages
    assert words in messages
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(weights: Callable, shell: Callable, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, _, messages = shell(*words_of(weights(FASTER), tmp_path / "out"))
    assert (code, "is not empty, and nothing is overwritten" in messages) == (2, True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("form", "package"), [("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("openvino", "openvino")]
)
def test_missing_packages_are_named_with_the_command(
    weights: Callable, shell: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    code, _, messages = shell(*words_of(weights(FASTER), tmp_path / "out", "--format", form))
    assert code == 4
    assert f"--format {form} needs {package}: pip install 'twostage[export]'" in messages
    assert not list(tmp_path.iterdir())


def test_a_missing_runtime_is_named_where_a_file_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"whatever")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingError, match=r"ONNX Runtime is not installed: pip install 'twostage\[export\]'"):
        Detector.load(tmp_path / "model.onnx")


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("torch broke"), 1)])
@pytest.mark.parametrize("place", ["write.exported_program", "write.bundle", "proof.prove"])
def test_what_ends_an_export_leaves_no_folder(
    weights: Callable,
    shell: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    place: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    import twostage.export.proof
    import twostage.export.write
    from twostage.inference.exported import ExportedModel

    monkeypatch.setattr(f"twostage.export.{place}", fail)
    if place == "proof.prove":  # the file is not what this is about
        from twostage.export.write import Written

        monkeypatch.setattr(twostage.export.write, "write", lambda _, folder, *rest: Written(folder / "model.onnx"))
        monkeypatch.setattr(ExportedModel, "open", lambda *_, **__: None)
    assert shell(*words_of(weights(FASTER), tmp_path / "deep" / "out")).code == code
    assert not [path for path in (tmp_path / "deep").iterdir() if path.name != "out" or any(path.iterdir())]
    assert not (tmp_path / "deep" / "out").exists()


def test_a_file_that_differs_ends_in_exit_code_5_and_is_kept_with_its_certificate(
    weights: Callable, shell: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector with other weights in the place of the exported one."""
    from twostage.export.write import Written
    from twostage.inference.exported import ExportedModel

    other = Detector.load(weights(FASTER), device="cpu")
    with torch.no_grad():
        other.model.head.classes.bias.add_(torch.linspace(0, 1, len(other.model.head.classes.bias)))

    def write(_: Any, folder: Path, *rest: Any) -> Written:
        (folder / "model.onnx").write_bytes(b"")
        return Written(folder / "model.onnx")

    def opening(path: Path) -> Any:
        prepared = other.prepared
        prepared.path, prepared.runtime = path, "ONNX Runtime"
        prepared.session = SimpleNamespace(metadata={"pixels": False})
        return prepared

    monkeypatch.setattr("twostage.export.write.write", write)
    monkeypatch.setattr(ExportedModel, "open", opening)
    code, output, messages = shell(*words_of(weights(FASTER), tmp_path / "out"), "--json")
    assert code == 5
    assert f"{tmp_path / 'out' / 'model.onnx'} and" in messages
    assert "do not detect the same" in messages
    assert json.loads(output)["certificate"]["passed"] is False
    assert json.loads((tmp_path / "out" / "certificate.json").read_text())["passed"] is False


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), [*((name, "onnx") for name in FAMILIES), (MASK, "openvino")])
def test_every_family(opened: Callable, original: Callable, photos: list[Path], name: str, form: str) -> None:
    """Also on the images of the export itself, at each batch size."""
    found, expected = (each.predict(photos[0], conf=0.1) for each in (opened(form, name), original(name)))
    assert_same(found, expected)
    certificate = json.loads((opened(form, name)._exported.path.parent / "certificate.json").read_text())
    for each in certificate["batches"]:
        assert each["matched"] == each["expected"] == each["found"] > 50
        assert each["pixels"]["largest"] <= 1e-2
        assert (each["masks"] is None) == (found.masks is None)
        assert each["masks"] is None or each["masks"]["median"] == 0
    if name == "fast_rcnn_tiny":
        from twostage.inference.runtimes import FileError
        from twostage.inference.standalone import Predictor

        with pytest.raises(FileError, match="a Fast R-CNN takes proposals from elsewhere"):
            Predictor(opened(form, name)._exported.path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx"])
@pytest.mark.parametrize(
    "fields",
    [
        {"soft_nms": "off"},
        {"soft_nms": "gaussian"},
        {"roi_sampling_ratio": 0, "roi_max_samples": None},
        {"resize_by": "caffe", "rounding": "nearest"},
    ],
    ids=["NMS", "gaussian", "as many samples as pixels", "caffe"],
)
def test_other_settings(exported: Callable, original: Callable, photos: list[Path], fields: dict, form: str) -> None:
    file = Detector.load(exported(FASTER, "--format", form, **fields) / FILES[form])
    for a, b in zip(file.predict(photos, conf=0.1), original(FASTER, **fields).predict(photos, conf=0.1), strict=True):
        assert_same(a, b)


@pytest.mark.slow
def test_options_of_the_call_are_part_of_the_file(weights: Callable, tmp_path: Path, pixels: list[np.ndarray]) -> None:
    words = ("--conf", 0.3, "--max-det", 7, "--iou", 0.4, "--size", 64, "--set", "model.soft_nms=off")
    assert main(words_of(weights(FASTER), tmp_path / "out", *words)) == 0
    file = Detector.load(tmp_path / "out" / "model.onnx")
    post = file.config.postprocess
    assert (post.score_threshold, post.max_det, post.nms, post.soft_nms) == (0.3, 7, 0.4, "off")
    assert file.config.image.size == 64
    assert_same(
        file.predict(pixels[0], conf=0.3),
        Detector.load(weights(FASTER), device="cpu", size=64, soft_nms="off").predict(
            pixels[0], conf=0.3, iou=0.4, max_det=7
        ),
    )
