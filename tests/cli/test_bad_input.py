"""Wrong input: the exit code, a message that names the fault, and no files written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

TINY = ["--model", "faster_rcnn_tiny_fpn", "--size", "64", "--workers", "0", "--epochs", "1"]


@pytest.fixture
def broken(scenes: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the scenes with its training annotations changed by a function."""

    def copy(change: Callable[[dict], None]) -> Path:
        folder = tmp_path / "data"
        shutil.copytree(scenes, folder)
        path = folder / "annotations" / "instances_train.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
        return folder

    return copy


def box(*values: object) -> Callable[[dict], None]:
    """A change that replaces the box of the first object."""

    def change(document: dict) -> None:
        document["annotations"][0]["bbox"] = list(values)

    return change


def without_objects(document: dict) -> None:
    document["annotations"] = []


def with_unknown_class(document: dict) -> None:
    document["annotations"][0]["category_id"] = 99


def with_missing_image(document: dict) -> None:
    document["images"][0]["file_name"] = "gone.png"


def assert_refused(answer: "tuple", code: int, *texts: str, out: Path) -> None:
    assert answer.code == code, answer.messages
    for text in texts:
        assert text in answer.messages
    assert "Traceback" not in answer.messages
    assert "internal error" not in answer.messages
    left = [path for path in out.rglob("*") if path.is_file()] if out.exists() else []
    assert not left, f"left behind: {left}"


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (box("a", 1, 2, 3), ["box-not-numbers", "instances_train.json"]),
        (box(1, 2, 3), ["box-not-numbers", "instances_train.json"]),
        (
            box(float("nan"), 1, 2, 3),
            ["contains NaN, which is not a JSON number", "write a number there", "instances_train.json"],
        ),
        (with_unknown_class, ["unknown-class", "99"]),
        (with_missing_image, ["missing-image", "gone.png"]),
        (without_objects, ["no object to learn from", "'train'"]),
    ],
)
def test_train_refuses_faulty_annotations(
    shell: Callable, broken: Callable, tmp_path: Path, change: Callable, texts: list[str]
) -> None:
    out = tmp_path / "run"
    assert_refused(shell("train", broken(change), *TINY, "--out", out), 3, *texts, out=out)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": 3}', "\x00\x01"])
def test_train_refuses_annotations_that_do_not_parse(shell: Callable, scenes: Path, tmp_path: Path, text: str) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(scenes, data)
    (data / "annotations" / "instances_train.json").write_text(text)
    assert_refused(shell("train", data, *TINY, "--out", out), 3, "instances_train.json", out=out)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_train_refuses_images_that_do_not_decode(shell: Callable, scenes: Path, tmp_path: Path, content: bytes) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(scenes, data)
    picture = sorted((data / "train").iterdir())[0]
    picture.write_bytes(content)
    assert_refused(shell("train", data, *TINY, "--out", out), 3, picture.name, "unreadable-image", out=out)


