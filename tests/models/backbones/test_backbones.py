"""Every body against torchvision's classification network of the same name: parameter names, shapes and outputs."""

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torchvision
from detectors import make_model
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from twostage.errors import UsageError
from twostage.models.backbones import resnet
from twostage.models.backbones.mobilenet import MobileNetV3Large
from twostage.models.backbones.norm import NormConfig, norm_layer
from twostage.models.backbones.resnet import ResNetConfig
from twostage.models.backbones.tiny import Tiny
from twostage.models.backbones.vgg import VGG16
from twostage.models.backbones.zf import ZF, LocalNorm

pytestmark = pytest.mark.usefixtures("no_gradients")

BATCH = norm_layer(NormConfig("batch"))
FROZEN = norm_layer(NormConfig("frozen"))


def image(height: int = 64, width: int = 48, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def drawn(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with weights that keep their spread, and BatchNorm statistics other than 0 and 1.

    Built without the library's own initialisation, which takes seconds for the large ones.
    """
    with torch.device("meta"):
        net = build()
    net = net.to_empty(device="cpu").eval()
    g = torch.Generator().manual_seed(0)
    for value in net.state_dict().values():
        if value.ndim > 1:
            value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=g)
        elif value.is_floating_point():
            value.uniform_(0.5, 1.0, generator=g)
    return net


def common(net: nn.Module, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in net.state_dict().items()
        if name.startswith(prefixes) and not name.endswith("num_batches_tracked")
    }


def assert_loads_exactly(ours: nn.Module, theirs: dict[str, Tensor]) -> nn.Module:
    """Every tensor, none left over."""
    own = {name for name in ours.state_dict() if not name.endswith("num_batches_tracked")}
    assert own == set(theirs)
    ours.load_state_dict(theirs, strict=False)
    return ours.eval()


STAGES = ("layer1", "layer2", "layer3", "layer4")


NORMS = (NormConfig("frozen"), NormConfig("batch"))


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnet_has_torchvisions_names(depth: int) -> None:
    with torch.device("meta"):
        theirs = common(getattr(torchvision.models, f"resnet{depth}")(weights=None), ("conv1", "bn1", *STAGES))
        for norm in NORMS:
            assert_loads_exactly(resnet.resnet(ResNetConfig(depth, norm=norm)), theirs)


def with_stride_in_1x1() -> nn.Module:
    """torchvision's ResNet-50 with the strides of the original."""
    net = torchvision.models.resnet50()
    for block in net.modules():
        if isinstance(block, torchvision.models.resnet.Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return net


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        (ResNetConfig(18), torchvision.models.resnet18),
        (ResNetConfig(50), torchvision.models.resnet50),
        (ResNetConfig(50, groups=32, width_per_group=4), torchvision.models.resnext50_32x4d),
        (ResNetConfig(50, stride_in_1x1=True), with_stride_in_1x1),
    ],
    ids=["resnet18", "resnet50", "resnext50", "stride in 1 x 1"],
)
def test_resnet_has_torchvisions_outputs(config: ResNetConfig, theirs: Callable[[], nn.Module]) -> None:
    net = drawn(theirs)
    getter = IntermediateLayerGetter(net, {stage: stage for stage in STAGES})
    expected = [*getter(image()).values()]
    for norm in NORMS:
        ours = assert_loads_exactly(resnet.resnet(replace(config, norm=norm)), common(net, ("conv1", "bn1", *STAGES)))
        for mine, other in zip(ours(image()), expected, strict=True):
            scale = float(other.abs().max())
            torch.testing.assert_close(mine / scale, other / scale, rtol=0, atol=2e-5)


def test_resnext101_has_torchvisions_names() -> None:
    with torch.device("meta"):
        for groups, width in ((32, 8), (64, 4)):
            net = getattr(torchvision.models, f"resnext101_{groups}x{width}d")(weights=None)
            config = ResNetConfig(101, groups=groups, width_per_group=width)
            assert_loads_exactly(resnet.resnet(config), common(net, ("conv1", "bn1", *STAGES)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ResNetConfig(18, first=4, last=3), "first is 4 and backbone.last is 3"),
        (ResNetConfig(18, dilated=True), "dilated: .*backbone.first is 1"),
        (ResNetConfig(18, first=3, last=3, dilated=True), "dilated: .*backbone.first is 3"),
    ],
)
def test_stages_that_contradict_each_other(config: ResNetConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.build()
    assert config.with_single_map().build().strides == (16,)


def test_a_network_without_bottlenecks_has_no_stride_in_their_1x1() -> None:
    with pytest.raises(UsageError, match="ResNet-18 has no bottlenecks"):
        ResNetConfig(18, stride_in_1x1=True).build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: resnet.resnet(ResNetConfig(18)),
        lambda: resnet.resnet(ResNetConfig(50)),
        lambda: resnet.resnet(ResNetConfig(50, first=3, last=3)),
        lambda: MobileNetV3Large(FROZEN),
        lambda: Tiny(BATCH),
        lambda: VGG16(),
    ],
    ids=["resnet18", "resnet50", "resnet50 to stage 3", "mobilenet", "tiny", "vgg16"],
)
@pytest.mark.parametrize("shape", [(64, 96), (75, 33)], ids=str)
def test_maps_have_the_declared_channels_and_strides(build: Callable[[], nn.Module], shape: tuple[int, int]) -> None:
    with torch.device("meta"):
        net = build().eval()
    maps = net(torch.empty(2, 3, *shape, device="meta"))
    expected = [(2, c, *(-(-side // s) for side in shape)) for c, s in zip(net.channels, net.strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == expected


def test_vgg16_has_torchvisions_names_and_outputs() -> None:
    """For sides divisible by 16, where rounding up and down agree."""
    theirs = drawn(lambda: nn.Sequential(OrderedDict(features=torchvision.models.vgg16().features)))
    ours = assert_loads_exactly(VGG16(), theirs.state_dict())
    before_pool5 = theirs.features[:-1](image())
    torch.testing.assert_close(ours(image())[0], before_pool5)


def test_vgg16s_poolings_round_up() -> None:
    """A 600 x 800 image has a 38 x 50 map; torchvision's floor would give 37 x 50. Shapes only: no arithmetic."""
    with torch.device("meta"):
        net = VGG16()
    assert net(torch.empty(1, 3, 600, 800, device="meta"))[0].shape == (1, 512, 38, 50)
    assert net(torch.empty(1, 3, 224, 224, device="meta"))[0].shape == (1, 512, 14, 14)
    assert net(torch.empty(1, 3, 17, 33, device="meta"))[0].shape == (1, 512, 2, 3)


def test_mobilenet_has_torchvisions_names_and_outputs() -> None:
    theirs = drawn(lambda: torchvision.models.mobilenet_v3_large(weights=None, norm_layer=nn.BatchNorm2d))
    getter = IntermediateLayerGetter(theirs.features, {"13": "0", "16": "1"})
    expected = [*getter(image()).values()]
    for norm in (FROZEN, BATCH):
        ours = assert_loads_exactly(MobileNetV3Large(norm), common(theirs, ("features",)))
        for mine, other in zip(ours(image()), expected, strict=True):
            scale = float(other.abs().max())
            torch.testing.assert_close(mine / scale, other / scale, rtol=0, atol=2e-5)


def test_mobilenets_returned_maps_are_torchvisions_choice() -> None:
    """`_mobilenet_extractor` takes the maps of the last two strides' ends: channels 160 and 960."""
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn

    with torch.device("meta"):
        theirs = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
    names = [int(name) for name in theirs.backbone.body.return_layers]
    assert names == [*MobileNetV3Large.returned]


@pytest.mark.parametrize(("image", "expected"), [((600, 800), (39, 51)), ((224, 224), (15, 15))])
def test_zfs_map_is_caffes(image: tuple[int, int], expected: tuple[int, int]) -> None:
    """Caffe's ceil((h + 2 pad - kernel) / stride) + 1 for the padded poolings: a row and a column more than h / 16."""
    with torch.device("meta"):
        net = ZF()
    assert net(torch.empty(1, 3, *image, device="meta"))[0].shape == (1, 256, *expected)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: VGG16(), 5),
        (lambda: ZF(), 5),
        (lambda: resnet.resnet(ResNetConfig(18)), 5),
        (lambda: resnet.resnet(ResNetConfig(50, first=3, last=3)), 4),
        (lambda: MobileNetV3Large(BATCH), 6),
        (lambda: Tiny(BATCH), 5),
    ],
    ids=["vgg16", "zf", "resnet18", "resnet50 to stage 3", "mobilenet", "tiny"],
)
def test_parts_are_the_whole_body_from_the_input_on(build: Callable[[], nn.Module], count: int) -> None:
    """What `--freeze n` fixes: each parameter in exactly one part, in the order of the forward pass."""
    with torch.device("meta"):
        net = build()
    parts = net.get_stages()
    assert len(parts) == count
    of_parts = [p for part in parts for module in part for p in module.parameters()]
    assert len({id(p) for p in of_parts}) == len(of_parts)
    assert [id(p) for p in of_parts] == [id(p) for p in net.parameters()]


def test_freezing_layers_before_conv3_1_is_two_parts_of_vgg16() -> None:
    """Faster R-CNN, section 3.1.3 and py-faster-rcnn: conv1 and conv2, four convolutions."""
    with torch.device("meta"):
        parts = VGG16().get_stages()
    convolutions = [m for part in parts[:2] for m in part if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 64, 128, 128]


def test_zfs_normalisation_is_caffes_within_a_channel() -> None:
    """LRNLayer, WITHIN_CHANNEL: (1 + alpha / 9 * sum of x^2 in 3 x 3 cells) ^ -0.75, beyond the border x is 0."""
    x = torch.arange(1.0, 19).view(1, 2, 3, 3) * 100
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    expected = torch.empty_like(x)
    for channel, y, column in itertools.product(range(2), range(3), range(3)):
        near = padded[0, channel, y : y + 3, column : column + 3]
        expected[0, channel, y, column] = x[0, channel, y, column] * (1 + 5e-5 / 9 * near.square().sum()) ** -0.75
    torch.testing.assert_close(LocalNorm()(x), expected)


def described(layer: nn.Module) -> str:
    """A layer as papers write it: kernel, stride, channels."""
    if isinstance(layer, nn.Conv2d):
        return f"conv{layer.kernel_size[0]}/{layer.stride[0]}-{layer.out_channels}"
    if isinstance(layer, nn.MaxPool2d):
        return f"pool{layer.kernel_size}/{layer.stride}"
    return {"ReLU": "relu", "LocalNorm": "norm"}[type(layer).__name__]


def test_vgg16_layer_by_layer() -> None:
    """Simonyan and Zisserman 2015, table 1, configuration D; RoIPool replaces the last pooling."""
    blocks = [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3]
    convs = [[layer for width in block for layer in (f"conv3/1-{width}", "relu")] for block in blocks]
    expected = [layer for block in convs for layer in [*block, "pool2/2"]][:-1]
    assert [described(layer) for layer in VGG16().features] == expected


def test_zf_layer_by_layer() -> None:
    """Zeiler and Fergus 2014, figure 3, as Faster R-CNN's ZF: two strides of 2, two poolings, five convolutions."""
    expected = [
        *("conv7/2-96", "relu", "norm", "pool3/2", "conv5/2-256", "relu", "norm", "pool3/2"),
        *("conv3/1-384", "relu", "conv3/1-384", "relu", "conv3/1-256", "relu"),
    ]
    assert [described(layer) for layer in ZF().features] == expected


@pytest.mark.parametrize(("name", "inputs"), [("vgg16", 512 * 7 * 7), ("zf", 256 * 6 * 6)])
def test_their_hidden_layers_have_4096_units(name: str, inputs: int) -> None:
    with torch.device("meta"):
        body = make_model(f"faster_rcnn_{name}", 20).head.body
    assert body.fc6.weight.shape == (4096, inputs)
    assert body.fc7.weight.shape == (4096, 4096)
    assert body.dropout == 0.5


def test_a_dilated_last_stage_keeps_its_map_and_its_weights() -> None:
    """Stride 16 instead of 32; the output equals that of torchvision's network with the strides of layer4 set to 1."""
    torch.manual_seed(0)
    ours = resnet.resnet(ResNetConfig(50, first=4, dilated=True, norm=NormConfig("batch"))).eval()
    theirs = torchvision.models.resnet50(weights=None).eval()
    names = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not names.unexpected_keys
    assert names.missing_keys == ["fc.weight", "fc.bias"]
    for module in theirs.layer4.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.padding = module.dilation = (2, 2)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        (result,) = ours(x)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(y))))
    assert ours.strides == (16,)
    assert result.shape == (1, 2048, 4, 6)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
