"""`twostage bench`: its numbers, its files, its errors."""

import json
import re
from types import SimpleNamespace

import pytest
from PIL import Image

from twostage import Detector
from twostage.cli import bench
from twostage.inference import peer, predictor, timing

SMALL = ("--size", "64", "--max-size", "96", "--repeats", "1")


@pytest.mark.slow
def test_bench_times_every_batch_beside_torchvision(shell, tmp_path) -> None:
    out = tmp_path / "speed"
    model = "faster_rcnn_mobilenet_v3_large_320_fpn"
    answer = shell("bench", "--model", model, *SMALL, "--batch", "1", "2", "--out", out, "--json", "--device", "cpu")
    assert answer.code == 0
    one, two = answer.json["batches"]
    assert (one["batch"], two["batch"]) == (1, 2)
    assert one["sizes"] == [[64, 85]]
    assert one["milliseconds"]["minimum"] > 0
    assert set(one["peers"]) == {"torchvision fp32", f"torchvision {answer.json['precision']}"}
    assert {taken["calls"] for taken in (one["milliseconds"], *one["peers"].values(), *one["stages"].values())} == {1}
    assert (answer.json["complete"], answer.json["not_measured"]) == (True, [])
    assert {"read", "backbone", "heads"} <= set(one["stages"])
    kept = json.loads((out / "bench.json").read_text())
    assert kept["batches"] == answer.json["batches"]
    assert "torch" in kept["environment"]["packages"]
    assert Image.open(out / "stages.png").size[0] > 500


def test_bench_of_own_weights_and_images(shell, weights, scenes) -> None:
    pictures = sorted(scenes.rglob("*.jpg"))[:2]
    answer = shell("bench", *pictures, "--weights", weights, "--repeats", "1", "--batch", "2", "--device", "cpu")
    assert answer.code == 0
    assert "whole prediction" in answer.output
    assert "region features" in answer.output
    assert "torchvision" not in answer.output  # it has no such model
    assert re.search(r"^forms: \d+ (packed|plain|Winograd)", answer.output, re.MULTILINE)


def test_bench_says_at_once_what_it_times_where(shell, weights, monkeypatch) -> None:
    monkeypatch.setattr(Detector, "load", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("slow")))
    answer = shell("bench", "--weights", weights, "--device", "cpu", "--precision", "fp32")
    assert answer.code == 1
    (line,) = answer.output.splitlines()
    assert line.startswith(f"{weights}, fp32 on cpu: ")
    assert re.search(r", (1 thread|[2-9]\d* threads|\d\d+ threads); 60 seconds$", line)


def test_bench_names_what_there_was_no_time_for(shell, weights) -> None:
    answer = shell("bench", "--weights", weights, "--device", "cpu", "--seconds", "0.001", "--json")
    assert answer.code == 0
    assert [row["batch"] for row in answer.json["batches"]] == [1]
    assert (answer.json["complete"], answer.json["not_measured"]) == (False, ["batch 1, stages", "batch 4"])
    assert "not measured: batch 1, stages; batch 4: 0.001 seconds were over; use --seconds 0.002" in answer.messages


def test_bench_prints_what_it_has_on_ctrl_c(shell, weights, tmp_path, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "time_stages", stop)
    out = tmp_path / "speed"
    options = ("--weights", weights, "--device", "cpu", "--repeats", "1", "--out", out)
    answer = shell("bench", *options, "--json")
    assert answer.code == 130
    assert "whole prediction" in answer.messages
    assert "twostage: stopped: the numbers are incomplete" in answer.messages
    assert answer.json["complete"] is False
    assert answer.json["batches"][0]["milliseconds"]["calls"] == 1
    assert json.loads((out / "bench.json").read_text())["batches"] == answer.json["batches"]


@pytest.mark.parametrize(
    ("ours", "theirs", "measured", "seconds"),
    [
        (3.5, 4.0, [{"twostage", "torchvision fp32", "stages"}, {"twostage", "torchvision fp32"}], 70),
        (15.0, 15.0, [{"twostage", "torchvision fp32", "stages"}, set()], 70),
        (4.0, 15.0, [{"twostage", "torchvision fp32", "stages"}, {"twostage", "stages"}], 70),
        (0.1, 0.2, [{"twostage", "torchvision fp32", "torchvision bf16", "stages"}] * 2, 60),
    ],
)
def test_bench_keeps_to_its_time_on_slow_machines(monkeypatch, ours, theirs, measured, seconds) -> None:
    """The clock moves with the calls alone: `ours` and `theirs` seconds for each image."""
    clock = SimpleNamespace(now=5.0)  # torch is loaded, the model built
    clock.perf_counter = lambda: clock.now

    def takes(each: float):
        return lambda _, images, *rest: vars(clock).update(now=clock.now + each * len(images))

    for module, name, fake in [
        *((module, "time", clock) for module in (bench, timing)),
        (timing, "peak_memory", lambda device, call: call() or 1 << 30),
        (timing, "time_stages", takes(ours)),
        (predictor, "predict_arrays", takes(ours)),
        (peer, "build_peer", lambda *_: SimpleNamespace()),
        (peer, "predict_peer", takes(theirs)),
    ]:
        monkeypatch.setattr(module, name, fake)
    monkeypatch.setattr(bench, "_print", lambda row: None)
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu")
    detector.precision = "bf16"
    rows = [bench._Row([b""] * size, [SimpleNamespace(shape=(8, 8, 3))] * size) for size in (1, 4)]
    peers = {"torchvision fp32": "fp32", "torchvision bf16": "bf16"}
    bench._measure(bench.BenchOptions(), detector, rows, peers, end=60.0)
    assert [{name for name, taken in row.calls.items() if taken} for row in rows] == measured
    assert clock.now <= seconds


def test_bench_names_unreadable_files(shell, tmp_path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    answer = shell("bench", broken, "--model", "faster_rcnn_tiny_fpn", "--device", "cpu")
    assert answer.code == 3
    assert "broken.jpg" in answer.messages
    assert shell("bench", "--batch", "0").code == 2
    assert shell("bench", "--model", "faster_rcnn_tinny").code == 2


def test_bench_leaves_the_choice_of_forms_out(shell) -> None:
    words = ("bench", "--model", "faster_rcnn_tiny_fpn", "--repeats", "1", "--batch", "1", "--no-choose-forms")
    answer = shell(*words, "--device", "cpu", "--seconds", "5", "--json")
    assert answer.code == 0
    assert {form.split()[1] for form in answer.json["forms"]} <= {
        "PackedConv",
        "PackedPointwise",
        "PackedLinear",
        "PlainConv",
        "PlainLinear",
    }
