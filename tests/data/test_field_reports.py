"""Files as people and tools write them, each after a public report: valid, and meaning something else than it seems."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twostage.data import Kind
from twostage.data.check import check
from twostage.data.convert import convert
from twostage.data.fix import fix_dataset
from twostage.data.recognise import find_layout, open_dataset
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
    assert "5 images are not in any split: train/new-0.jpg" in found["unlisted-images"]
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


# Rows of other tasks, with exceptions (ultralytics' docs/datasets/pose; unlabelled points are 0 0)


def test_keypoints_are_recognised_beside_a_plain_box(make_yolo: MakeYolo) -> None:
    points = " ".join("0.5 0.5 2" for _ in range(4))
    root = make_yolo({"a": f"0 0.5 0.5 0.2 0.2 {points}\n0 0.5 0.5 0.4 0.4 {points}\n0 0.1 0.1 0.1 0.1\n"})
    dataset = open_dataset(root, split="train")
    assert dataset.masks is None
    assert len(dataset.labels) == 3
    assert "2 of 3 rows" in codes(root)["keypoints"]


def test_points_that_are_not_labelled_do_not_hide_keypoints(make_yolo: MakeYolo) -> None:
    row = "0 0.5 0.5 0.2 0.2 0.45 0.45 0 0 0.5 0.52\n"
    with pytest.raises(DataError, match="kpt_shape"):
        open_dataset(make_yolo({"a": row * 3}), split="train")


def test_a_stray_class_is_not_taken_for_a_numbering_from_one(make_yolo: MakeYolo) -> None:
    root = make_yolo({"a": "1 0.5 0.5 0.2 0.2\n" * 40 + "2 0.5 0.5 0.3 0.3\n"})
    assert "there is no class 2" in codes(root)["unknown-class"]


def test_a_numbering_from_one_can_be_overridden(make_yolo: MakeYolo) -> None:
    root = make_yolo({"a": "1 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.3 0.3\n"})
    assert "unknown-class" in codes(root, boxes="format")
    assert len(open_dataset(root, split="train", boxes="format", on_error="skip").labels) == 1


def test_a_blank_line_among_names_is_an_error(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("2 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").write_text("cat\n\ndog\nbird\n\n")
    with pytest.raises(DataError, match="line 2 is empty"):
        open_dataset(tmp_path, split="all")


def test_labels_beside_images_in_a_folder_called_images(make_image: Callable[..., Path], tmp_path: Path) -> None:
    root = tmp_path / "images" / "batch"
    make_image(root / "a.png")
    (root / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "classes.txt").write_text("cat\n")
    assert len(open_dataset(root, split="all").labels) == 1


def test_a_relative_folder_gives_relative_names(
    make_image: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_image(tmp_path / "d" / "images" / "a.png")
    (tmp_path / "d" / "labels").mkdir()
    (tmp_path / "d" / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "d" / "classes.txt").write_text("cat\n")
    monkeypatch.chdir(tmp_path)
    assert open_dataset("d", split="all").file_name(0) == "images/a.png"
    assert (convert("d", "new", "coco").path / "all" / "a.png").is_file()


def test_images_elsewhere_keep_their_splits(make_image: Callable[..., Path], tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "d", tmp_path / "elsewhere"
    root.mkdir()
    (root / "data.yaml").write_text("names: [cat]\ntrain: images/train\nval: images/val\n")
    for split, name in (("train", "a"), ("val", "b")):
        make_image(elsewhere / split / f"{name}.png")
        (elsewhere / split / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    names = [open_dataset(root, split=split, images=elsewhere).path(0).name for split in ("train", "val")]
    assert names == ["a.png", "b.png"]
    with pytest.raises(DataError, match="several splits"):
        open_dataset(root, split="train", images=elsewhere / "train")


def test_images_of_a_list_that_end_alike_are_named(make_yolo: MakeYolo) -> None:
    root = make_yolo({"a": "0 0.5 0.5 0.2 0.2\n"}, "names: [cat, dog]\ntrain: train.txt\n")
    (root / "train.txt").write_text("/content/cam1/images/train/a.png\n/content/cam2/images/train/a.png\n")
    with pytest.raises(DataError, match="end alike"):
        open_dataset(root, split="train")


def test_a_label_file_that_was_removed_after_a_conversion(make_coco: MakeCoco, tmp_path: Path) -> None:
    root = convert(make_coco([annotation(1)]), tmp_path / "yolo", "yolo").path
    (root / "labels" / "train" / "1.txt").unlink()
    assert len(open_dataset(root, split="train").labels) == 0


# Ids, again (Camera Traps' COCO: every id is text)


def test_all_ids_may_be_text(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(1), annotation(2, image=2)])

    def name(document: dict[str, Any]) -> None:
        for key in ("images", "categories", "annotations"):
            for record in document[key]:
                record["id"] = f"{key} {record['id']}"
        for record in document["annotations"]:
            record |= {"image_id": f"images {record['image_id']}", "category_id": f"categories {record['category_id']}"}

    dataset = open_dataset(rewrite(root, name), split="train")
    assert [dataset.names[label] for label in dataset.labels] == ["cat", "cat"]
    assert dataset.image_indices.tolist() == [0, 1]


def test_one_unknown_text_id_leaves_the_others_known(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(1, image="1"), annotation(2, image="99")])  # type: ignore[arg-type]
    assert len(open_dataset(root, split="train", on_error="skip").labels) == 1


def test_the_largest_id_leaves_room_for_others(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(2**63 - 1), {k: v for k, v in annotation(1).items() if k != "id"}])
    assert len(set(open_dataset(root, split="train").annotation_ids.tolist())) == 2


def test_ids_near_the_largest_leave_room_too(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(2**63 - 2)] * 3)
    assert len(set(open_dataset(root, split="train").annotation_ids.tolist())) == 3


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_ids_that_are_hashes_of_63_bits_survive(make_coco: MakeCoco, tmp_path: Path, to: Kind) -> None:
    root = make_coco([annotation(2**63 - 5), annotation(2**62 + 1)])
    written = open_dataset(convert(root, tmp_path / to, to).path, split="train")
    assert written.annotation_ids.tolist() == [2**63 - 5, 2**62 + 1]


def test_text_ids_get_numbers_beside_the_largest(make_coco: MakeCoco) -> None:
    def change(document: dict[str, Any]) -> None:
        document["images"][0]["id"], document["images"][1]["id"] = 2**63 - 1, "second"

    root = rewrite(make_coco([annotation(1, image=2**63 - 1), annotation(2, image="second")]), change)  # type: ignore[arg-type]
    assert open_dataset(root, split="train").image_ids.tolist() == [2**63 - 1, 1]


def test_half_a_letter_in_a_name_is_read_where_no_image_is_needed(make_coco: MakeCoco) -> None:
    """JSON can hold it, and no file system."""
    root = rewrite(make_coco([annotation(1)]), lambda document: document["images"][0].update(file_name="\ud800.jpg"))
    assert open_dataset(root, split="train", require_images=False).file_name(0) == "\ud800.jpg"
    with pytest.raises(DataError, match="unreadable-image"):
        open_dataset(root, split="train")


# Other units, areas and outlines


def test_areas_and_outlines_follow_the_notation(make_coco: MakeCoco) -> None:
    ring = [1 / 3, 1 / 4, 2 / 3, 1 / 4, 2 / 3, 1 / 2, 1 / 3, 1 / 2]
    root = make_coco([annotation(1, bbox=[1 / 3, 1 / 4, 1 / 3, 1 / 4], area=1 / 12, segmentation=[ring])])
    dataset = open_dataset(root, split="train", boxes="xywh-fractions")
    np.testing.assert_allclose(dataset.boxes, [[20, 10, 40, 20]], atol=1e-4)
    assert dataset.areas.tolist() == [200]


# Copies that would lack a whole split


def test_a_copy_without_a_split_is_asked_for(make_coco: MakeCoco, tmp_path: Path) -> None:
    root = make_coco([annotation(1)])
    (root / "annotations" / "instances_val.json").write_text('{"images": [')
    with pytest.raises(DataError, match="broken-json"):
        fix_dataset(root, tmp_path / "new")


# Several tools in one folder


def test_labelme_files_left_beside_images_do_not_hide_coco(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(1)])
    (root / "train" / "1.json").write_text('{"shapes": [], "imagePath": "1.jpg", "imageHeight": 40}')
    assert find_layout(root).kind == "coco"


def test_a_file_of_tasks_beside_coco_is_left_out(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image(tmp_path / "1.jpg")
    image = {"id": 1, "file_name": "1.jpg", "height": 40, "width": 60}
    document = {"images": [image], "annotations": [annotation(1)], "categories": [{"id": 7, "name": "cat"}]}
    (tmp_path / "result.json").write_text(json.dumps(document))
    (tmp_path / "project.json").write_text('[{"id": 1, "annotations": [{"result": []}], "data": {"image": "a"}}]')
    layout = find_layout(tmp_path)
    assert (layout.kind, layout.splits) == ("coco", ("result",))
    with pytest.raises(DataError, match=r"project\.json: are tasks of Label Studio"):
        find_layout(tmp_path / "project.json")


def test_voc_with_yolos_labels_beside_is_voc(make_voc: MakeVoc) -> None:
    root = make_voc({"a": [("cat", (1, 1, 9, 9))]})
    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "classes.txt").write_text("cat\n")
    assert find_layout(root).kind == "voc"


def test_folders_that_are_called_like_files(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(1)])
    for name in ("backup.data", "old.json", "old.csv"):
        (root / name).mkdir()
    assert find_layout(root).kind == "coco"


# labelme (wkentaro/labelme#1003: imagePath of another file; #1164: other JSON in the folder)


def labelled(*shapes: str, path: str = "a.png", **more: Any) -> str:
    of = [{"label": label, "points": [[1, 1], [9, 9]], "shape_type": "rectangle"} for label in shapes]
    return json.dumps({"shapes": of, "imagePath": path, "imageHeight": 40, "imageWidth": 60, **more})


def test_labelmes_broken_file_leaves_its_image_out(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for name in "ab":
        make_image(tmp_path / f"{name}.png", seed=ord(name))
    (tmp_path / "a.json").write_text(labelled("cat")[:-20])
    (tmp_path / "b.json").write_text(labelled("cat", path="b.png"))
    dataset = open_dataset(tmp_path, split="all", on_error="skip")
    assert [dataset.path(i).name for i in range(len(dataset))] == ["b.png"]
    with pytest.raises(DataError, match=r"broken-json.*a\.json"):
        open_dataset(tmp_path, split="all")


def test_labelmes_copied_file_belongs_to_the_image_of_its_name(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for name in "ab":
        make_image(tmp_path / f"{name}.png", seed=ord(name))
        (tmp_path / f"{name}.json").write_text(labelled("cat"))  # both name a.png
    dataset = open_dataset(tmp_path, split="all")
    assert [dataset.path(i).name for i in range(2)] == ["a.png", "b.png"]
    assert dataset.image_indices.tolist() == [0, 1]


def test_labelmes_folders_and_other_json(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image(tmp_path / "a.png")
    make_image(tmp_path / "more" / "b.png", seed=1)
    (tmp_path / "a.json").write_text(labelled("cat"))
    (tmp_path / "more" / "b.json").write_text(labelled("dog", path="b.png"))
    (tmp_path / "settings.json").write_text("[1, 2]")
    dataset = open_dataset(tmp_path, split="all")
    assert dataset.names == ("cat", "dog")
    assert len(dataset) == 2


def test_labelmes_copies_of_jupyter_and_macos_are_left_out(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for name in "abc":
        make_image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.json").write_text(labelled("cat", path=f"{name}.png"))
        (tmp_path / f"._{name}.json").write_bytes(APPLE_DOUBLE)
    make_image(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png")
    (tmp_path / ".ipynb_checkpoints" / "a-checkpoint.json").write_text(labelled("cat"))
    dataset = open_dataset(tmp_path, split="all")
    assert [dataset.path(i).name for i in range(len(dataset))] == ["a.png", "b.png", "c.png"]


def test_one_file_of_labelme_names_its_folder(make_image: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(labelled("cat"))
    with pytest.raises(DataError, match="Name its folder"):
        find_layout(tmp_path / "a.json")


def test_with_images_elsewhere_splits_do_not_share_them(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("val", "b")):
        (tmp_path / "d" / split).mkdir(parents=True)
        (tmp_path / "d" / split / f"{name}.json").write_text(labelled("cat", path=f"{name}.png"))
        make_image(tmp_path / "images" / f"{name}.png")
    dataset = open_dataset(tmp_path / "d", split="train", images=tmp_path / "images")
    assert [dataset.path(i).name for i in range(len(dataset))] == ["a.png"]


# VIA


def test_two_files_of_via_with_the_same_images(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image(tmp_path / "a.png")
    region = {"shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 9, "height": 9}, "region_attributes": {}}
    image = {"filename": "a.png", "size": 1, "regions": [region], "file_attributes": {}}
    (tmp_path / "via_project.json").write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": {"a": image}}))
    (tmp_path / "via_region_data.json").write_text(json.dumps({"a": image}))
    with pytest.raises(DataError, match=r"via_project\.json and via_region_data\.json have the same images"):
        open_dataset(tmp_path, split="via_project")


def test_an_image_that_via_has_twice_has_the_regions_of_both(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image(tmp_path / "a.png")
    region = {"shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 9, "height": 9}, "region_attributes": {}}
    images = {
        f"a.png{size}": {"filename": "a.png", "size": size, "regions": [region], "file_attributes": {}}
        for size in (1, 2)
    }
    (tmp_path / "via.json").write_text(json.dumps(images))
    dataset = open_dataset(tmp_path, split="via")
    assert (len(dataset), len(dataset.labels)) == (1, 2)


# Hidden files that nobody made: Jupyter's copies, and what macOS writes beside each file on a disk of another kind

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02"


def test_a_copy_of_jupyter_is_no_image_without_objects(make_yolo: MakeYolo, make_image: Callable[..., Path]) -> None:
    root = make_yolo({"a": "0 0.5 0.5 0.2 0.2\n"})
    make_image(root / "images" / "train" / ".ipynb_checkpoints" / "a-checkpoint.png")
    dataset = open_dataset(root, split="train")
    assert [dataset.path(i).name for i in range(len(dataset))] == ["a.png"]


def test_files_of_macos_are_no_splits(make_voc: MakeVoc, make_coco: MakeCoco) -> None:
    voc = make_voc({"a": [("cat", (1, 1, 9, 9))]})
    (voc / "ImageSets" / "Main" / "._train.txt").write_bytes(APPLE_DOUBLE)
    assert find_layout(voc).splits == ("train",)
    coco = make_coco([annotation(1)])
    (coco / "annotations" / "instances_train.json").rename(coco / "train" / "_annotations.coco.json")
    (coco / "annotations").rmdir()
    (coco / "train" / ".__annotations.coco.json").write_bytes(APPLE_DOUBLE)
    assert len(open_dataset(coco, split="train")) == 2


# Lists of Windows' editor, which begin with the mark of their encoding


def test_a_mark_before_the_first_name_of_a_list_is_no_part_of_it(make_voc: MakeVoc) -> None:
    root = make_voc({"a": [("cat", (1, 1, 9, 9))], "b": []})
    (root / "ImageSets" / "Main" / "train.txt").write_bytes("\ufeffa\r\nb\r\n".encode())
    assert len(open_dataset(root, split="train")) == 2
