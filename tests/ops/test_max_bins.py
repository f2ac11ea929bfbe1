from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from twostage.ops.accelerator import max_bins as accelerator
from twostage.ops.cpu import max_bins as cpu
from twostage.ops.max_bins import max_bins


def example() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    feature = torch.randint(-3, 3, (2, 4, 9, 11), generator=g).float()  # ties everywhere
    rows = torch.randint(0, 10, (2, 6, 3, 2), generator=g).sort(dim=-1).values
    columns = torch.randint(0, 12, (2, 6, 2, 2), generator=g).sort(dim=-1).values
    return feature, rows, columns


def by_hand(feature: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    n, p, by, _ = rows.shape
    out = torch.zeros(n, p, feature.shape[1], by, columns.shape[2])
    for i in range(n):
        for r in range(p):
            for y, (top, bottom) in enumerate(rows[i, r].tolist()):
                for x, (left, right) in enumerate(columns[i, r].tolist()):
                    if top < bottom and left < right:
                        out[i, r, :, y, x] = feature[i, :, top:bottom, left:right].amax((1, 2))
    return out


def test_equals_the_definition() -> None:
    feature, rows, columns = example()
    expected = by_hand(feature, rows, columns)
    assert torch.equal(max_bins(feature, rows, columns, most=(9, 11)), expected)
    assert torch.equal(accelerator.forward(feature, rows, columns, (9, 11)).permute(0, 1, 4, 2, 3), expected)


def test_the_first_largest_cell_takes_the_gradient() -> None:
    feature = torch.tensor([[1.0, 5.0, 5.0], [5.0, 0.0, -0.0]]).view(1, 1, 2, 3)
    rows, columns = torch.tensor([[[[0, 2]]]]), torch.tensor([[[[0, 3], [2, 3], [1, 1]]]])
    for kernel in (cpu.backward, accelerator.backward):
        gradient = kernel(torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 1, 3, 1), feature, rows, columns, (2, 3))
        assert gradient[0, 0].tolist() == [[0, 1, 10], [0, 0, 0]]
    zeros = torch.tensor([-0.0, 0.0]).view(1, 1, 1, 2)
    for kernel in (cpu.backward, accelerator.backward):
        gradient = kernel(
            torch.ones(1, 1, 1, 1, 1), zeros, torch.tensor([[[[0, 1]]]]), torch.tensor([[[[0, 2]]]]), (1, 2)
        )
        assert gradient.flatten().tolist() == [1, 0]


def test_both_kernels_give_one_gradient() -> None:
    feature, rows, columns = example()
    gradient = torch.randn(2, 6, 3, 2, 4, generator=torch.Generator().manual_seed(1))
    exact = cpu.backward(gradient, feature, rows, columns, (9, 11))
    torch.testing.assert_close(exact, accelerator.backward(gradient, feature, rows, columns, (9, 11)))


@pytest.mark.parametrize("kernel", [cpu.backward, accelerator.backward])
def test_a_cell_that_many_regions_share_keeps_the_small_parts_of_its_gradient_in_bf16(kernel: Callable) -> None:
    feature = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)
    feature[..., 0, 0] = 1
    edges = torch.tensor([0, 2]).expand(1, 1000, 1, 2)
    gradient = torch.ones(1, 1000, 1, 1, 1, dtype=torch.bfloat16)
    # In bf16 alone the sum stops at 256.
    assert kernel(gradient, feature, edges, edges, (2, 2)).flatten().tolist() == [1000, 0, 0, 0]


def test_double_values_that_float32_cannot_tell_apart() -> None:
    feature = torch.tensor([[1.0, 1.0 + 1e-12], [-0.0, 0.0]], dtype=torch.float64).view(1, 1, 2, 2)
    edges = torch.tensor([0, 2]).expand(1, 1, 1, 2)
    gradient = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    for kernel in (cpu.backward, accelerator.backward):
        assert kernel(gradient, feature, edges, edges, (2, 2)).flatten().tolist() == [0, 1, 0, 0]


def test_numerical_gradient() -> None:
    _, rows, columns = example()
    feature = torch.randn(2, 2, 9, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: max_bins(f, rows, columns, most=(9, 11)), (feature,))


def test_operators_are_well_formed() -> None:
    feature, rows, columns = example()
    gradient = torch.randn(2, 6, 3, 2, 4)
    torch.library.opcheck(torch.ops.twostage.max_bins, (feature.requires_grad_(), rows, columns, [9, 11]))
    settings = (gradient, feature.detach(), rows, columns, [9, 11])
    torch.library.opcheck(torch.ops.twostage.max_bins_gradient, settings)
