"""Files as people and tools write them, each after a public report: valid, and meaning something else than it seems."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twostage.data.check import check
from twostage.data.convert import convert
from twostage.data.recognise import open_dataset
from twostage.errors import DataError

MakeCoco = Callable[..., Path]
MakeYolo = Callable[..., Path]
MakeVoc = Callable[..., Path]


def annotation(number: int, image: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": 7,
        "bbox": [20, 10, 20, 10],
        "area": 200,
        "iscrowd": 0,
        **more,
    }


def codes(root: Path, **options: Any) -> dict[str, str]:
    return {fault.code: str(fault) for fault in check(root, **options).faults}


def rewrite(root: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = root / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return root


# Boxes that are turned (cvat-ai/cvat#4745, #4250)


def test_a_rotated_box_of_cvat_is_read_as_the_box_around_it(make_coco: MakeCoco, tmp_path: Path) -> None:
    turned = {"occluded": False, "rotation": 90.0}
    root = make_coco([annotation(1, attributes=turned), annotation(2)])
    dataset = open_dataset(root, split="train")
    np.testing.assert_allclose(dataset.boxes, [[25, 5, 35, 25], [20, 10, 40, 20]], atol=1e-5)
    assert "1 of 2 boxes" in codes(root)["rotated-boxes"]
    again = open_dataset(convert(root, tmp_path / "again", "coco").path, split="train")
    np.testing.assert_allclose(again.boxes, dataset.boxes, atol=1e-5)


def test_a_rotation_of_another_tool_or_beside_a_mask_is_left_alone(make_coco: MakeCoco) -> None:
    ring = [20, 10, 40, 10, 40, 20, 20, 20]
    root = make_coco(
        [
            annotation(1, attributes={"rotation": 90}),
            annotation(2, attributes={"occluded": True, "rotation": 90}, segmentation=[ring]),
        ]
    )
    np.testing.assert_allclose(open_dataset(root, split="train").boxes, [[20, 10, 40, 20]] * 2)


def test_a_rotated_box_in_voc(make_voc: MakeVoc, tmp_path: Path) -> None:
    attribute = "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    xml = (
        "<annotation><size><width>60</width><height>40</height></size><object><name>cat</name><bndbox><xmin>21</xmin>"
        f"<ymin>11</ymin><xmax>40</xmax><ymax>20</ymax></bndbox>{attribute}</object></annotation>"
    )
    root = make_voc({"a": xml})
    boxes = open_dataset(root, split="train", voc_offset="0").boxes
    np.testing.assert_allclose(boxes, [[26, 6, 35, 25]], atol=1e-4)
    assert "rotated-boxes" in codes(root)
    again = open_dataset(convert(root, tmp_path / "again", "voc", voc_offset="0").path, split="train")
    np.testing.assert_allclose(again.boxes, boxes, atol=1e-4)


def test_a_rotated_box_of_rolabelimg(make_voc: MakeVoc) -> None:
    """cgvict/roLabelImg: centre, sides and an angle in radians."""
    box = "<robndbox><cx>30</cx><cy>20</cy><w>20</w><h>10</h><angle>1.5707963</angle></robndbox>"
    xml = f"<annotation><object><type>robndbox</type><name>cat</name>{box}</object></annotation>"
    dataset = open_dataset(make_voc({"a": xml}), split="train", voc_offset="0")
    np.testing.assert_allclose(dataset.boxes, [[25, 10, 35, 30]], atol=1e-4)
    assert "1 boxes are rotated" in next(fault.message for fault in dataset.faults if fault.code == "rotated-boxes")


def test_datumaros_voc_counts_from_zero(make_voc: MakeVoc) -> None:
    root = make_voc({"a": [("cat", (21, 11, 40, 20))]})
    assert open_dataset(root, split="train").boxes.tolist() == [[20, 10, 40, 20]]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\ncat:1,2,3::\n")
    assert open_dataset(root, split="train").boxes.tolist() == [[21, 11, 40, 20]]
    assert open_dataset(root, split="train", voc_offset="1").boxes.tolist() == [[20, 10, 40, 20]]


# Images that were resized after they were annotated (ultralytics/ultralytics#7513, roboflow and torchvision users)


def scaled(make_coco: MakeCoco, factor: float, boxes: float) -> Path:
    """Images of 60 x 40, stated `factor` times as large, with boxes drawn on an image `boxes` times as large."""
    whole = [20 * boxes, 10 * boxes, 38 * boxes, 28 * boxes]
    root = make_coco([annotation(i, i, bbox=whole) for i in range(1, 5)], images=4)

    def resize(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image |= {"width": round(60 * factor), "height": round(40 * factor)}

    return rewrite(root, resize)


@pytest.mark.parametrize("factor", [2.0, 3.0, 0.5])
def test_boxes_of_the_stated_size_stop(make_coco: MakeCoco, factor: float) -> None:
    root = scaled(make_coco, factor, factor)
    with pytest.raises(DataError, match=r"resized-images.*4 of 4 images.*1\.jpg has 60 x 40, stated"):
        open_dataset(root, split="train")
    assert len(open_dataset(root, split="train", boxes="format")) == 4


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_boxes_of_the_images_own_size_are_right_and_the_stated_size_is_wrong(
    make_coco: MakeCoco, factor: float
) -> None:
    root = scaled(make_coco, factor, 1)
    np.testing.assert_allclose(open_dataset(root, split="train").boxes, [[20, 10, 58, 38]] * 4)
    assert "size-mismatch" in codes(root)


# Ids and paths (neuroinformatics-unit/ethology#38, lvis-dataset/lvis-api#37)


def test_ids_that_are_text_are_numbered(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(1, image="b"), annotation(2, image="a")])  # type: ignore[arg-type]

    def name(document: dict[str, Any]) -> None:
        for image, text in zip(document["images"], "ab", strict=True):
            image["id"] = text

    rewrite(root, name)
    dataset = open_dataset(root, split="train")
    assert dataset.image_ids.tolist() == [1, 2]
    assert dataset.annotation_ids.tolist() == [2, 1]
    assert "2 of 2 images are text, 'a'" in codes(root)["text-ids"]


def test_ids_that_are_digits_keep_their_number(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(1, image="2", category_id="3")])  # type: ignore[arg-type]
    dataset = open_dataset(root, split="train")
    assert dataset.objects(1).labels.tolist() == [0]
    assert dataset.names[0] == "dog"


def test_equal_numbers_written_otherwise_are_different_images(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(1, image="01")])  # type: ignore[arg-type]
    rewrite(root, lambda document: document["images"][1].update(id="01"))
    dataset = open_dataset(root, split="train")
    assert len(set(dataset.image_ids.tolist())) == 2
    assert dataset.image_indices.tolist() == [1]


def test_vias_null_category_is_explained(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(1, category_id=None)])
    with pytest.raises(DataError, match="VIA writes null"):
        open_dataset(root, split="train")


def test_a_polygon_without_brackets_around_it(make_coco: MakeCoco) -> None:
    flat = [20, 10, 40, 10, 40, 20, 20, 20]
    one, two = (
        open_dataset(make_coco([annotation(1, segmentation=shape)]), split="train").masks_of(0)
        for shape in (flat, [flat])
    )
    assert one == two


# Classes (ultralytics/yolov5#2047: class ids from 1; AlexeyAB/darknet#1284; roboflow's and labelImg's names)


def test_classes_from_one_are_said_once(make_yolo: MakeYolo) -> None:
    root = make_yolo({"a": "1 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.3 0.3\n", "b": "2 0.5 0.5 0.2 0.2\n"})
    with pytest.raises(DataError, match=r"all 3 rows are from 1 to 2.*Subtract 1") as error:
        open_dataset(root, split="train")
    assert str(error.value).count("class-numbers") == 1
    assert "unknown-class" not in codes(root)


def test_a_single_wrong_class_is_not_a_numbering(make_yolo: MakeYolo) -> None:
    root = make_yolo({"a": "0 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.3 0.3\n"})
    assert "there is no class 2 among 2" in codes(root)["unknown-class"]


def test_rows_that_begin_with_the_name_of_the_class(make_yolo: MakeYolo) -> None:
    root = make_yolo(
        {"a": "traffic light 0.5 0.5 0.2 0.2\ncat 0.5 0.5 0.1 0.1 \n"},
        "names: [cat, traffic light]\ntrain: images/train\n",
    )
    assert open_dataset(root, split="train").labels.tolist() == [1, 0]


def test_names_that_are_numbers_are_ids_first(make_yolo: MakeYolo) -> None:
    root = make_yolo({"a": " 0 0.5 0.5 0.2 0.2\n"}, "names: ['1', '0']\ntrain: images/train\n")
    assert open_dataset(root, split="train").labels.tolist() == [0]


def test_rows_of_an_unknown_name_are_named(make_yolo: MakeYolo) -> None:
    root = make_yolo({"a": "horse 0.5 0.5 0.2 0.2\n"})
    assert "'horse 0.5 0.5 0.2 0.2' is not numbers" in codes(root)["box-not-numbers"]


# Sets against sets (cvat-ai/cvat#9201, ultralytics/yolov5#7094)


def test_images_that_no_split_has_are_named(make_coco: MakeCoco, make_image: Callable[..., Path]) -> None:
    root = make_coco([annotation(1)])
    for number in range(5):
        make_image(root / "train" / f"new-{number}.jpg", seed=10 + number)
    (root / "annotations" / "captions_train.json").write_text("{}")
    found = codes(root)
    assert "5 images are in no split: train/new-0.jpg" in found["unlisted-images"]
    assert "1 .json" in found["unused-files"]
    assert check(root).ok


def test_annotations_that_no_list_has_are_named(make_voc: MakeVoc) -> None:
    root = make_voc({"a": [("cat", (1, 1, 9, 9))], "b": [("cat", (1, 1, 9, 9))]}, train=["a"])
    found = codes(root)
    assert "JPEGImages/b.jpg" in found["unlisted-images"]
    assert "Annotations/b.xml" in found["unused-files"]


def test_a_whole_data_set_has_no_such_note(make_voc: MakeVoc, make_yolo: MakeYolo) -> None:
    for root in (make_voc({"a": [("cat", (1, 1, 9, 9))]}), make_yolo({"a": "0 0.5 0.5 0.2 0.2\n"})):
        (root / "README.roboflow.txt").write_text("exported")
        (root / "Train.txt").write_text("images/train/a.png\n")
        if (root / "data.yaml").exists():
            (root / "data.yaml").write_text("names: [cat, dog]\ntrain: Train.txt\n")
        else:
            (root / "Train.txt").unlink()
        assert not {"unlisted-images", "unused-files"} & set(codes(root))


# Paths of another machine in YOLO's lists (ultralytics/yolov5#1109, AlexeyAB/darknet#2009)


@pytest.mark.parametrize("prefix", ["/content/drive/d/", "C:\\data\\", "data/", "../d/"])
def test_lists_of_another_machine_are_found_by_the_end_of_their_paths(make_yolo: MakeYolo, prefix: str) -> None:
    root = make_yolo({"a": "0 0.5 0.5 0.2 0.2\n", "b": ""}, "names: [cat, dog]\ntrain: train.txt\n")
    separator = "\\" if "\\" in prefix else "/"
    lines = [prefix + separator.join(["images", "train", f"{stem}.png"]) for stem in "ab"]
    (root / "train.txt").write_text("\n".join(lines) + "\n")
    dataset = open_dataset(root, split="train")
    assert len(dataset) == 2
    assert len(dataset.labels) == 1
    assert "found by the end of their paths" in codes(root)["image-paths"]
