"""Images of different sizes on one canvas, and their padded targets."""

from dataclasses import replace

import pytest
import torch

from twostage.data.batch import stack_images, stack_stuff, stack_targets
from twostage.data.stuff import UNKNOWN


def test_images_stand_in_the_corner_of_a_canvas_of_whole_strides() -> None:
    images = [torch.rand(3, 33, 20), torch.rand(3, 10, 40)]
    batch = stack_images(images, divisor=32)
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.sizes.tolist() == [[33, 20], [10, 40]]
    for canvas, image in zip(batch.images, images, strict=True):
        height, width = image.shape[1:]
        assert torch.equal(canvas[:, :height, :width], image)
        assert canvas.sum() == pytest.approx(float(image.sum()), rel=1e-4)


def test_targets_are_padded_to_the_fullest_image_and_to_one_row() -> None:
    boxes = [torch.rand(2, 4), torch.zeros(0, 4)]
    targets = stack_targets(boxes, [torch.tensor([1, 0]), torch.zeros(0, dtype=torch.int64)], [7, 8])
    assert targets.valid.tolist() == [[True, True], [False, False]]
    assert torch.equal(targets.boxes[0], boxes[0])
    assert targets.labels.tolist() == [[1, 0], [0, 0]]
    assert targets.seeds.tolist() == [7, 8]
    empty = stack_targets([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)], [0])
    assert empty.boxes.shape == (1, 1, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pinned_memory_reaches_the_device() -> None:
    batch = stack_images([torch.rand(3, 8, 8)]).pin_memory()
    targets = stack_targets([torch.rand(2, 4)], [torch.tensor([1, 0])], [7]).pin_memory()
    assert batch.images.is_pinned()
    assert targets.boxes.is_pinned()
    assert torch.equal(targets.to("cuda").boxes.cpu(), targets.boxes)


@pytest.mark.parametrize(("device", "overlaps"), [("cpu", False), ("meta", True)])
def test_copies_to_the_cpu_are_waited_for(monkeypatch: pytest.MonkeyPatch, device: str, overlaps: bool) -> None:
    """torch returns from a non-blocking copy to the CPU before the values are there."""
    asked = []
    own = torch.Tensor.to

    def to(tensor: torch.Tensor, *args: object, non_blocking: bool = False) -> torch.Tensor:
        asked.append(non_blocking)
        return own(tensor, *args, non_blocking=non_blocking)

    monkeypatch.setattr(torch.Tensor, "to", to)
    assert stack_images([torch.rand(3, 20, 30)]).to(device).images.device.type == device
    assert asked == [overlaps] * 2


def test_maps_of_stuff_grow_with_the_canvas_by_what_is_not_known() -> None:
    """Several processes put their images on the largest canvas of all."""
    targets = stack_targets([torch.rand(2, 4)], [torch.tensor([1, 0])], [7])
    assert targets.on_canvas(64, 96) is targets
    maps = stack_stuff([torch.ones(4, 5, dtype=torch.uint8)], (32, 64))
    assert maps.shape == (1, 4, 8)
    grown = replace(targets, stuff=maps).on_canvas(64, 96).stuff
    assert grown.shape == (1, 8, 12)
    assert (grown[0, :4, :5] == 1).all()
    assert int((grown != UNKNOWN).sum()) == 20
