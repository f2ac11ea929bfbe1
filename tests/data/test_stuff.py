"""Maps of stuff: found, checked, and laid beside their images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twostage.data.augment import Augment
from twostage.data.check import check
from twostage.data.loader import Reader, training_batches
from twostage.data.recognise import open_dataset
from twostage.data.resize import Resize
from twostage.data.scenes import NAMES, make_scene, write_scenes
from twostage.data.stuff import COCO_CLASSES, STRIDE, UNKNOWN, coarse, find_stuff, stuff_faults
from twostage.errors import DataError


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes", train=4, val=2)


def test_generated_scenes_say_what_every_pixel_is(scenes: Path) -> None:
    dataset = open_dataset(scenes, split="train")
    stuff = find_stuff(dataset)
    assert stuff is not None
    assert stuff.classes == len(NAMES) + 1
    scene = make_scene(0, 0, 1)
    found = stuff.read(1, *scene.image.shape[:2])
    for label, mask in zip(scene.labels, scene.masks, strict=True):
        assert (found[mask] == label).all()
    assert (found[~scene.masks.any(axis=0)] == len(NAMES)).all()


def test_cocos_folder_has_cocos_classes(scenes: Path) -> None:
    (scenes / "stuff").rename(scenes / "stuffthingmaps")
    (scenes / "stuffthingmaps" / "names.txt").unlink()
    assert find_stuff(open_dataset(scenes, split="val")).classes == COCO_CLASSES  # type: ignore[union-attr]


def test_without_maps_there_are_none_and_with_some_the_first_that_lacks_is_named(scenes: Path) -> None:
    dataset = open_dataset(scenes, split="train")
    (scenes / "stuff" / "train" / "000002.png").unlink()
    with pytest.raises(DataError, match=r"000002\.png: does not exist, and 1 of 4 images"):
        find_stuff(dataset)
    (scenes / "stuff").rename(scenes / "elsewhere")
    assert find_stuff(dataset) is None


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((10, 10), np.uint8), "the map is 10 x 10, its image 192 x 192"),
        (np.full((192, 192), 77, np.uint8), "has the class 77; there are 6"),
        (np.zeros((192, 192, 3), np.uint8), "has RGB pixels"),
        (None, "cannot be read as a stuff map"),
    ],
)
def test_maps_that_cannot_be_are_refused(scenes: Path, pixels: np.ndarray | None, message: str) -> None:
    stuff = find_stuff(open_dataset(scenes, split="train"))
    path = scenes / "stuff" / "train" / "000000.png"
    if pixels is None:
        path.write_bytes(b"no image")
    else:
        Image.fromarray(pixels).save(path)
    with pytest.raises(DataError, match=message):
        stuff.read(0, 192, 192)  # type: ignore[union-attr]


def test_every_map_that_cannot_be_learned_from_is_named(scenes: Path) -> None:
    assert [f.code for f in check(scenes).faults if f.code == "stuff-map"] == []
    folder = scenes / "stuff" / "train"
    (folder / "000000.png").unlink()
    (folder / "000001.png").write_bytes(b"no image")
    Image.new("RGB", (192, 192)).save(folder / "000002.png")
    Image.new("L", (50, 40)).save(folder / "000003.png")
    report = check(scenes)
    faults = [f for f in report.faults if f.code == "stuff-map"]
    messages = ("does not exist, and 1 of 4 images", "cannot be read", "RGB pixels", "is 50 x 40, its image 192 x 192")
    for index, (fault, message) in enumerate(zip(faults, messages, strict=True)):
        assert fault.file.endswith(f"00000{index}.png")
        assert message in fault.message
    assert report.ok  # boxes and masks can be learned
    (scenes / "stuff").rename(scenes / "elsewhere")
    assert not list(stuff_faults(open_dataset(scenes, split="train")))


def test_unknown_pixels_are_allowed(scenes: Path) -> None:
    Image.fromarray(np.full((192, 192), UNKNOWN, np.uint8)).save(scenes / "stuff" / "train" / "000000.png")
    stuff = find_stuff(open_dataset(scenes, split="train"))
    assert (stuff.read(0, 192, 192) == UNKNOWN).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [(64, 96), (60, 90), (65, 97), (7, 300)])
def test_coarse_maps_hold_the_class_in_the_middle_of_each_cell(size: tuple[int, int]) -> None:
    """Where the image keeps its size the middle is a pixel of it."""
    stuff = torch.arange(size[0] * size[1]).reshape(size).remainder(251).to(torch.uint8)
    found = coarse(stuff, *size)
    assert found.shape == (-(-size[0] // STRIDE), -(-size[1] // STRIDE))
    for i, j in ((0, 0), (found.shape[0] - 1, found.shape[1] - 1)):
        y, x = (min(STRIDE * k + STRIDE // 2, side - 1) for k, side in zip((i, j), size, strict=True))
        assert found[i, j] == stuff[y, x]


def test_batches_hold_maps_that_fit_their_images(scenes: Path) -> None:
    """The class at the middle of an object's box is mostly its own, however the image is mirrored and cut."""
    dataset = open_dataset(scenes, split="train")
    stuff = find_stuff(dataset)
    augment = Augment(flip=0.5, vertical_flip=0.5, scale=(0.6, 1.6))
    (loaded, *_) = batches = list(
        zip(
            range(6),
            training_batches(
                dataset, resize=Resize(size=160, max_size=200), augment=augment, batch=2, seed=1, stuff=stuff
            ),
            strict=False,
        )
    )
    assert loaded[1].targets.stuff.shape[1:] == tuple(-(-side // STRIDE) for side in loaded[1].batch.canvas)
    right = total = 0
    for _, one in batches:
        for image, row in one.targets.valid.nonzero().tolist():
            x1, y1, x2, y2 = one.targets.boxes[image, row].tolist()
            cell = one.targets.stuff[image, int((y1 + y2) / 2 / STRIDE), int((x1 + x2) / 2 / STRIDE)]
            right += int(cell == one.targets.labels[image, row])
            total += 1
    assert right > 0.75 * total
    beyond = Reader(dataset, Resize(size=96), None, 0, 32, stuff=stuff)
    assert beyond.sample(0, 0).stuff.max() < UNKNOWN  # type: ignore[union-attr]
