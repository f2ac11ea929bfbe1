"""Augmentation: pixels and boxes move together, as torchvision's transforms move them."""

from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from twostage.data.augment import Augment, Sample, View, clip, turn_hue
from twostage.data.randomness import generator
from twostage.errors import UsageError

ALL = Augment(flip=0.5, vertical_flip=0.5, scale=(0.5, 2.0), crop=0.5, colour=1.0, visible=0.3)


def image_with_boxes(height: int = 30, width: int = 50, count: int = 5, seed: int = 0) -> Sample:
    """Noise, with boxes filled with their own number (1, 2 ...) in the first channel; later ones on top."""
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(100, 256, (3, height, width), dtype=np.uint8))
    corners = np.stack([rng.integers(0, (width - 4, height - 4)) for _ in range(count)])
    sides = rng.integers(3, 15, (count, 2))
    boxes = np.c_[corners, np.minimum(corners + sides, (width, height))]
    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist(), start=1):
        pixels[0, y1:y2, x1:x2] = number
    return Sample(pixels, torch.from_numpy(boxes).float(), torch.arange(count))


@given(
    st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 60), st.integers(1, 60),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_views_move_pixels_and_boxes_as_torchvision_does(
    top: int, left: int, height: int, width: int, flip: bool, vertical: bool
) -> None:
    hypothesis.assume(top + height > 0 and left + width > 0)  # some of the image is seen
    sample = image_with_boxes()
    view = View(top, left, height, width, flip, vertical)
    image = F.crop(tv_tensors.Image(sample.image), top, left, height, width)
    # torchvision's crop clips; boxes are moved by hand so that what lies outside can be compared as well.
    moved = sample.boxes - torch.tensor([left, top, left, top])
    boxes = tv_tensors.BoundingBoxes(moved, format="XYXY", canvas_size=(height, width), clamping_mode=None)
    if flip:
        image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
    if vertical:
        image, boxes = F.vertical_flip(image), F.vertical_flip(boxes)
    assert torch.equal(view.image(sample.image), torch.Tensor(image).to(torch.uint8))
    torch.testing.assert_close(view.boxes(sample.boxes), torch.Tensor(boxes))
    assert view.shape == tuple(image.shape[-2:])


@given(st.integers(0, 10_000))
def test_boxes_stay_on_their_pixels(seed: int) -> None:
    sample = image_with_boxes(count=1)
    moved = ALL.geometry(sample, generator(seed))
    rows, columns = np.nonzero((moved.image[0] == 1).numpy())
    if len(moved.boxes):
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert moved.boxes.tolist() == [expected]
    # What is gone shows less than 0.3 of its area.
    area = (sample.boxes[0, 2:] - sample.boxes[0, :2]).prod()
    assert len(moved.boxes) == (len(rows) >= 0.3 * area and len(rows) > 0)


def test_clip_drops_by_visible_area() -> None:
    boxes = torch.tensor([[-5.0, 0, 5, 10], [-6, 0, 4, 10], [-8, 0, 2, 10], [2, 2, 4, 4], [12, 0, 15, 5]])
    clipped, keep = clip(boxes, (10, 10), 0.3)
    assert keep.tolist() == [True, True, False, True, False]
    assert clipped[0].tolist() == [0, 0, 5, 10]


def test_crop_keeps_the_centre_of_some_object_in_sight() -> None:
    sample = image_with_boxes(60, 90, count=1)
    centre = (sample.boxes[0, :2] + sample.boxes[0, 2:]) / 2
    augment = Augment(flip=0.0, crop=1.0, scale=(1.0, 3.0))
    for seed in range(50):
        view = augment.view(60, 90, sample.boxes, generator(seed))
        x, y = (centre - torch.tensor([view.left, view.top])).tolist()
        assert 0 <= x <= view.width
        assert 0 <= y <= view.height
        assert view.left >= 0
        assert view.top >= 0
        assert view.left + view.width <= 90
        assert view.top + view.height <= 60


def test_the_same_generator_draws_the_same_and_chances_hold() -> None:
    sample = image_with_boxes()
    for seed in range(20):
        one, two = (ALL(*sample[:3], generator(seed)) for _ in range(2))
        assert torch.equal(one.image, two.image)
        assert torch.equal(one.boxes, two.boxes)
    flips = [Augment(flip=0.25).view(10, 10, sample.boxes, generator(s)).flip for s in range(2000)]
    assert 0.2 < np.mean(flips) < 0.3
    poses = {Augment(0.5, 0.5).view(9, 9, sample.boxes, generator(s))[4:] for s in range(400)}
    assert len(poses) == 4


def test_without_chances_nothing_changes() -> None:
    sample = image_with_boxes()
    same = Augment(flip=0.0)(*sample[:3], generator(0))
    assert torch.equal(same.image, sample.image)
    assert torch.equal(same.boxes, sample.boxes)
    assert same.labels.tolist() == sample.labels.tolist()


def test_images_without_objects_pass() -> None:
    sample = image_with_boxes()
    empty = Sample(sample.image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    for seed in range(20):
        assert ALL(*empty[:3], generator(seed)).boxes.shape == (0, 4)


def test_hue_turns_red_to_green_to_blue_and_leaves_grey() -> None:
    for image in (torch.eye(3), (torch.eye(3) * 255).to(torch.uint8)):
        columns = image.reshape(3, 1, 3)
        turned = turn_hue(columns, 1 / 3)
        torch.testing.assert_close(turned.float(), columns.roll(1, dims=0).float(), atol=1e-4, rtol=0)
    grey = torch.linspace(0, 1, 7).expand(3, 1, 7)
    torch.testing.assert_close(turn_hue(grey, 0.2), grey)


def test_colour_changes_colours_within_range_and_not_boxes() -> None:
    sample = image_with_boxes()
    augment = Augment(flip=0.0, colour=1.0)
    for image in (sample.image, sample.image.float() / 255):
        changed = augment.recolour(image, generator(1))
        assert changed.dtype == image.dtype
        assert not torch.equal(changed, image)
        assert changed.min() >= 0
        assert changed.max() <= (255 if image.dtype == torch.uint8 else 1)


@pytest.mark.parametrize("fields", [{"flip": 1.5}, {"colour": -1.0}, {"scale": (2.0, 1.0)}, {"scale": (0.0, 1.0)}])
def test_values_out_of_range_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        Augment(**fields)


@pytest.mark.slow
def test_torchvision_is_not_imported_by_the_room() -> None:
    import subprocess
    import sys

    code = "import sys, twostage.data.loader, twostage.data.check; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False).returncode == 0


def test_what_lies_beyond_the_border_has_the_colour_asked_for() -> None:
    sample = image_with_boxes(40, 60)
    smaller = Augment(flip=0.0, scale=(0.5, 0.5), beyond=(0.4, 0.6, 1.0))
    for image, scale in ((sample.image, 255), (sample.image.float() / 255, 1)):
        moved = smaller.geometry(sample._replace(image=image), generator(0))
        view = smaller.view(40, 60, sample.boxes, generator(0))
        assert moved.image.shape == (3, 80, 120)
        inside = moved.image[:, -view.top : 40 - view.top, -view.left : 60 - view.left]
        assert torch.equal(inside, image)
        beyond = torch.ones(80, 120, dtype=torch.bool)
        beyond[-view.top : 40 - view.top, -view.left : 60 - view.left] = False
        colour = moved.image[:, beyond].float()
        torch.testing.assert_close(colour, (torch.tensor([[0.4], [0.6], [1.0]]) * scale).expand_as(colour))
