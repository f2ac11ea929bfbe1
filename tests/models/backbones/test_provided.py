"""A user's backbone in place of one of the library's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from twostage.data.batch import Batch, Targets
from twostage.detector import Detector
from twostage.errors import UsageError
from twostage.models.backbones.norm import FrozenBatchNorm
from twostage.models.backbones.provided import ProvidedBackbone, ProvidedConfig
from twostage.models.build import build
from twostage.models.configure import configure
from twostage.models.zoo import named
from twostage.training import TrainOptions
from twostage.training.start import starting_model

SIZES = [(64, 96), (60, 80)]


class Plain(nn.Module):
    """Strided convolutions; `form` is what its maps are returned in."""

    channels = (8, 12, 16, 20)
    strides = (4, 8, 16, 32)

    def __init__(self, form: Callable[[list[Tensor]], Any] = tuple) -> None:
        super().__init__()
        self.form = form
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        # A normalisation that is declared behind a convolution and runs before it must not be folded into it.
        self.steps = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip((8, 12, 16), (12, 16, 20), strict=True))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Any:
        maps = [self.norm(self.stem(x))]
        for step in self.steps:
            maps.append(step(maps[-1]).relu())
        return self.form(maps)


class Single(Plain):
    """The map of stride 16 alone, as a tensor."""

    channels = (16,)
    strides = (16,)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[2]


def test_a_network_of_torchvisions_feature_extractor_is_copied_with_its_numbers() -> None:
    """The example of docs/backbones.md: a copy of torch.fx's module lacks the attributes that were set on it."""
    nodes = {f"layer{k}": str(k) for k in (1, 2, 3, 4)}
    net = create_feature_extractor(resnet18(weights=None), nodes)
    net.channels, net.strides = (64, 128, 256, 512), (4, 8, 16, 32)
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a"], backbone=net, device="cpu")
    assert detector.config.backbone.channels == (64, 128, 256, 512)
    assert torch.equal(detector.model.state_dict()["backbone.body.module.conv1.weight"], net.conv1.weight)


def as_dict(maps: list[Tensor]) -> dict[str, Tensor]:
    return {str(k): x for k, x in enumerate(maps)}


SMALL = {"rpn_keep_train": 30, "rpn_keep_test": 12, "region_batch": 8, "head_channels": 16, "score_threshold": 0.0}


@pytest.mark.parametrize("form", [tuple, list, as_dict])
@pytest.mark.parametrize("name", ["faster_rcnn_tiny_fpn", "cascade_mask_rcnn_tiny_fpn"])
def test_a_pyramid_stands_on_it(
    name: str, form: Callable, make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    config = configure(named(name), {**SMALL, "mask_regions": 4} if "mask" in name else SMALL)
    model = build(config, 3, Plain(form))
    batch = make_batch(*SIZES)
    with torch.no_grad():
        stages = model.eval().stages(batch)
    assert [x.shape[1] for x in stages.maps] == [64] * 4
    assert stages.detections.valid.any()
    assert model.config.backbone == ProvidedConfig("Plain", Plain.channels, Plain.strides)
    if "mask" not in name:
        losses = model.train()(batch, make_targets(SIZES, [3, 1]))
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in model.backbone.body.module.parameters())


@pytest.mark.parametrize("changes", [{}, {"roi": "align"}], ids=["RoIPool", "RoIAlign"])
def test_a_single_map(
    changes: dict[str, Any], make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]
) -> None:
    model = build(configure(named("faster_rcnn_tiny"), SMALL | changes), 3, Single())
    batch = make_batch(*SIZES)
    with torch.no_grad():
        stages = model.eval().stages(batch)
    assert [tuple(x.shape[1:]) for x in stages.maps] == [(16, 4, 6)]
    assert stages.detections.valid.any()
    losses = model.train()(batch, make_targets(SIZES, [3, 1]))
    assert set(losses) == {"rpn_class", "rpn_box", "class", "box"}
    sum(losses.values()).backward()
    assert model.backbone.module.stem.weight.grad.any()


def test_retinanet_on_it(make_batch: Callable[..., Batch], make_targets: Callable[..., Targets]) -> None:
    model = build(named("retinanet_tiny_fpn"), 3, Plain())
    losses = model.train()(make_batch(*SIZES), make_targets(SIZES, [3, 1]))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.backbone.body.module.parameters())


@pytest.mark.parametrize("kind", ["single", "image"])
def test_a_pyramid_of_a_single_map_needs_a_backbone_with_one(kind: str, make_batch: Callable[..., Batch]) -> None:
    config = configure(named("faster_rcnn_tiny_fpn"), {**SMALL, "pyramid": kind})
    with pytest.raises(UsageError, match=rf"pyramid is '{kind}', which needs a backbone with a single map.* has 4"):
        build(config, 3, Plain())
    with torch.no_grad():
        assert build(config, 3, Single()).eval()(make_batch(*SIZES)).valid.any()


def test_levels_that_do_not_fit_the_anchors_are_named() -> None:
    with pytest.raises(UsageError, match=r"anchor_sizes lists \[1, 1, 1, 1\].*5 levels \(strides 4, 8, 16, 32, 64\)"):
        build(configure(named("faster_rcnn_resnet18_fpn"), {"anchor_sizes": [[16], [32], [64], [128]]}), 3, Plain())


