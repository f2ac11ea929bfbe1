"""How boxes are written: all of them together show another order or unit than the format's."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from twostage.data.check import check
from twostage.data.faults import FaultyDataError
from twostage.data.notation import ORDERS, UNITS, Notation, suspicion
from twostage.data.recognise import open_dataset
from twostage.errors import UsageError
from twostage.training.options import TrainOptions
from twostage.training.splits import open_splits

FORMATS = {"coco": Notation("xywh"), "voc": Notation("xyxy"), "yolo": Notation("cxcywh", "fractions")}
WIDTH, HEIGHT = 640, 360


def written(boxes: np.ndarray, notation: Notation, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Boxes xyxy in pixels as another notation has them: the inverse of `corners`."""
    sides = np.array([width, height, width, height])
    x1, y1, x2, y2 = (boxes * (1 if notation.unit == "pixels" else UNITS[notation.unit] / sides)).T
    columns = {
        "xywh": (x1, y1, x2 - x1, y2 - y1),
        "xyxy": (x1, y1, x2, y2),
        "cxcywh": ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
        "yxyx": (y1, x1, y2, x2),
        "yxhw": (y1, x1, y2 - y1, x2 - x1),
        "xxyy": (x1, x2, y1, y2),
    }
    return np.stack(columns[notation.order], axis=1)


def many(count: int = 60, seed: int = 0) -> np.ndarray:
    """Boxes of all sizes anywhere on the image."""
    generator = np.random.default_rng(seed)
    sides = generator.uniform(0.05, 0.5, (count, 2)) * [WIDTH, HEIGHT]
    corners = generator.uniform(0, 1, (count, 2)) * ([WIDTH, HEIGHT] - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def same(one: Notation, other: Notation) -> bool:
    """Whether two notations are equal, or differ in the order of the axes in a unit that is equal for both."""
    swapped = {"yxyx": "xyxy", "yxhw": "xywh"}
    orders = [notation.order for notation in (one, other)]
    if one.unit != "pixels":
        orders = [swapped.get(order, order) for order in orders]
    return one.unit == other.unit and len(set(orders)) == 1


SIZES = np.tile([HEIGHT, WIDTH], (60, 1))
ALL = [Notation(order, unit) for order in ORDERS for unit in UNITS]


@pytest.mark.parametrize("notation", ALL, ids=str)
def test_corners_undo_every_notation(notation: Notation) -> None:
    boxes = many()
    np.testing.assert_allclose(notation.corners(written(boxes, notation), SIZES), boxes, atol=1e-9)
    assert Notation.named(str(notation)) == notation


@pytest.mark.parametrize("own", FORMATS.values(), ids=str)
@pytest.mark.parametrize("notation", ALL, ids=str)
def test_another_notation_is_seen_and_the_formats_own_is_not_suspected(own: Notation, notation: Notation) -> None:
    hidden = {"percent", "thousandths"} if own.unit == "pixels" else set()
    other = suspicion(written(many(), notation), SIZES, own)
    if notation == own:
        assert other is None
    elif notation.unit in hidden:
        # On an image of 360 pixels percent may be pixels.
        assert other is None or same(other.notation, notation)
    else:
        assert other is not None
        assert same(other.notation, notation)
        assert other.misfits == 0 or 3 <= other.misfits <= 60
        assert len(other.examples) == 3


@pytest.mark.parametrize(("unit", "side"), [("percent", 400), ("thousandths", 4000)])
def test_percent_and_thousandths_are_seen_on_large_images(unit: str, side: int) -> None:
    boxes = many() / [WIDTH, HEIGHT, WIDTH, HEIGHT] * side
    boxes[0, 2:] = side  # one object touches the corner
    notation = Notation("xywh", unit)
    other = suspicion(written(boxes, notation, side, side), np.full((60, 2), side), Notation("xywh"))
    assert other is not None
    assert other.notation == notation


@given(
    st.lists(st.tuples(*[st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.02, 1), st.floats(0.02, 1)]), max_size=40)
)
def test_boxes_within_their_images_are_never_suspected(rows: list[tuple[float, ...]]) -> None:
    boxes = np.array([[x, y, x + w * (1 - x), y + h * (1 - y)] for x, y, w, h in rows]).reshape(-1, 4)
    boxes *= [WIDTH, HEIGHT, WIDTH, HEIGHT]
    sizes = np.tile([HEIGHT, WIDTH], (len(boxes), 1))
    for own in FORMATS.values():
        assert suspicion(written(boxes, own), sizes, own) is None


