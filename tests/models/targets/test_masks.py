"""The mask that a region should learn."""

import numpy as np
import torch
from torchvision.ops import roi_align

from twostage.data.coverage import Coverage, coverage
from twostage.data.flat import RLE, Mask
from twostage.models.targets.masks import mask_targets
from twostage.ops import masks as rle_masks

HEIGHT, WIDTH = 120, 160


def objects() -> torch.Tensor:
    """Two ellipses and a box in one image."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack(
        [
            ((y - 50) / 40) ** 2 + ((x - 60) / 30) ** 2 <= 1,
            ((y - 60) / 25) ** 2 + ((x - 110) / 45) ** 2 <= 1,
            (abs(y - 90) < 20) & (abs(x - 40) < 12),
        ]
    )
    return torch.from_numpy(pixels)


def grids(pixels: torch.Tensor) -> Coverage:
    rles = rle_masks.encode(pixels.numpy())
    return coverage([Mask(RLE, rle["counts"], (HEIGHT, WIDTH)) for rle in rles], HEIGHT, WIDTH)


def test_targets_are_what_roi_align_reads_from_the_mask_itself() -> None:
    """detectron2's `BitMasks.crop_and_resize`; torchvision's targets are shifted by half a pixel."""
    pixels = objects()
    truth = torch.tensor([0, 1, 2, 0, 1])
    boxes = torch.tensor(
        [[30.0, 10, 90, 90], [60, 30, 158, 90], [25, 60, 60, 115], [40.5, 20.3, 99, 70], [0, 0, 160, 120]]
    )
    cells = mask_targets(boxes[None], truth[None], grids(pixels).each(lambda v: v[None]), 28)[0]
    rows = torch.cat([truth[:, None].float(), boxes], dim=1)
    theirs = roi_align(pixels[:, None].float(), rows, 28, 1.0, aligned=True)[:, 0]
    # They differ where a cell is about half covered.
    assert ((cells == 1) != (theirs >= 0.5))[(theirs - 0.5).abs() > 0.2].sum() == 0
    assert ((cells == 1) != (theirs >= 0.5)).float().mean() < 0.02
    assert set(cells.unique().tolist()) == {0.0, 1.0}


def test_beyond_its_frame_an_object_has_nothing() -> None:
    inside = Coverage(torch.tensor([[[40.0, 40, 60, 60]]]), torch.full((1, 1, 112, 112), 255, dtype=torch.uint8))
    (cells,) = mask_targets(torch.tensor([[[30.0, 40, 70, 60]]]), torch.tensor([[0]]), inside, 8)[0]
    assert cells[:, 2:6].all()
    assert not cells[:, [0, 1, 6, 7]].any()


def test_an_empty_mask_is_learned_as_nothing_and_gives_numbers() -> None:
    empty = Coverage(torch.zeros(1, 1, 4), torch.zeros(1, 1, 112, 112, dtype=torch.uint8))
    cells = mask_targets(torch.tensor([[[0.0, 0, 9, 9], [3, 3, 3, 3]]]), torch.tensor([[0, 0]]), empty, 28)
    assert not cells.any()


def test_each_image_reads_its_own_objects() -> None:
    pixels = objects()
    both = grids(pixels)
    batch = Coverage(both.frames[None].repeat(2, 1, 1), torch.stack([both.cells, both.cells.flip(0)]))
    boxes = both.frames[None, :1].repeat(2, 1, 1)
    cells = mask_targets(boxes, torch.zeros(2, 1, dtype=torch.int64), batch, 14)
    assert not torch.equal(cells[0], cells[1])


def test_targets_do_not_depend_on_the_default_dtype() -> None:
    one = Coverage(torch.tensor([[[40.0, 40, 60, 60]]]), torch.full((1, 1, 112, 112), 255, dtype=torch.uint8))
    boxes, truth = torch.tensor([[[30.0, 40, 70, 60]]]), torch.tensor([[0]])
    expected = mask_targets(boxes, truth, one, 8)
    torch.set_default_dtype(torch.float64)
    try:
        cells = mask_targets(boxes, truth, one, 8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(cells, expected)