@pytest.mark.slow
def test_repairable_boxes_do_not_stop_training_and_are_listed(
    shell: Callable, broken: Callable, tmp_path: Path
) -> None:
    data = broken(box(10, 10, 0, 5))
    answer = shell("train", data, *TINY, "--val-split", "none", "--out", tmp_path / "run")
    assert answer.code == 0
    assert "zero-area-box" in answer.messages
    assert_refused(
        shell("train", data, *TINY, "--on-error", "fail", "--out", tmp_path / "strict"),
        3, "zero-area-box", out=tmp_path / "strict",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "texts"),
    [
        (["train", "nowhere"], 3, ["nowhere: does not exist"]),
        (["train", "{empty}"], 3, ["no data set recognised"]),
        (["train", "{scenes}", "--model", "faster_rcnn_resnet50_fpm"], 2, ["faster_rcnn_resnet50_fpn"]),
        (["train", "{scenes}", "--weights", "nowhere.safetensors"], 4, ["nowhere.safetensors"]),
        (["train", "{scenes}", "--weights", "{junk}"], 3, ["junk.safetensors"]),
        (["train", "{scenes}", "--set", "model.rpn_nsm=0.5"], 2, ["Did you mean 'rpn_nms'"]),
        (["train", "{scenes}", "--set", "model.rpn_nms=high"], 2, ["rpn_nms", "'high'"]),
        (["train", "{scenes}", "--train-split", "trian"], 2, ["Did you mean 'train'"]),
        (["train", "{scenes}", "--device", "tpu"], 2, ["'tpu'"]),
        (["predict", "{picture}", "--weights", "{weights}", "--precision", "fp16", "--device", "cpu"], 2, ["fp16"]),
        (["train", "--resume", "nowhere"], 4, ["nowhere"]),
        (["eval", "{scenes}", "--weights", "nowhere.safetensors"], 4, ["nowhere.safetensors"]),
        (["eval", "{scenes}", "--weights", "{junk}"], 3, ["junk.safetensors"]),
        (["eval", "{scenes}", "--weights", "{others}"], 2, ["cat", "circle"]),
        (["predict", "{picture}", "--weights", "nowhere.safetensors"], 4, ["nowhere.safetensors"]),
        (["predict", "{picture}", "--weights", "{junk}"], 3, ["junk.safetensors"]),
        (["predict", "nowhere.jpg", "--weights", "{weights}"], 3, ["nowhere.jpg: does not exist"]),
        (["predict", "{empty}", "--weights", "{weights}"], 3, ["contains no images"]),
        (["predict", "https://example.com/a.jpg", "--weights", "{weights}"], 2, ["nothing is downloaded"]),
        (["predict", "{picture}", "--weights", "{weights}", "--conf", "2"], 2, ["conf is 2"]),
        (["predict", "{picture}", "--weights", "{weights}", "--format", "yolo"], 2, ["format is 'yolo'"]),
        (["predict", "{picture}", "--weights", "{weights}", "--save", "{scenes}"], 2, ["is not empty"]),
        (["inspect", "{picture}", "--weights", "{weights}", "--out", "{picture}/x.html"], 2, ["not a folder"]),
        (["data", "check", "nowhere"], 3, ["nowhere: does not exist"]),
        (["demo", "--minutes", "0"], 2, ["minutes is 0"]),
        (["demo", "--out", "{scenes}"], 2, ["is not empty"]),
    ],
)
def test_wrong_call_is_refused(
    shell: Callable, scenes: Path, weights: Path, tmp_path: Path, arguments: list[str], code: int, texts: list[str]
) -> None:
    from twostage.detector import Detector

    others, junk, empty = tmp_path / "others.safetensors", tmp_path / "junk.safetensors", tmp_path / "empty"
    junk.write_bytes(b"junk")
    empty.mkdir()
    if "{others}" in arguments:
        Detector.build("faster_rcnn_tiny_fpn", ["cat", "dog"], device="cpu").save(others)
    known = {"scenes": scenes, "weights": weights, "others": others, "junk": junk, "empty": empty}
    known["picture"] = sorted((scenes / "val").iterdir())[0]
    out = tmp_path / "run"
    words = [word.format(**known) for word in arguments]
    if words[0] == "train" and "--model" not in words:
        words += TINY
    if words[0] in ("train", "eval", "demo") and "--out" not in words:
        words += ["--out", str(out)]
    assert_refused(shell(*words), code, *texts, out=out)


