import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops.poolers import LevelMapper

from twostage.models.regions.pooling import assign_levels


def square(*sides: float) -> Tensor:
    side = torch.tensor(sides, dtype=torch.float32)
    return torch.stack([torch.zeros_like(side), torch.zeros_like(side), side, side], dim=1)


@given(
    sides=st.lists(st.tuples(st.floats(0.0, 1500, width=32), st.floats(0.0, 1500, width=32)), min_size=1),
    strides=st.sampled_from([(4, 8, 16, 32), (8, 16, 32), (4, 8, 16, 32, 64), (16,)]),
    canonical=st.sampled_from([224, 112]),
)
def test_equal_to_torchvision(sides: list, strides: tuple[int, ...], canonical: int) -> None:
    boxes = torch.tensor([[3.0, 5.0, 3 + w, 5 + h] for w, h in sides])
    first, last = (s.bit_length() - 1 for s in (strides[0], strides[-1]))
    expected = LevelMapper(first, last, canonical_scale=canonical, eps=1e-6)([boxes])
    assert torch.equal(assign_levels(boxes, strides, canonical_size=float(canonical)), expected)


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (111, 0), (112, 1), (223, 1), (224, 2), (447, 2), (448, 3), (5000, 3)]
)
def test_a_box_of_224_is_read_from_level_4(side: float, level: int) -> None:
    """FPN, section 4.2: P4 for 224, P3 for half of it."""
    assert assign_levels(square(side), (4, 8, 16, 32)).tolist() == [level]


def test_just_below_a_border_eps_decides() -> None:
    """torchvision's 1e-6 keeps a box on its level that rounding made slightly too small for it."""
    box = square(224 * (1 - 2**-22))
    assert assign_levels(box, (4, 8, 16, 32), eps=1e-6).tolist() == [2]
    assert assign_levels(box, (4, 8, 16, 32), eps=0.0).tolist() == [1]


def test_any_leading_dimensions_and_boxes_without_area() -> None:
    boxes = torch.zeros(2, 3, 5, 4)
    assert assign_levels(boxes, (4, 8)).eq(0).all()
    assert assign_levels(boxes, (4, 8)).shape == (2, 3, 5)
    assert assign_levels(torch.zeros(2, 0, 4), (4, 8)).shape == (2, 0)
