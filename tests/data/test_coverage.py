"""Masks as grids over their objects: exact, small, and moved with the objects."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twostage.data.augment import Augment, Sample, View
from twostage.data.coverage import SIDE, coverage
from twostage.data.flat import NO_MASK, POLYGONS, RLE, Mask, pack_polygons, to_rle
from twostage.data.randomness import generator
from twostage.ops import masks as rle_masks
from twostage.ops.paste import paste

HEIGHT, WIDTH = 60, 80


def discs(count: int, seed: int = 0) -> np.ndarray:
    """Round masks, some cut by the border."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    middles, radii = rng.random((count, 2)) * [HEIGHT, WIDTH], rng.uniform(3, 25, count)
    return np.stack([(y - cy) ** 2 + (x - cx) ** 2 <= r**2 for (cy, cx), r in zip(middles, radii, strict=True)])


def as_masks(pixels: np.ndarray) -> list[Mask]:
    return [Mask(RLE, rle["counts"], (HEIGHT, WIDTH)) for rle in rle_masks.encode(pixels)]


def laid(found, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """The grids as pixels."""
    return rle_masks.decode(paste(found.cells.float().numpy() / 255, found.frames.numpy(), height, width))


def test_a_grid_laid_over_its_frame_is_the_mask() -> None:
    pixels = discs(12)
    found = coverage(as_masks(pixels), HEIGHT, WIDTH)
    assert found.cells.shape == (12, SIDE, SIDE)
    # A pixel is several cells wide here: only at its corners may interpolation see a neighbour.
    assert (laid(found) != pixels).sum() <= 0.02 * pixels.sum()
    y, x = np.nonzero(pixels[0])
    assert found.frames[0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_an_object_without_mask_has_an_empty_frame() -> None:
    found = coverage([NO_MASK, *as_masks(discs(1))], HEIGHT, WIDTH)
    assert not found.frames[0].any()
    assert not found.cells[0].any()
    assert found.frames[1].any()


def test_polygons_are_drawn_as_coco_draws_them() -> None:
    ring = [10.0, 10, 50, 12, 45, 50, 15, 40]
    polygon = Mask(POLYGONS, pack_polygons([ring]))
    found = coverage([polygon], HEIGHT, WIDTH)
    drawn = rle_masks.decode([to_rle(polygon, HEIGHT, WIDTH)])
    assert (laid(found) != drawn).sum() <= 0.02 * drawn.sum()


def test_a_large_mask_is_averaged_and_takes_no_more_memory() -> None:
    big = np.zeros((1, 2000, 3000), dtype=bool)
    big[0, 100:1900, 200:2800] = True
    big[0, 100:1000, 200:1500] = False
    found = coverage([Mask(RLE, rle_masks.encode(big)[0]["counts"], (2000, 3000))], 2000, 3000)
    assert found.cells.nelement() == SIDE * SIDE
    assert abs(float(found.cells.float().mean()) / 255 - 0.75) < 0.01


def test_empty_masks_and_none() -> None:
    empty = coverage(as_masks(np.zeros((1, HEIGHT, WIDTH), bool)), HEIGHT, WIDTH)
    assert not empty.cells.any()
    assert coverage([], HEIGHT, WIDTH).cells.shape == (0, SIDE, SIDE)
    assert NO_MASK.data == b""


@settings(max_examples=30)
@given(
    seed=st.integers(0, 1000),
    flips=st.tuples(st.booleans(), st.booleans()),
    top=st.integers(-10, 20),
    left=st.integers(-10, 20),
)
def test_a_view_moves_grids_as_it_moves_pixels(seed: int, flips: tuple[bool, bool], top: int, left: int) -> None:
    pixels = discs(4, seed)
    found = coverage(as_masks(pixels), HEIGHT, WIDTH)
    view = View(top, left, 45, 50, *flips)
    moved = found._replace(frames=view.boxes(found.frames), cells=view.mirror(found.cells))
    expected = view.image(torch.from_numpy(pixels).to(torch.uint8)).bool().numpy()
    ours = laid(moved, *view.shape)
    assert (ours != expected).sum() <= 0.03 * pixels.sum() + 4


def test_augmentation_keeps_masks_with_their_boxes() -> None:
    """Dropped together, in one order."""
    pixels = discs(6, seed=3)
    masks = coverage(as_masks(pixels), HEIGHT, WIDTH)
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    sample = Sample(image, masks.frames.clone(), torch.arange(6), masks=masks)
    augment = Augment(flip=1.0, crop=1.0, scale=(0.7, 1.5), visible=0.5)
    kept = 0
    for turn in range(10):
        one = augment.geometry(sample, generator(turn))
        assert len(one.masks.frames) == len(one.masks.cells) == len(one.boxes)
        kept += len(one.boxes)
        for box, frame, label, cells in zip(one.boxes, one.masks.frames, one.labels, one.masks.cells, strict=True):
            inside = torch.cat([frame[:2].maximum(box[:2]), frame[2:].minimum(box[2:])])
            assert torch.equal(inside, box)  # the box is what is seen of the frame
            assert torch.equal(cells, masks.cells[label].flip(1))
    assert 0 < kept < 60
