"""`data check --fix`: the copy has nothing left to repair, and the source is as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twostage.data.check import check
from twostage.data.fix import fix_dataset
from twostage.data.recognise import open_dataset
from twostage.errors import DataError, UsageError


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 7, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0} | changes


FAULTY = [
    annotation(1),
    annotation(2, bbox=[50, 5, 20, 20]),  # over the border
    annotation(3, bbox=[5, 5, 0, 20]),
    annotation(4, bbox=[5, 5, -3, 20]),
    annotation(5, bbox=[100, 100, 5, 5]),
    annotation(6, bbox=[1, 2, 3]),
    annotation(7, category_id=8),
    annotation(8, image_id=9),
    annotation(1, bbox=[8, 8, 9, 9]),  # an id that is taken
    "no record",
]


def test_a_copy_without_faults(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    source = make_coco(FAULTY, images=3)
    (source / "train" / "3.jpg").write_bytes((source / "train" / "3.jpg").read_bytes()[:300])
    before = check(source)
    assert not before.ok
    written = fix_dataset(source, tmp_path / "out", remove=True)
    after = check(tmp_path / "out")
    assert after.ok, after.format()
    assert check(source).faults == before.faults
    assert written.splits == {"train": (2, 3)}
    dataset = open_dataset(tmp_path / "out", split="train")
    assert dataset.objects(0).boxes.tolist() == [[5, 5, 25, 25], [50, 5, 60, 25], [8, 8, 17, 17]]
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name == "3.jpg"]


def test_what_was_left_out_is_told(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    written = fix_dataset(make_coco(FAULTY), tmp_path / "out", remove=True)
    assert {f.code for f in written.faults} >= {
        "box-partly-outside", "zero-area-box", "inverted-box", "box-outside", "box-not-numbers", "unknown-class",
        "unknown-image", "duplicate-annotation-id", "broken-record",
    }  # fmt: skip


def test_an_image_in_two_splits_stays_in_the_smaller(
    make_voc: Callable[..., Path], make_image: Callable[..., Path], tmp_path: Path
) -> None:
    objects = [("dog", (2, 3, 20, 30))]
    source = make_voc(dict.fromkeys("abcd", objects), train=["a", "b", "c"], val=["d"], trainval=["a", "b", "c", "d"])
    make_image(source / "JPEGImages" / "d.jpg", seed=1)  # the content of b
    assert "duplicate-image" in {f.code for f in check(source).faults}
    written = fix_dataset(source, tmp_path / "out", remove=True)
    assert {name: images for name, (images, _) in written.splits.items()} == {"train": 2, "val": 1, "trainval": 4}
    assert check(tmp_path / "out").ok


def test_wrong_sizes_and_extensions(make_voc: Callable[..., Path], make_image: Any, tmp_path: Path) -> None:
    xml = "<annotation><filename>a.jpg</filename><size><width>9</width><height>9</height></size></annotation>"
    source = make_voc({"a": xml, "b": [("dog", (2, 3, 20, 30))]})
    make_image(source / "JPEGImages" / "a.jpg", format="PNG")
    assert not check(source).ok
    fix_dataset(source, tmp_path / "out", remove=True)
    assert check(tmp_path / "out").ok


def test_pixels_that_do_not_decode_need_a_closer_look(
    make_voc: Callable[..., Path], make_image: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_voc({stem: [("dog", (2, 3, 20, 30))] for stem in "ab"})
    path = make_image(source / "JPEGImages" / "a.jpg", format="PNG")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert check(source).ok
    assert not check(source, deep=True).ok
    assert fix_dataset(source, tmp_path / "out", deep=True, remove=True).splits == {"train": (1, 1)}


def test_nothing_left(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    source = make_coco([])
    for path in (source / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="nothing usable is left"):
        fix_dataset(source, tmp_path / "out", remove=True)
    (source / "annotations" / "instances_train.json").write_text("{")
    with pytest.raises(DataError, match="nothing usable is left"):
        fix_dataset(source, tmp_path / "out", remove=True)
    assert not (tmp_path / "out").exists()


def test_the_source_is_no_place_for_a_copy(make_coco: Callable[..., Path]) -> None:
    source = make_coco(FAULTY)
    before = json.dumps(sorted(str(path) for path in source.rglob("*")))
    for place in (source, source / "train"):
        with pytest.raises(UsageError, match="not empty"):
            fix_dataset(source, place, remove=True)
    assert json.dumps(sorted(str(path) for path in source.rglob("*"))) == before


def test_nothing_is_removed_unless_it_is_asked_for(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    source = make_coco(FAULTY)
    with pytest.raises(DataError, match=r"1 unknown-class.*--remove"):
        fix_dataset(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_can_be_repaired_needs_no_removal(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    source = make_coco([annotation(1), annotation(2, bbox=[50, 5, 20, 20]), annotation(1, bbox=[8, 8, 9, 9])])
    assert fix_dataset(source, tmp_path / "out").splits == {"train": (2, 3)}
    assert check(tmp_path / "out").ok


def test_no_copy_is_made_of_boxes_in_another_notation(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    """It would be a copy of other boxes than are meant, with no fault left to see."""
    source = make_coco([annotation(n, bbox=[0.1, 0.2, 0.3, 0.4]) for n in (1, 2, 3)])
    with pytest.raises(DataError, match="box-notation"):
        fix_dataset(source, tmp_path / "out", remove=True)
    assert fix_dataset(source, tmp_path / "out", boxes="xywh-fractions", remove=True).splits == {"train": (2, 3)}
    assert open_dataset(tmp_path / "out", split="train").boxes[0].tolist() == pytest.approx([6, 8, 24, 24])
