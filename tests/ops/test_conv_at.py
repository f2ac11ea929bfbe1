import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d

from twostage.ops.conv_at import conv_at


def dense(maps: list[Tensor], cells: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's convolution of every cell, of which some are taken."""
    whole = [conv2d(x, weight, bias, padding=weight.shape[2] // 2).permute(0, 2, 3, 1).flatten(1, 2) for x in maps]
    return torch.cat(whole, dim=1).gather(1, cells[..., None].expand(-1, -1, len(weight)))


@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    images=st.integers(1, 3),
    side=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 1 << 16),
)
def test_is_the_convolution_with_its_gradients(
    shapes: list[tuple[int, int]], images: int, side: int, seed: int
) -> None:
    """Cells may come several times, and lie on the border of maps of any size."""
    g = torch.Generator().manual_seed(seed)
    maps = [torch.randn(images, 3, h, w, generator=g, dtype=torch.float64, requires_grad=True) for h, w in shapes]
    weight = torch.randn(4, 3, side, side, generator=g, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, generator=g, dtype=torch.float64, requires_grad=True)
    cells = torch.randint(sum(h * w for h, w in shapes), (images, 9), generator=g)
    some, every = conv_at(maps, cells, weight, bias), dense(maps, cells, weight, bias)
    torch.testing.assert_close(some, every)
    scale = torch.randn(some.shape, generator=g, dtype=torch.float64)
    inputs = [*maps, weight, bias]
    gradients = (torch.autograd.grad((y * scale).sum(), inputs) for y in (some, every))
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_of_either_layout(layout: torch.memory_format) -> None:
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 8, 5, 7, generator=g).contiguous(memory_format=layout)]
    weight, cells = torch.randn(4, 8, 3, 3, generator=g), torch.arange(35).expand(2, -1)
    torch.testing.assert_close(conv_at(maps, cells, weight, None), dense(maps, cells, weight, None))
