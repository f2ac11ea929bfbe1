"""Pickles give their tensors and nothing else."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from twostage.detector import Detector
from twostage.errors import DataError, MissingError, UsageError
from twostage.weights.file import load_tensors
from twostage.weights.pickled import coco_names, convert_backbone, convert_detector, read_pickle


class Hostile:
    """Would leave a file behind if its code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_no_code_of_a_pickle_runs(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": Hostile(trap)}, protocol=2))
    torch.save({"a": Hostile(trap)}, tmp_path / "zip.pth")
    torch.save({"a": Hostile(trap)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("plain", "zip", "old"):
        with pytest.raises(DataError, match=rf"{name}\.pth: cannot be read as plain tensors"):
            read_pickle(tmp_path / f"{name}.pth")
    assert not trap.exists()


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": t for name, t in state.items()}},
    ],
    ids=["plain", "checkpoint", "parallel"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_as_scripts_save_them(tmp_path: Path, wrapped: Callable, zipped: bool) -> None:
    state = {"a.weight": torch.rand(2, 3), "a.bias": torch.rand(3)}
    torch.save(wrapped(state), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    read = read_pickle(tmp_path / "a.pth")
    assert {name: t.tolist() for name, t in read.items()} == {name: t.tolist() for name, t in state.items()}


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, "text", torch.ones(2)], ids=lambda c: type(c).__name__)
def test_what_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(DataError, match="not a state dict"):
        read_pickle(tmp_path / "a.pth")


@pytest.mark.parametrize("junk", [b"", b"junk", b"PK\x03\x04 not a zip", bytes(1000)])
def test_junk(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(junk)
    with pytest.raises(DataError, match="cannot be read as plain tensors"):
        read_pickle(tmp_path / "a.pth")
    with pytest.raises(MissingError):
        read_pickle(tmp_path / "b.pth")


def torchvisions(path: Path) -> dict[str, Tensor]:
    torch.manual_seed(1)
    theirs = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=91
    )
    torch.save(theirs.state_dict(), path)
    return theirs.state_dict()


def test_a_detector(tmp_path: Path) -> None:
    state = torchvisions(tmp_path / "a.pth")
    model = "faster_rcnn_mobilenet_v3_large_320_fpn"
    convert_detector(tmp_path / "a.pth", tmp_path / "a.safetensors", model, coco_names(), licence="BSD")
    ours = Detector.load(tmp_path / "a.safetensors", device="cpu")
    assert len(ours.names) == 80
    assert (ours.names[0], ours.names[-1]) == ("person", "toothbrush")
    same = ours.model.state_dict()["rpn.objectness.weight"]
    assert torch.equal(same, state["rpn.head.cls_logits.weight"])
    with pytest.raises(DataError, match="90 classes"):
        convert_detector(tmp_path / "a.pth", tmp_path / "b.safetensors", model, ("a", "b"))
    with pytest.raises(UsageError, match="Did you mean"):
        convert_detector(tmp_path / "a.pth", tmp_path / "b.safetensors", "faster_rcnn_mobilenet_v3", coco_names())
    assert not (tmp_path / "b.safetensors").exists()


def test_a_backbone(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "a.pth")
    convert_backbone(tmp_path / "a.pth", tmp_path / "a.safetensors")
    _, tensors = load_tensors(tmp_path / "a.safetensors")
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)


@pytest.mark.parametrize(("names", "message"), [(("cat", "cat"), "'cat' comes twice"), (("cat", ""), "one is empty")])
def test_a_detector_of_classes_that_no_file_may_have(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convert_detector(tmp_path / "a.pth", tmp_path / "a.safetensors", "faster_rcnn_resnet50_fpn", names)
