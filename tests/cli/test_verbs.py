"""The verbs that run a model: output, files and exit codes."""

import contextlib
import csv
import html
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from twostage.cli.demo import longer
from twostage.detections import Detections
from twostage.inference.precision import choose_precision
from twostage.inference.results import ResultsWriter

QUICK = ["--model", "faster_rcnn_tiny_fpn", "--size", "64", "--batch", "4", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The --json result of a short run, and its messages."""
    from twostage.cli import main

    folder = tmp_path_factory.mktemp("runs") / "short"
    output, messages = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(messages):
        code = main(["train", str(scenes), *QUICK, "--epochs", "2", "--out", str(folder), "--json"])
    assert code == 0, messages.getvalue()
    return {**json.loads(output.getvalue()), "messages": messages.getvalue()}


@pytest.fixture(scope="module")
def run_folder(trained: dict[str, Any]) -> Path:
    """The folder of a short run."""
    return Path(trained["out"])


def test_train_prints_its_result(trained: dict[str, Any]) -> None:
    assert {"out", "weights", "epochs", "steps", "seconds", "metrics"} <= set(trained)
    assert (trained["epochs"], trained["steps"]) == (2, 4)
    assert Path(trained["weights"]).exists()
    assert "AP" in trained["metrics"]
    assert "COCO layout" in trained["messages"], "the detected layout is printed"
    saved = f"Saved to {trained['out']}: weights/best.safetensors, AP {trained['metrics']['AP']:.3f}"
    assert saved in trained["messages"]


def test_run_folder_holds_what_the_design_promises(run_folder: Path) -> None:
    there = {str(path.relative_to(run_folder)) for path in run_folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "env.json", "metrics.csv", "weights/best.safetensors", "weights/last.safetensors"} <= there
    assert {"loss.png", "pr.png", "confusion.png", "labels.png", "train_batch.jpg"} <= there
    assert [name for name in there if name.startswith("predictions/")]
    with (run_folder / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


@pytest.mark.slow
def test_configuration_of_a_run_starts_another(shell: Callable, run_folder: Path, tmp_path: Path) -> None:
    config = run_folder / "config.yaml"
    answer = shell("train", "--config", config, "--epochs", 1, "--out", tmp_path / "again", "--val-split", "none")
    assert answer.code == 0
    before, after = (yaml.safe_load(path.read_text()) for path in (config, tmp_path / "again" / "config.yaml"))
    assert after == {**before, "epochs": 1, "val_split": "none"}


def test_eval_of_a_run_repeats_its_numbers(shell: Callable, scenes: Path, run_folder: Path) -> None:
    from twostage.weights.file import load_weights

    best = run_folder / "weights" / "best.safetensors"
    answer = shell("eval", scenes, "--weights", best, "--workers", 0, "--device", "cpu", "--json")
    assert answer.code == 0
    metrics = load_weights(best)[0].metrics
    assert answer.json["metrics"] == pytest.approx(dict(metrics), abs=1e-6)


def test_predict_saves_images_and_results(shell: Callable, scenes: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    arguments = ["--weights", weights, "--conf", 0, "--device", "cpu", "--save", out, "--format", "json,coco", "voc"]
    answer = shell("predict", scenes / "val", *arguments, "--json")
    assert answer.code == 0
    images = answer.json["images"]
    assert [Path(image["path"]) for image in images] == sorted((scenes / "val").iterdir())
    assert all((image["width"], image["height"]) == (192, 192) for image in images)
    found = images[0]["detections"][0]
    assert set(found) == {"label", "class_id", "score", "box"}
    stems = {Path(image["path"]).stem for image in images}
    assert {path.stem for path in out.glob("*.jpg")} == stems
    assert {path.stem for path in (out / "voc").iterdir()} == stems
    assert json.loads((out / "results.json").read_text()) == answer.json
    assert answer.json["settings"] == {"precision": choose_precision(torch.device("cpu"), "auto"), "device": "cpu"}
    entries = json.loads((out / "coco.json").read_text())
    assert len(entries) == sum(len(image["detections"]) for image in images)
    assert {entry["image_id"] for entry in entries} <= set(range(1, len(images) + 1))


def test_predict_keeps_the_results_before_ctrl_c(
    shell: Callable, scenes: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = ResultsWriter.add

    def stop_at_the_second(writer: ResultsWriter, detections: Detections) -> dict[str, Any]:
        if list(writer.folder.glob("*.jpg")):
            raise KeyboardInterrupt
        return add(writer, detections)

    monkeypatch.setattr(ResultsWriter, "add", stop_at_the_second)
    out = tmp_path / "found"
    answer = shell("predict", scenes / "val", "--weights", weights, "--device", "cpu", "--save", out)
    assert answer.code == 130
    (kept,) = json.loads((out / "results.json").read_text())["images"]
    assert [kept["picture"]] == [path.name for path in out.glob("*.jpg")]


def test_predict_numbers_images_of_one_name(shell: Callable, scenes: Path, weights: Path, tmp_path: Path) -> None:
    first = sorted((scenes / "val").iterdir())[0]
    for folder, name in (("a", "photo"), ("b", "Photo")):  # one file where names have no case
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.png").write_bytes(first.read_bytes())
    sources = [tmp_path / "a", tmp_path / "b", tmp_path / "*" / "[pP]hoto.png"]
    out = tmp_path / "found"
    assert shell("predict", *sources, "--weights", weights, "--device", "cpu", "--save", out).code == 0
    written = {path.name for path in out.glob("*.jpg")}
    assert written == {"photo.jpg", "Photo-2.jpg", "photo-3.jpg", "Photo-4.jpg"}
    images = json.loads((out / "results.json").read_text())["images"]
    assert {image["picture"] for image in images} == written
    assert all(Path(image["path"]).stem.casefold() == image["picture"][:5].casefold() for image in images)


def test_predict_prints_a_line_per_image(shell: Callable, scenes: Path, weights: Path) -> None:
    first = sorted((scenes / "val").iterdir())[0]
    answer = shell("predict", first, "--weights", weights, "--device", "cpu")
    assert answer.code == 0
    assert answer.output.startswith(f"{first}  192 x 192: ")
    answer = shell("predict", first, "--weights", weights, "--device", "cpu", "--precision", "bf16")
    assert answer.output.endswith("1 image in bf16 on cpu\n")


@pytest.mark.slow
def test_predict_reads_paths_from_standard_input(scenes: Path, weights: Path) -> None:
    paths = sorted(map(str, (scenes / "val").iterdir()))
    command = [sys.executable, "-m", "twostage", "predict", "-", "--weights", str(weights), "--device", "cpu", "--json"]
    run = subprocess.run(command, input="\n".join(paths), capture_output=True, text=True, check=True)
    assert [image["path"] for image in json.loads(run.stdout)["images"]] == paths


def test_an_unreadable_image_does_not_stop_the_others(
    shell: Callable, scenes: Path, weights: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    (folder / "b.png").write_bytes(sorted((scenes / "val").iterdir())[0].read_bytes())
    out = tmp_path / "found"
    answer = shell("predict", folder, "--weights", weights, "--device", "cpu", "--save", out, "--json")
    assert answer.code == 3
    assert "a.png" in answer.messages
    assert [Path(image["path"]).name for image in answer.json["images"]] == ["b.png"]
    assert (out / "b.jpg").exists()
    assert len(json.loads((out / "results.json").read_text())["images"]) == 1


@pytest.mark.slow
def test_predict_imports_no_torchvision(scenes: Path, weights: Path) -> None:
    first = sorted((scenes / "val").iterdir())[0]
    code = (
        "import sys; from twostage.cli import main;"
        f"assert main(['predict', {str(first)!r}, '--weights', {str(weights)!r}, '--device', 'cpu']) == 0;"
        "assert 'torchvision' not in sys.modules; assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_demo_writes_a_self_contained_page(shell: Callable, tmp_path: Path) -> None:
    out = tmp_path / "my demo"
    sizes = ["--train-scenes", 8, "--val-scenes", 1, "--workers", 0, "--device", "cpu"]
    answer = shell("demo", "--minutes", 0.05, *sizes, "--out", out, "--json")
    assert answer.code == 0
    found = answer.json
    assert {"out", "weights", "epochs", "steps", "seconds", "metrics"} <= set(found)
    page = (out / "index.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/jpeg;base64,") == 1
    assert f"predict '{out}/scenes/val' --weights '{out}/train/weights/last.safetensors'" in html.unescape(page)
    assert "-1.000" not in page  # the AP of classes that the one scene lacks
    assert "data check" in page
    assert "Longer training" not in page  # of 8 scenes it would not give the AP of 600
    assert Path(found["weights"]).exists()
    assert len(list((out / "predictions").iterdir())) == 1


def test_demo_says_how_long_a_slow_machine_would_train() -> None:
    assert longer(3600, minutes=2).endswith("use --minutes 4.")
    assert longer(1000, minutes=2).endswith("use --minutes 15.")
    assert "500 images" in longer(500, minutes=0.1)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a child alone")
@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_the_weights(scenes: Path, tmp_path: Path, word: signal.Signals) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "twostage", "train", str(scenes), *QUICK, "--epochs", "3000", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "metrics.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(word)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "Traceback" not in messages
    assert (out / "weights" / "last.safetensors").exists()
    assert not [path for path in out.rglob("*") if path.name.startswith(".")], "a file is half-written"