def test_its_stages_can_be_its_own() -> None:
    net = Plain()
    assert ProvidedBackbone(net).get_stages() == [[net]]
    net.get_stages = lambda: [[net.stem, net.norm], [*net.steps]]
    assert len(ProvidedBackbone(net).get_stages()) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": None}, "channels is None: give a tuple of whole numbers"),
        ({"channels": ()}, r"channels is \(\)"),
        ({"strides": (4, 8.5, 16, 32)}, "strides is .*8.5"),
        ({"strides": (4, 8)}, "one of each per map"),
        ({"strides": (32, 16, 8, 4)}, "the finest map"),
        ({"strides": (4, 8, 32, 64)}, "each stride twice the one before"),
    ],
    ids=str,
)
def test_wrong_channels_and_strides_are_refused(changes: dict[str, Any], message: str) -> None:
    net = Plain()
    for name, value in changes.items():
        setattr(net, name, value)
    with pytest.raises(UsageError, match=message):
        ProvidedBackbone(net)


def test_maps_of_other_channels_are_named() -> None:
    net = Plain()
    net.channels = (8, 12, 16, 24)
    with pytest.raises(UsageError, match=r"channels \(8, 12, 16, 24\) and returns maps of \[\(1, 8, 16, 16\)"):
        ProvidedBackbone(net)(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("strides", [(8, 16, 32, 64), (2, 4, 8, 16)])
def test_maps_of_other_strides_are_named(strides: tuple[int, ...]) -> None:
    net = Plain()
    net.strides = strides
    with pytest.raises(UsageError, match=r"has strides .* returns maps of .* for images of \(1, 3, 64, 96\)"):
        ProvidedBackbone(net)(torch.rand(1, 3, 64, 96))


@pytest.mark.parametrize("size", [(64, 96), (67, 75), (33, 190)])
def test_padding_may_add_or_remove_a_border_cell(size: tuple[int, int]) -> None:
    maps = ProvidedBackbone(Plain())(torch.rand(1, 3, *size))
    assert len(maps) == 4


def test_the_module_must_be_given_again() -> None:
    config = build(configure(named("faster_rcnn_tiny_fpn"), SMALL), 3, Plain()).config
    with pytest.raises(UsageError, match="Plain, whose code is not in the file"):
        build(config, 3)
    assert build(config, 3, Plain()).config == config


def test_models_of_one_module_do_not_share_it() -> None:
    module = Plain()
    first, second = (build(configure(named("faster_rcnn_tiny_fpn"), SMALL), 1, module) for _ in range(2))
    for parameter in first.parameters():
        parameter.requires_grad_(False).fill_(7.0)
    own, others = module.stem.weight, second.backbone.body.module.stem.weight
    assert torch.equal(own, others)
    assert own.requires_grad
    assert (own != 7).all()


def test_the_fields_of_the_backbone_it_replaces_are_unknown() -> None:
    with pytest.raises(UsageError, match="no field 'norm'"):
        Detector.build("faster_rcnn_tiny_fpn", ["a"], backbone=Plain(), norm="batch")


def test_its_images_are_normalised_as_torchvisions_whatever_the_model(tmp_path: Path) -> None:
    """EfficientNet-Lite, whose place it takes, has other ones. Values that are given or saved stay."""
    image = build(named("faster_rcnn_lite0_fpn"), 1, Plain()).config.image
    assert (image.mean, image.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    own = Detector.build("faster_rcnn_lite0_fpn", ["a"], backbone=Plain(), device="cpu", mean=(0.5, 0.5, 0.5))
    own.save(tmp_path / "a.safetensors")
    again = Detector.load(tmp_path / "a.safetensors", backbone=Plain(), device="cpu")
    assert again.model.config.image.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", ["faster_rcnn_resnet18_fpn", "faster_rcnn_vgg16"])
def test_frozen_statistics_of_the_module_stay(name: str) -> None:
    module = Single() if name.endswith("vgg16") else Plain()
    module.norm = FrozenBatchNorm(8)
    options = TrainOptions(data=Path("unread"), model=name)
    model = starting_model(options, ("a",), backbone=module).model
    assert any(isinstance(m, FrozenBatchNorm) for m in model.modules())


def test_stage_5_takes_the_channels_of_the_module() -> None:
    model = build(named("faster_rcnn_resnet50_c4"), 1, Single())
    assert model.head.body.layer4[0].conv1.in_channels == 16


@pytest.mark.parametrize("name", ["faster_rcnn_vgg16", "sppnet_tiny", "fast_rcnn_tiny"])
def test_a_model_without_a_pyramid_needs_a_single_map(name: str) -> None:
    with pytest.raises(UsageError, match="returns 4 maps; this model has no pyramid"):
        build(named(name), 2, Plain())


def test_a_module_of_other_strides_is_refused_when_loading(tmp_path: Path) -> None:
    Detector.build("faster_rcnn_tiny_fpn", ["a"], backbone=Plain(), device="cpu").save(tmp_path / "a.safetensors")
    other = Plain()
    other.strides = (2, 4, 8, 16)
    with pytest.raises(UsageError, match=r"strides \(4, 8, 16, 32\)"):
        Detector.load(tmp_path / "a.safetensors", backbone=other, device="cpu")
