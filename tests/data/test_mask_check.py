"""Masks that cannot be learned, or belong to another box, are named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twostage.data.check import check
from twostage.data.recognise import open_dataset
from twostage.ops import masks as rle_masks

HEIGHT, WIDTH = 40, 60
GOOD = [[10, 10, 30, 10, 30, 30, 10, 30]]


def coco(tmp_path: Path, make_image: Callable[..., Path], *segmentations: Any) -> Path:
    """One image; every object has the box of `GOOD`."""
    make_image(tmp_path / "d" / "train" / "a.png")
    annotations = [
        {
            "id": k + 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [10, 10, 20, 20],
            "area": 400,
            "iscrowd": 0,
            "segmentation": s,
        }
        for k, s in enumerate(segmentations)
    ]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cell"}],
    }
    path = tmp_path / "d" / "annotations" / "instances_train.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document))
    return tmp_path / "d"


def empty() -> dict:
    return {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}


@pytest.mark.parametrize(
    ("segmentation", "code", "message"),
    [
        (empty(), "empty-mask", "no pixel in its image"),
        ([[100, 100, 120, 100, 120, 120]], "empty-mask", "no pixel in its image"),
        ([[-30, -30, -5, -30, -5, -5]], "empty-mask", "no pixel in its image"),
        ([[-50, 20, 20, -50, -60, -60]], "empty-mask", "no pixel in its image"),
        ([[10, 10, 20, 20, 30, 30]], "empty-mask", "no pixel in its image"),
        ([[40, 5, 58, 5, 58, 20, 40, 20]], "mask-elsewhere", r"\[40, 5, 58, 20\], the box \[10, 10, 30, 30\]"),
        ([*GOOD, [1, 2, 3, 4]], "short-polygon", r"polygons of fewer than three points left out: \[\[1, 2, 3, 4\]\]"),
    ],
)
def test_named_by_file_and_object(
    tmp_path: Path, make_image: Callable[..., Path], segmentation: Any, code: str, message: str
) -> None:
    found = [f for f in check(coco(tmp_path, make_image, GOOD, segmentation)).faults if f.code == code]
    assert len(found) == 1
    assert re.search(message, found[0].message)
    assert "2" in found[0].object or "[1]" in found[0].object


def test_good_masks_and_crowds_are_not(tmp_path: Path, make_image: Callable[..., Path]) -> None:
    whole = rle_masks.encode(np.ones((1, HEIGHT, WIDTH), bool))[0]
    data = coco(tmp_path, make_image, GOOD, {"size": whole["size"], "counts": whole["counts"].decode()})
    path = data / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["annotations"][1]["iscrowd"] = 1
    path.write_text(json.dumps(document))
    codes = {f.code for f in check(data).faults}
    assert not codes & {"empty-mask", "mask-elsewhere", "short-polygon", "missing-mask"}


def test_two_points_alone_are_no_mask(tmp_path: Path, make_image: Callable[..., Path]) -> None:
    dataset = open_dataset(coco(tmp_path, make_image, GOOD, [[1, 2, 3, 4]]), split="train")
    assert [f.code for f in dataset.faults] == ["short-polygon", "missing-mask"]


def test_of_many_objects_without_a_mask_five_are_named(tmp_path: Path, make_image: Callable[..., Path]) -> None:
    data = coco(tmp_path, make_image, GOOD, GOOD)
    path = data / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    bare = {name: value for name, value in document["annotations"][0].items() if name != "segmentation"}
    document["annotations"] += [bare | {"id": 10 + k} for k in range(7)]
    path.write_text(json.dumps(document))
    (fault,) = [f for f in check(data).faults if f.code == "missing-mask"]
    assert "7 of 9 objects have no mask" in fault.message
    assert fault.message.count("annotations[") == 5
    assert "(id 14, image a.png), and 2 more)" in fault.message


def test_run_lengths_of_needless_groups_are_named(tmp_path: Path, make_image: Callable[..., Path]) -> None:
    """Equal numbers, padded to more letters than 32 bits need: nobody writes them."""
    groups = [HEIGHT * WIDTH >> 5 * k & 31 for k in range(8)]
    padded = "".join(chr(48 + group + 32 * (k < 7)) for k, group in enumerate(groups))
    found = check(coco(tmp_path, make_image, GOOD, {"size": [HEIGHT, WIDTH], "counts": padded})).faults
    (fault,) = [f for f in found if f.code == "broken-mask"]
    assert "more than 35 bits" in fault.message
