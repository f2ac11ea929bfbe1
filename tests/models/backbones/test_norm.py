import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm
from torchvision.ops import FrozenBatchNorm2d

from twostage.errors import UsageError
from twostage.models.backbones.norm import ConvNorm, FrozenBatchNorm, GroupNorm, NormConfig, conv_norm, norm_layer


def with_statistics(norm: nn.Module, seed: int = 0) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in norm.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=g) + (0.1 if name != "bias" else -0.5))
    return norm


def image() -> Tensor:
    return torch.randn(2, 8, 11, 9, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", [FrozenBatchNorm(4), nn.BatchNorm2d(4), None])
def test_hooks_of_every_kind_are_called(norm: nn.Module | None) -> None:
    """As tools that explain predictions set them (Grad-CAM)."""
    layer = ConvNorm(nn.Conv2d(8, 4, 3, bias=norm is None), norm, "relu").eval()
    seen: dict[str, Tensor] = {}
    modules = [(layer[0], "conv"), *([] if norm is None else [(norm, "norm")])]
    for module, name in modules:
        module.register_forward_pre_hook(lambda _m, x, k=f"{name} input": seen.update({k: x[0]}))
        module.register_forward_hook(lambda _m, _x, y, k=f"{name} output": seen.update({k: y}))
        module.register_full_backward_pre_hook(lambda _m, g, k=f"{name} output's gradient": seen.update({k: g[0]}))
        module.register_full_backward_hook(lambda _m, g, _o, k=f"{name} input's gradient": seen.update({k: g[0]}))
    expected = layer(image().requires_grad_())
    expected.sum().backward()
    assert len(seen) == 4 * len(modules)
    last = seen[f"{modules[-1][1]} output"]
    assert (last < 0).any()  # before the activation
    torch.testing.assert_close(last.relu(), expected)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3])
def test_frozen_equals_torchvision_and_batch_norm(eps: float) -> None:
    """torchvision's COCO_V1 ResNet-50 wants eps 0."""
    ours, theirs = FrozenBatchNorm(8, eps), FrozenBatchNorm2d(8, eps)
    with_statistics(theirs)
    ours.load_state_dict(theirs.state_dict())
    batch = nn.BatchNorm2d(8, eps).eval()
    batch.load_state_dict(theirs.state_dict(), strict=False)
    torch.testing.assert_close(ours(image()), theirs(image()))
    torch.testing.assert_close(ours(image()), batch(image()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (4, 1), (64, 8), (256, 32), (1024, 32), (528, 24), (720, 30)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    """528 and 720 are channels of EfficientNet-Lite2."""
    norm = norm_layer(NormConfig("group"))(channels)
    assert norm.num_groups == groups


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(UsageError, match=r"norm\.groups is 5, which does not divide the 24 channels"):
        norm_layer(NormConfig("group", groups=5))(24)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(8, 16, 1, bias=False),
        nn.Conv2d(8, 16, 5, padding=2, groups=8, bias=False),
        nn.Conv2d(8, 16, 3, padding=2, dilation=2, bias=False),
    ],
    ids=["stride", "1x1", "groups", "dilation"],
)
def test_folding_changes_neither_output_nor_gradient(conv: nn.Conv2d) -> None:
    norm = with_statistics(FrozenBatchNorm(16))
    x = image().requires_grad_()
    folded = conv_norm(x, conv, norm)
    weights = torch.randn_like(folded)
    gradients = torch.autograd.grad((folded * weights).sum(), [x, conv.weight])
    plain = norm(conv(x))
    expected = torch.autograd.grad((plain * weights).sum(), [x, conv.weight])
    torch.testing.assert_close(folded, plain, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_frozen_has_nothing_to_learn_and_moves_nothing() -> None:
    norm = with_statistics(FrozenBatchNorm(8)).train()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(image())
    assert not list(norm.parameters())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_trained_batch_norm_takes_its_statistics_from_the_batch() -> None:
    conv, norm = nn.Conv2d(8, 16, 1, bias=False), norm_layer(NormConfig("batch"))(16).train()
    out = conv_norm(image(), conv, norm)
    assert out.mean(dim=(0, 2, 3)).abs().max() < 1e-5


@pytest.mark.parametrize("channels", [8, 16, 24, 40, 64, 72, 112, 120, 184, 200, 256, 672, 960, 2048])
def test_groups_divide_every_width_the_backbones_have(channels: int) -> None:
    norm = norm_layer(NormConfig("group"))(channels)
    assert norm(torch.randn(1, channels, 2, 2)).shape == (1, channels, 2, 2)
    assert channels / norm.num_groups >= 8


def test_kinds_and_eps() -> None:
    kinds = {kind: norm_layer(NormConfig(kind, 0.25))(16) for kind in ("frozen", "batch", "group")}
    assert [type(norm) for norm in kinds.values()] == [FrozenBatchNorm, nn.BatchNorm2d, GroupNorm]
    assert all(norm.eps == 0.25 for norm in kinds.values())


@pytest.mark.parametrize("mean", [0.0, 5.0])
@pytest.mark.parametrize("shape", [(1, 64, 100, 130), (20, 256, 7, 7)], ids=str)
def test_group_norm_is_exact_in_both_orders_of_memory(shape: tuple[int, ...], mean: float) -> None:
    norm = norm_layer(NormConfig("group"))(shape[1])
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean
    expected = group_norm(x.double(), norm.num_groups, norm.weight.double(), norm.bias.double())
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad():
            found = norm(x.contiguous(memory_format=layout))
        assert found.is_contiguous(memory_format=layout)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
