"""`twostage bench`: its numbers, its files, its errors."""

import json

import pytest
from PIL import Image

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
    assert set(one["peers"]) == {"torchvision fp32"}
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


def test_bench_names_unreadable_files(shell, tmp_path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    answer = shell("bench", broken, "--model", "faster_rcnn_tiny_fpn", "--device", "cpu")
    assert answer.code == 3
    assert "broken.jpg" in answer.messages
    assert shell("bench", "--batch", "0").code == 2
    assert shell("bench", "--model", "faster_rcnn_tinny").code == 2
