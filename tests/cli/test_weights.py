"""`twostage weights`: names, files, pickles; nothing is downloaded unless requested."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))


def test_list(shell: Callable) -> None:
    answer = shell("weights", "list")
    assert answer.code == 0
    assert "faster_rcnn_resnet50_fpn-coco" in answer.output
    assert "AP 37.0 on COCO, 160 MiB, BSD-3-Clause" in answer.output
    rows = shell("weights", "list", "--json").json["weights"]
    assert {row["name"] for row in rows} >= {"vgg16-imagenet", "resnet101-imagenet"}
    assert not any(row["here"] for row in rows)


def test_info(shell: Callable, weights: Path) -> None:
    of_file = shell("weights", "info", weights, "--json").json
    assert (of_file["model"], of_file["detector"]) == ("faster_rcnn_tiny_fpn", True)
    assert of_file["names"][0] == "circle"
    of_name = shell("weights", "info", "vgg16-imagenet").output
    assert "https://download.pytorch.org/models/vgg16-397923af.pth" in of_name
    assert shell("weights", "info", "nowhere.safetensors").code == 4


@pytest.mark.parametrize(
    "words",
    [
        ["weights", "get", "resnet50-imagenet", "--offline"],
        ["predict", "{picture}", "--weights", "faster_rcnn_resnet50_fpn-coco", "--offline"],
        ["train", "{scenes}", "--model", "faster_rcnn_resnet50_fpn", "--weights", "resnet50-imagenet", "--offline"],
    ],
    ids=lambda words: words[0],
)
def test_without_network_the_address_is_named(shell: Callable, scenes: Path, tmp_path: Path, words: list[str]) -> None:
    known = {"scenes": scenes, "picture": sorted((scenes / "val").iterdir())[0]}
    answer = shell(*(word.format(**known) for word in words))
    assert answer.code == 4
    assert "https://download.pytorch.org/models/" in answer.messages
    assert str(tmp_path / "home" / "weights") in answer.messages


def test_get_of_an_unknown_name(shell: Callable) -> None:
    answer = shell("weights", "get", "resnet50")
    assert answer.code == 2
    assert "resnet50-imagenet" in answer.messages


@pytest.mark.slow
def test_training_starts_from_a_converted_backbone(shell: Callable, scenes: Path, tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "a.pth")
    answer = shell("weights", "convert", tmp_path / "a.pth", "--out", tmp_path / "a.safetensors")
    assert answer.code == 0
    started = shell(
        *("train", scenes, "--model", "faster_rcnn_resnet18_fpn", "--weights", tmp_path / "a.safetensors"),
        *("--size", 64, "--epochs", 1, "--batch", 8, "--workers", 0, "--val-split", "none", "--out", tmp_path / "run"),
    )
    assert started.code == 0
    assert re.search(r"backbone, stages 1 to 2 +\d+ of \d+ +frozen +none", started.messages)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "faster_rcnn_resnet50_fpn"], "--model needs --names"),
        (["--model", "faster_rcnn_resnet50_fpn", "--names", "cat", "--from", "detectron2"], "leave it out"),
        (["--from", "detectron"], 'Did you mean "detectron2"'),
        (["--model", "faster_rcnn_resnet50", "--names", "cat"], "Did you mean"),
    ],
)
def test_a_conversion_with_missing_options(shell: Callable, tmp_path: Path, words: list[str], message: str) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    answer = shell("weights", "convert", tmp_path / "a.pth", *words, "--out", tmp_path / "b.safetensors")
    assert answer.code == 2
    assert message in answer.messages
    assert not (tmp_path / "b.safetensors").exists()
