"""Networks of timm: any with maps of strides 4 to 32, and plain vision transformers."""

import sys
from pathlib import Path

import pytest
import timm
import torch

from twostage.detector import Detector
from twostage.errors import MissingError, UsageError
from twostage.models.backbones.timm import TimmConfig, TimmNetwork
from twostage.models.build import with_backbone
from twostage.models.zoo import named


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_convnext", "test_efficientnet", "vgg11", "swin_tiny_patch4_window7_224"]
)
def test_maps_are_those_of_timm_with_channels_first(name: str) -> None:
    network = TimmNetwork(name).eval()
    images = torch.randn(1, 3, 64, 96)
    own = timm.create_model(name, features_only=True, **({"strict_img_size": False} if "swin" in name else {})).eval()
    own.load_state_dict({key.removeprefix("net."): value for key, value in network.state_dict().items()})
    wanted = {m.shape[2 if m.shape[1] in own.feature_info.channels() else 1]: m for m in own(images)}
    for found, stride, width in zip(network(images), network.strides, network.channels, strict=True):
        assert found.shape == (1, width, 64 // stride, 96 // stride)
        same = wanted[64 // stride]
        torch.testing.assert_close(found, same if same.shape[1] == width else same.permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_dinov2", "vit_small_patch32_224"])
def test_a_plain_transformer_has_four_maps_of_its_last(name: str) -> None:
    network = TimmNetwork(name).eval()
    assert network.strides == (4, 8, 16, 32)
    maps = network(torch.randn(1, 3, 80, 112))
    assert [tuple(m.shape[2:]) for m in maps] == [(20, 28), (10, 14), (5, 7), (3, 4)]
    assert [m.shape[1] for m in maps] == list(network.channels)


def test_tokens_of_a_convolutional_network_stay_as_wide_as_they_are() -> None:
    assert TimmNetwork("vit_tiny_r_s16_p8_224").strides == (32,)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "mobilenetv3_small_050", "vgg11"])
def test_stages_hold_every_parameter_once(name: str) -> None:
    network = TimmNetwork(name)
    stages = network.get_stages()
    assert len(stages) == 4
    held = [id(p) for stage in stages for module in stage for p in module.parameters()]
    assert sorted(held) == sorted(id(p) for p in network.net.parameters())


def test_freezing_the_first_stages_fixes_the_maps_up_to_theirs() -> None:
    network = TimmNetwork("test_resnet").eval()
    for module in (module for stage in network.get_stages()[:2] for module in stage):
        module.requires_grad_(False)
    assert [m.requires_grad for m in network(torch.zeros(1, 3, 64, 64))] == [False, False, True, True]


def test_images_are_normalised_as_the_weights_want_them() -> None:
    config = with_backbone(named("faster_rcnn_resnet50_fpn"), "timm:test_vit")
    assert config.image.mean == config.image.std == (0.5, 0.5, 0.5)
    assert config.backbone == TimmConfig("test_vit")


def test_a_detector_around_it_is_saved_by_its_name_and_loads_alone(tmp_path: Path) -> None:
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a", "b"], backbone="timm:test_convnext", device="cpu")
    detector.save(tmp_path / "a.safetensors")
    loaded = Detector.load(tmp_path / "a.safetensors", device="cpu")
    image = torch.rand(3, 64, 96)
    first, second = (each.predict(image, conf=0.0) for each in (detector, loaded))
    assert first.to_dict() == second.to_dict()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("resnet18", "give timm:NAME"),
        ("timm:resnet81", "has no network 'resnet81'. Did you mean 'resnet18'"),
        ("timm:resnet18.tw_in1k", "no weights 'tw_in1k' of resnet18. Did you mean 'tv_in1k'"),
        ("timm:hiera_tiny_224", "does not take images of any size"),
    ],
)
def test_what_cannot_be_a_backbone_is_named(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Detector.build("faster_rcnn_tiny_fpn", ["a"], backbone=given, device="cpu")


@pytest.mark.parametrize("model", ["faster_rcnn_vgg16", "faster_rcnn_tiny", "faster_rcnn_resnet50_c4"])
def test_a_model_without_a_pyramid_is_refused(model: str) -> None:
    with pytest.raises(UsageError, match="this model has no pyramid"):
        Detector.build(model, ["a"], backbone="timm:test_resnet", device="cpu")


def test_a_single_map_is_refused() -> None:
    with pytest.raises(UsageError, match="this model has no pyramid"):
        Detector.build("faster_rcnn_tiny_fpn", ["a"], backbone="timm:test_resnet", device="cpu", pyramid="single")


def test_without_timm_the_message_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingError, match=r"pip install 'twostage\[timm\]'"):
        Detector.build("faster_rcnn_tiny_fpn", ["a"], backbone="timm:resnet18")
