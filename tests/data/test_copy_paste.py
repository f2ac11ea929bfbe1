"""Copy-paste against pixels: an image is what its objects' masks say, wherever they are."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from twostage.data.augment import Augment, Sample
from twostage.data.copy_paste import VISIBLE, paste
from twostage.data.coverage import coverage
from twostage.data.dataset import Dataset
from twostage.data.flat import NO_MASK, pixel_mask
from twostage.data.loader import training_batches
from twostage.data.resize import Resize

H, W = 48, 64


class Always(np.random.Generator):
    """Draws that copy all objects, or none."""

    def __init__(self, value: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.value = value

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]
        return np.full(size, self.value)


ALL, NOTHING = Always(0.0), Always(0.9)


def rectangles(boxes: list[list[int]], grey: float, first: int = 0, masks: bool = True) -> Sample:
    """An image of one grey with rectangles of another, which are its objects, labelled from `first`."""
    image, found = torch.full((3, H, W), grey), []
    for x1, y1, x2, y2 in boxes:
        image[:, y1:y2, x1:x2] = grey + 0.1
        pixels = np.zeros((H, W), dtype=np.uint8)
        pixels[y1:y2, x1:x2] = 1
        found.append(pixel_mask(pixels) if masks else NO_MASK)
    labels = torch.arange(first, first + len(boxes))
    return Sample(image, torch.tensor(boxes).float().reshape(-1, 4), labels, masks=coverage(found, H, W))


def shown(sample: Sample, row: int) -> Tensor:
    """The pixels of an object by its grid."""
    assert sample.masks is not None
    (x1, y1, x2, y2), cells = sample.masks.frames[row].round().int().tolist(), sample.masks.cells[row]
    pixels = torch.zeros(H, W, dtype=torch.bool)
    small = torch.nn.functional.interpolate(cells[None, None].float(), (y2 - y1, x2 - x1), mode="area")[0, 0]
    pixels[y1:y2, x1:x2] = small >= 128
    return pixels


def test_a_copied_object_is_there_with_its_pixels_box_label_and_mask() -> None:
    out = paste(rectangles([[2, 2, 20, 12]], 0.1), rectangles([[30, 20, 50, 40]], 0.7, first=5), ALL)
    assert out.labels.tolist() == [0, 5]
    assert out.boxes.tolist() == [[2, 2, 20, 12], [30, 20, 50, 40]]
    assert torch.equal(out.image[0] > 0.75, shown(out, 1))
    assert not ((out.image > 0.65) & (out.image < 0.75)).any()  # nothing of the other background


def test_nothing_chosen_changes_nothing() -> None:
    onto = rectangles([[2, 2, 20, 12]], 0.1)
    out = paste(onto, rectangles([[30, 20, 50, 40]], 0.7), NOTHING)
    assert torch.equal(out.image, onto.image)
    assert out.boxes.tolist() == onto.boxes.tolist()


def test_an_object_behind_keeps_what_is_seen_of_it() -> None:
    """Its right half is covered."""
    out = paste(rectangles([[10, 10, 30, 30]], 0.1), rectangles([[20, 5, 40, 35]], 0.7), ALL)
    torch.testing.assert_close(out.boxes[0], torch.tensor([10.0, 10, 20, 30]), atol=0.3, rtol=0)
    assert torch.equal(shown(out, 0), (out.image[0] > 0.15) & (out.image[0] < 0.25))


def test_an_object_of_which_too_little_is_seen_is_dropped() -> None:
    covered = paste(rectangles([[10, 10, 30, 30]], 0.1), rectangles([[8, 8, 27, 32]], 0.7, first=5), ALL)
    assert VISIBLE > 3 / 20
    assert covered.labels.tolist() == [5]
    less = paste(rectangles([[10, 10, 30, 30]], 0.1), rectangles([[8, 8, 22, 32]], 0.7, first=5), ALL)
    assert less.labels.tolist() == [0, 5]


def test_objects_without_masks_are_not_copied_and_stand_behind_with_their_box() -> None:
    plain = rectangles([[10, 10, 30, 30]], 0.1, masks=False)
    assert paste(rectangles([], 0.5), plain, ALL).labels.tolist() == []
    half = paste(plain, rectangles([[20, 5, 40, 35]], 0.7, first=5), ALL)
    assert half.boxes[0].tolist() == [10, 10, 30, 30]
    assert paste(plain, rectangles([[8, 8, 40, 40]], 0.7, first=5), ALL).labels.tolist() == [5]


def test_of_a_larger_image_what_lies_beyond_the_border_is_left() -> None:
    source = rectangles([[30, 10, 60, 30]], 0.7, first=5)
    small = rectangles([], 0.1)
    small = small._replace(image=small.image[:, :, :40])
    out = paste(small, source, ALL)
    assert out.boxes.tolist() == [[30, 10, 40, 30]]
    assert (out.image[0, 10:30, 30:] > 0.75).all()


BOX = st.tuples(st.integers(0, W - 6), st.integers(0, H - 6), st.integers(5, 40), st.integers(5, 40)).map(
    lambda b: [b[0], b[1], min(W, b[0] + b[2]), min(H, b[1] + b[3])]
)


@given(st.lists(BOX, max_size=4), st.lists(BOX, max_size=4), st.integers(0, 9))
def test_every_object_left_is_within_its_box_and_the_image(
    below: list[list[int]], above: list[list[int]], seed: int
) -> None:
    out = paste(rectangles(below, 0.1), rectangles(above, 0.7, first=10), np.random.default_rng(seed))
    assert out.masks is not None
    assert len(out.boxes) == len(out.labels) == len(out.masks.frames) == len(out.masks.cells)
    assert (out.boxes >= 0).all()
    assert (out.boxes[:, 2:] <= torch.tensor([W, H])).all()
    for row, (x1, y1, x2, y2) in enumerate(out.boxes.tolist()):
        y, x = shown(out, row).nonzero(as_tuple=True)
        assert x1 - 1 <= x.min() <= x.max() + 1 <= x2 + 1
        assert y1 - 1 <= y.min() <= y.max() + 1 <= y2 + 1


@pytest.mark.parametrize("masks", [True, False])
def test_batches_have_pasted_objects_and_masks_only_on_request(masks: bool) -> None:
    image = np.zeros((H, W, 3), dtype=np.uint8)
    pixels = np.zeros((1, H, W), dtype=np.uint8)
    pixels[:, 10:30, 10:30] = 1
    empty = (image, np.zeros((0, 4)), [], np.zeros((0, H, W), dtype=np.uint8))
    dataset = Dataset.from_samples([(image, [[10, 10, 30, 30]], [0], pixels), *[empty] * 3], ["a"])
    how = {"resize": Resize("none"), "augment": Augment(flip=0.0), "batch": 4, "seed": 0, "masks": masks}
    stream = training_batches(dataset, **how, copy_paste=1.0)
    counts = [int(next(stream).targets.valid.sum()) for _ in range(20)]
    assert max(counts) > 1
    assert (next(stream).targets.masks is not None) == masks