def test_a_few_boxes_over_the_border_are_sloppy_not_another_notation() -> None:
    boxes = many()
    boxes[:20, 2] += 8
    assert suspicion(written(boxes, FORMATS["coco"]), SIZES, FORMATS["coco"]) is None
    boxes[:2, 2] += 600
    assert suspicion(written(boxes, FORMATS["coco"]), SIZES, FORMATS["coco"]) is None


def test_images_of_unknown_size_and_broken_numbers_say_nothing() -> None:
    values = written(many(), Notation("xyxy"))
    assert suspicion(values, np.zeros((60, 2)), FORMATS["coco"]) is None
    assert suspicion(np.full((60, 4), np.nan), SIZES, FORMATS["coco"]) is None
    assert suspicion(np.zeros((0, 4)), np.zeros((0, 2)), FORMATS["coco"]) is None


@pytest.mark.parametrize("name", ["xyxyx", "xyxy-inches", "", "fractions"])
def test_an_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(UsageError, match="no notation"):
        Notation.named(name)


def make(root: Path, kind: str, notation: Notation) -> Path:
    """A data set of 10 images and 60 boxes in this notation."""
    rows = written(many(), notation).tolist()
    folder = root / "images" / "train"
    for number in range(10):
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{number}.png")
    if kind == "coco":
        images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(10)]
        annotations = [{"id": k, "image_id": k % 10, "category_id": 1, "bbox": row} for k, row in enumerate(rows)]
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
        (root / "annotations").mkdir()
        (root / "annotations" / "instances_train.json").write_text(json.dumps(document))
    elif kind == "yolo":
        (root / "data.yaml").write_text("train: images/train\nnames: [cat]\n")
        (root / "labels" / "train").mkdir(parents=True)
        for number in range(10):
            text = "".join(f"0 {' '.join(map(str, row))}\n" for row in rows[number::10])
            (root / "labels" / "train" / f"{number}.txt").write_text(text)
    else:
        (root / "Annotations").mkdir()
        (root / "images" / "train").rename(root / "JPEGImages")
        for number in range(10):
            objects = "".join(
                "<object><name>cat</name><bndbox>"
                + "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), row, strict=True))
                + "</bndbox></object>"
                for row in rows[number::10]
            )
            text = f"<annotation><filename>{number}.png</filename>{objects}</annotation>"
            (root / "Annotations" / f"{number}.xml").write_text(text)
    return root


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["xywh", "xyxy", "cxcywh", "yxyx", "xyxy-fractions", "cxcywh-fractions"])
def test_a_data_set_in_another_notation_stops_and_is_read_with_the_option(kind: str, name: str, tmp_path: Path) -> None:
    notation = Notation.named(name)
    root = make(tmp_path / "d", kind, notation)
    split = open_dataset(root, split=check(root).splits.popitem()[0], boxes=name)
    order = np.lexsort(np.round(split.boxes, 2).T)
    expected = many()
    tolerance = 1e-2
    np.testing.assert_allclose(split.boxes[order], expected[np.lexsort(np.round(expected, 2).T)], atol=tolerance)
    if notation == FORMATS[kind]:
        assert not [f for f in check(root).faults if f.code == "box-notation"]
        return
    with pytest.raises(FaultyDataError) as caught:
        open_dataset(root, split=split.split)
    (found,) = [f for f in caught.value.faults if f.code == "box-notation"]
    assert f"--boxes {name}" in found.fix
    assert found.message.count("[") >= 3  # three examples


def test_training_does_not_skip_the_doubt(tmp_path: Path) -> None:
    root = make(tmp_path / "d", "coco", Notation("xyxy"))
    with pytest.raises(FaultyDataError, match="not clear what the boxes are"):
        open_splits(TrainOptions(root, val_split="none", on_error="skip"))
    assert len(open_splits(TrainOptions(root, val_split="none", boxes="xyxy")).train.labels) == 60