def test_run_folder_is_never_overwritten(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    answer = shell("train", scenes, *TINY, "--out", out)
    assert answer.code == 2
    assert "is not empty" in answer.messages
    assert [path.name for path in out.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("words", [["train", "{scenes}", *TINY], ["demo", "--minutes", "0.01"]])
def test_folder_that_cannot_be_made_is_named(shell: Callable, scenes: Path, words: list[str]) -> None:
    answer = shell(*(word.format(scenes=scenes) for word in words), "--out", "/proc/nowhere/run")
    assert answer.code == 2
    assert "/proc/nowhere/run: cannot be made" in answer.messages


def test_data_check_exits_with_3_on_a_repairable_fault(shell: Callable, broken: Callable) -> None:
    answer = shell("data", "check", broken(box(10, 10, 0, 5)), "--json")
    assert answer.code == 3
    assert answer.json["counts"]["repair"] == 1
    assert [fault["code"] for fault in answer.json["faults"] if fault["severity"] == "repair"] == ["zero-area-box"]


def test_data_check_of_good_data_is_0(shell: Callable, scenes: Path) -> None:
    answer = shell("data", "check", scenes)
    assert answer.code == 0
    assert "Nothing wrong" in answer.output


@pytest.mark.parametrize("field", ["num_classes", "name", "device", "precision", "path"])
def test_an_unknown_field_of_the_model_is_refused(
    shell: Callable, scenes: Path, weights: Path, tmp_path: Path, field: str
) -> None:
    given = ["--set", f"model.{field}=4"]
    texts = f"The model has no field {field!r}"
    assert_refused(shell("predict", scenes / "val", "--weights", weights, *given), 2, texts, out=tmp_path / "x")
    assert_refused(shell("train", scenes, *TINY, *given, "--out", tmp_path / "run"), 2, texts, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "code", "texts"),
    [
        (["--model", "faster_rcnn_tiny_fnp"], 2, "faster_rcnn_tiny_fpn"),
        (["--set", "model.rpn_nsm=0.5"], 2, "rpn_nms"),
        (["--device", "gpu"], 2, "gpu"),
        (["--weights", "nowhere.safetensors"], 4, "nowhere.safetensors"),
    ],
)
def test_a_wrong_option_is_reported_before_the_data_are_read(
    shell: Callable, broken: Callable, tmp_path: Path, given: list[str], code: int, texts: str
) -> None:
    answer = shell("train", broken(with_unknown_class), *given, "--out", tmp_path / "run")
    assert_refused(answer, code, texts, out=tmp_path / "run")
    assert "unknown-class" not in answer.messages


def test_more_frozen_stages_than_there_are(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    answer = shell("train", scenes, *TINY, "--freeze", "99", "--out", tmp_path / "run")
    assert_refused(answer, 2, "freeze is 99; the number of stages of the backbone is 5", out=tmp_path / "run")


@pytest.mark.parametrize("given", [["--format", "", "--save", "found"], ["--format", "coco"]])
def test_formats_without_effect_are_refused(
    shell: Callable, scenes: Path, weights: Path, tmp_path: Path, given: list[str]
) -> None:
    assert_refused(shell("predict", scenes / "val", "--weights", weights, *given), 2, "format", out=tmp_path / "found")


def test_a_null_list_is_not_reported_as_missing(shell: Callable, broken: Callable, tmp_path: Path) -> None:
    answer = shell("train", broken(lambda document: document.update(images=None)), *TINY, "--out", tmp_path / "run")
    assert_refused(answer, 3, "'images' is None, not a list", out=tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "function"),
    [
        (["data", "check", "{scenes}", "--fix", "{full}"], "twostage.data.check.check"),
        (["data", "stats", "{scenes}", "--out", "{full}"], "twostage.data.stats.stats"),
        (
            ["data", "proposals", "{scenes}", "--source", "sliding_window", "--out", "{full}"],
            "twostage.models.proposals.sources.propose",
        ),
        (["data", "get", "voc2007", "--out", "{here}"], "twostage.download.download"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(
    shell, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], function: str
) -> None:
    full, here = tmp_path / "full", tmp_path / "here"
    full.mkdir()
    (full / "mine.txt").touch()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(function, lambda *_, **__: pytest.fail("the work began"))
    answer = shell(*(word.format(scenes=scenes, full=full, here=here) for word in words))
    assert answer.code == 2, answer.messages
    assert "choose" in answer.messages
    assert not list(here.iterdir())


def test_a_source_of_proposals_that_is_missing_is_found_before_the_work(
    shell, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twostage.models.proposals.sources.propose", lambda *_, **__: pytest.fail("the work began"))
    answer = shell("data", "proposals", scenes, "--source", "sliding_window", "gone.safetensors")
    assert answer.code == 4
    assert "gone.safetensors: no such file" in answer.messages
