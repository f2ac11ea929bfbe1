"""VOC's SegmentationObject: every object its pixels, and images that cannot be theirs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twostage.data import Kind
from twostage.data.check import check
from twostage.data.convert import convert
from twostage.data.dataset import difference
from twostage.data.faults import FaultyDataError
from twostage.data.fix import fix_dataset
from twostage.data.recognise import find_layout, open_dataset
from twostage.data.split import split as deal_out
from twostage.data.voc import MOST_MASKS, object_masks
from twostage.ops import masks as rle_masks

HEIGHT, WIDTH = 40, 60


def numbers() -> np.ndarray:
    """Two objects, and between them pixels nobody decided."""
    found = np.zeros((HEIGHT, WIDTH), np.uint8)
    found[5:15, 4:12] = 1
    found[5:15, 12:14] = 255
    found[10:28, 14:36] = 2
    return found


@pytest.fixture
def voc(make_voc: Callable[..., Path]) -> Path:
    """Two images with masks, listed for segmentation, and one without."""
    objects = [("cell", (5, 6, 12, 15)), ("dot", (15, 11, 36, 28))]
    root = make_voc(dict.fromkeys("abc", objects))
    for folder in ("SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir()
    for stem in ("a", "b"):
        picture = Image.fromarray(numbers())
        picture.putpalette(list(range(256)) * 3)  # a shorter one would be saved with fewer bits than 255 needs
        picture.save(root / "SegmentationObject" / f"{stem}.png")
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nb\n")
    return root


def test_objects_have_their_pixels_in_the_order_of_the_xml(voc: Path) -> None:
    assert set(find_layout(voc).splits) == {"train", "segmentation_train"}
    dataset = open_dataset(voc, split="segmentation_train")
    assert [fault.code for fault in dataset.faults] == []
    first, second = rle_masks.decode(dataset.masks_of(1))
    assert (first == (numbers() == 1)).all()
    assert (second == (numbers() == 2)).all()
    assert dataset.areas.tolist()[:2] == [80, 18 * 22]


def test_a_split_of_which_only_some_have_masks_has_none(voc: Path) -> None:
    dataset = open_dataset(voc, split="train")
    assert dataset.masks is None
    (fault,) = dataset.faults
    assert (fault.code, fault.severity) == ("missing-mask", "note")
    assert "1 of 3 images have no masks (SegmentationObject/c.png the first)" in fault.message
    assert [f for f in check(voc).faults if f.code == "missing-mask"] == [fault]  # and not that it has none


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((20, 20), np.uint8), "is 20 x 20, its image 60 x 40"),
        (np.full((HEIGHT, WIDTH), 7, np.uint8), "has the object 7, and the XML lists 2"),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), "has RGB pixels"),
    ],
)
def test_images_that_are_not_of_these_objects_are_named(voc: Path, pixels: np.ndarray, message: str) -> None:
    Image.fromarray(pixels).save(voc / "SegmentationObject" / "b.png")
    with pytest.raises(FaultyDataError, match=rf"SegmentationObject/b\.png.*{message}") as caught:
        open_dataset(voc, split="segmentation_train")
    assert [fault.code for fault in caught.value.faults] == ["broken-mask"]
    assert len(open_dataset(voc, split="segmentation_train", on_error="skip")) == 1


def test_more_objects_than_numbers_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    assert len(object_masks(tmp_path / "a.png", MOST_MASKS, (4, 4))) == MOST_MASKS
    with pytest.raises(ValueError, match="has 255 objects"):
        object_masks(tmp_path / "a.png", MOST_MASKS + 1, (4, 4))


def test_an_object_without_pixels_is_said_to_have_none(voc: Path) -> None:
    Image.fromarray(np.where(numbers() == 2, 0, numbers())).save(voc / "SegmentationObject" / "a.png")
    (fault,) = open_dataset(voc, split="segmentation_train").faults
    assert fault.code == "missing-mask"
    assert "1 of 4 objects have no mask (Annotations/a.xml: object 2)" in fault.message


@pytest.mark.parametrize("to", ["voc", "coco"])
def test_lists_of_masks_go_along_to_other_layouts(voc: Path, tmp_path: Path, to: Kind) -> None:
    convert(voc, tmp_path / "new", to=to)
    assert set(find_layout(tmp_path / "new").splits) == {"train", "segmentation_train"}
    given, written = (open_dataset(root, split="segmentation_train") for root in (voc, tmp_path / "new"))
    assert difference(given, written, range(2)) == ""
    assert open_dataset(tmp_path / "new", split="train").masks is None


def test_yolo_gets_the_first_lists_and_says_what_stays_behind(
    voc: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert(voc, tmp_path / "new", to="yolo")
    assert set(find_layout(tmp_path / "new").splits) == {"train"}
    assert "segmentation_train and their masks are left out" in caplog.text
    (voc / "ImageSets" / "Main" / "train.txt").unlink()
    convert(voc, tmp_path / "masks", to="yolo")
    assert open_dataset(tmp_path / "masks", split="train").masks is not None


def test_a_mended_copy_keeps_the_lists(voc: Path, tmp_path: Path) -> None:
    fix_dataset(voc, tmp_path / "new", remove=True)
    assert open_dataset(tmp_path / "new", split="segmentation_train").masks is not None


def test_images_dealt_out_keep_their_masks(voc: Path, tmp_path: Path) -> None:
    deal_out(voc, tmp_path / "new", {"train": 1.0}, to="coco")
    dealt = open_dataset(tmp_path / "new", split="train")
    assert len(dealt) == 3
    assert dealt.unmasked.sum() == 2, "the objects of the image without masks"
