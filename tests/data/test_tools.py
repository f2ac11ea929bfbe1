"""Exports of labelling tools, as docs/tools.md lists them: small files in the form of each, read or refused.

Each read export has the same two objects on one image of 60 x 40: a cat at 10, 5, 30, 25 and a dog at 40, 10, 55, 38.
"""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twostage.data.check import check
from twostage.data.dataset import Dataset
from twostage.data.layout import Options
from twostage.data.recognise import find_layout, open_dataset, opener
from twostage.errors import DataError
from twostage.ops.masks import decode

CAT, DOG = (10.0, 5.0, 30.0, 25.0), (40.0, 10.0, 55.0, 38.0)
NAMES = ("cat", "dog")


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)


def coco(file_name: str = "a.png", **image: Any) -> dict[str, Any]:
    """A COCO file with the two objects; `image` are more fields of the image."""
    boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in (CAT, DOG)]
    return {
        "images": [{"id": 1, "width": 60, "height": 40, "file_name": file_name, **image}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": number, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for number, box in enumerate(boxes, start=1)
        ],
    }


def voc(name: str = "a.png", first: int = 1, more: str = "") -> str:
    """VOC's XML with the two objects, the first pixel numbered `first`; `more` is in every object."""
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{box[0] + first}</xmin><ymin>{box[1] + first}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>{more}</object>"
        for label, box in zip(NAMES, (CAT, DOG), strict=True)
    )
    size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
    return f"<annotation><folder>f</folder><filename>{name}</filename>{size}{objects}</annotation>"


def rows(*before: str) -> str:
    """YOLO's rows of the two objects, after the ids 0 and 1 or what is given."""
    lines = []
    for label, (x1, y1, x2, y2) in zip(before or ("0", "1"), (CAT, DOG), strict=True):
        lines.append(f"{label} {(x1 + x2) / 120:.6f} {(y1 + y2) / 80:.6f} {(x2 - x1) / 60:.6f} {(y2 - y1) / 40:.6f}\n")
    return "".join(lines)


def cvat_coco(root: Path) -> None:
    document = coco(license=0, date_captured=0, flickr_url="", coco_url="")
    for one in document["annotations"]:
        one |= {"segmentation": [], "attributes": {"occluded": False, "rotation": 0.0}}
    picture(root / "images" / "default" / "a.png")
    write(root / "annotations" / "instances_default.json", {"licenses": [{"id": 0, "name": ""}], **document})


def cvat_voc(root: Path) -> None:
    picture(root / "JPEGImages" / "a.png")
    attributes = "<attributes><attribute><name>rotation</name><value>0.0</value></attribute></attributes>"
    write(root / "Annotations" / "a.xml", voc(first=0, more=f"<occluded>0</occluded>{attributes}"))
    write(root / "ImageSets" / "Main" / "default.txt", "a\n")
    write(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,2,3::\ndog:4,5,6::\n")


def cvat_yolo(root: Path) -> None:
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(root / "obj.names", "cat\ndog\n")
    write(root / "train.txt", "data/obj_train_data/a.png\n")
    picture(root / "obj_train_data" / "a.png")
    write(root / "obj_train_data" / "a.txt", rows())


def cvat_ultralytics(root: Path) -> None:
    write(root / "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\n")
    write(root / "train.txt", "data/images/train/a.png\n")
    picture(root / "images" / "train" / "a.png")
    write(root / "labels" / "train" / "a.txt", rows())


def label_studio_coco(root: Path) -> None:
    picture(root / "images" / "1b2c-a.png")
    write(root / "result.json", {**coco("images\\1b2c-a.png"), "info": {"contributor": "Label Studio"}})


def label_studio_voc(root: Path) -> None:
    picture(root / "images" / "a.png")
    write(root / "Annotations" / "a.xml", voc())


def label_studio_yolo(root: Path) -> None:
    picture(root / "images" / "a.png")
    write(root / "labels" / "a.txt", rows())
    write(root / "classes.txt", "cat\ndog\n")
    write(root / "notes.json", {"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]})


def roboflow_coco(root: Path) -> None:
    document = coco()
    document["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        *({**one, "supercategory": "pets"} for one in document["categories"]),
    ]
    picture(root / "train" / "a.png")
    write(root / "train" / "_annotations.coco.json", document)
    write(root / "README.roboflow.txt", "exported")


def roboflow_yolo(root: Path) -> None:
    write(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\nroboflow:\n  license: CC BY 4.0\n",
    )
    picture(root / "train" / "images" / "a.png")
    picture(root / "valid" / "images" / "b.png", seed=1)
    write(root / "train" / "labels" / "a.txt", rows())
    write(root / "valid" / "labels" / "b.txt", rows())


def roboflow_voc(root: Path) -> None:
    picture(root / "train" / "a.png")
    write(root / "train" / "a.xml", voc(more="<pose>Unspecified</pose><truncated>0</truncated>"))


def label_img_voc(root: Path) -> None:
    picture(root / "a.png")
    write(root / "a.xml", voc().replace("<annotation>", '<annotation verified="yes">'))


def label_img_yolo(root: Path) -> None:
    picture(root / "a.png")
    write(root / "a.txt", rows())
    write(root / "classes.txt", "cat\ndog\n")


def labelme_file(**shape: Any) -> dict[str, Any]:
    shapes = [
        {"label": "cat", "points": [[30, 25], [10, 5]], "group_id": None, "shape_type": "rectangle", "flags": {}},
        {"label": "dog", "points": [[40, 10], [55, 10], [55, 38], [40, 38]], "shape_type": "polygon", "flags": {}},
    ]
    whole = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageData": None}
    return {**whole, "imageHeight": 40, "imageWidth": 60, **shape}


def labelme(root: Path) -> None:
    picture(root / "a.png")
    write(root / "a.json", labelme_file())


def x_anylabeling(root: Path) -> None:
    document = labelme_file(version="2.4.4", imagePath="..\\images\\a.png")
    for shape in document["shapes"]:
        shape |= {"score": None, "description": "", "difficult": False, "attributes": {}, "kie_linking": []}
    picture(root / "a.png")
    write(root / "a.json", document)


VIA_REGIONS = [
    {
        "shape_attributes": {"name": "rect", "x": 10, "y": 5, "width": 20, "height": 20},
        "region_attributes": {"label": "cat", "mood": "good"},
    },
    {
        "shape_attributes": {"name": "polygon", "all_points_x": [40, 55, 55, 40], "all_points_y": [10, 10, 38, 38]},
        "region_attributes": {"label": "dog"},
    },
]


def via(root: Path) -> None:
    picture(root / "a.png")
    image = {"filename": "a.png", "size": 7000, "regions": VIA_REGIONS, "file_attributes": {"caption": "two"}}
    write(root / "via_region_data.json", {"a.png7000": image})


def via_project(root: Path) -> None:
    picture(root / "a.png")
    regions = {str(number): region for number, region in enumerate(VIA_REGIONS)}  # VIA 1 numbers them
    image = {"filename": "a.png", "size": 7000, "regions": regions, "file_attributes": {}}
    write(root / "via_project.json", {"_via_settings": {}, "_via_img_metadata": {"a.png7000": image}})


def via_csv(root: Path) -> None:
    picture(root / "a.png")
    head = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    lines = [head]
    for number, region in enumerate(VIA_REGIONS):
        shape, attributes = (json.dumps(part).replace('"', '""') for part in region.values())
        lines.append(f'a.png,7000,"{{}}",2,{number},"{shape}","{attributes}"')
    write(root / "via_region_data.csv", "\n".join(lines) + "\n")


def via_coco(root: Path) -> None:
    """Polygons without brackets around them, ids as text."""
    document = coco(id="1")
    document["annotations"] = [
        {**one, "image_id": "1", "segmentation": [x, y, x + w, y, x + w, y + h, x, y + h]}
        for one in document["annotations"]
        for x, y, w, h in [one["bbox"]]
    ]
    picture(root / "a.png")
    write(root / "via_export_coco.json", document)


def vott_voc(root: Path) -> None:
    """Lists of tags alone, with file names."""
    picture(root / "JPEGImages" / "a.png")
    picture(root / "JPEGImages" / "b.png", seed=1)
    for name in "ab":
        write(root / "Annotations" / f"{name}.xml", voc(f"{name}.png", more="<pose>Unspecified</pose>"))
    for tag in NAMES:
        write(root / "ImageSets" / "Main" / f"{tag}_train.txt", "a.png 1\n")
        write(root / "ImageSets" / "Main" / f"{tag}_val.txt", "b.png -1\n")
    write(root / "pascal_label_map.pbtxt", "item { id: 1 }\n")


def supervisely_yolo(root: Path) -> None:
    roboflow_yolo(root)
    (root / "data.yaml").rename(root / "data_config.yaml")


def datumaro_yolo(root: Path) -> None:
    """Lists in a folder, with keys of its own."""
    write(root / "obj.data", "classes = 2\nTrain = data/Train.txt\nValidation = data/val.txt\nnames = data/obj.names\n")
    write(root / "data" / "obj.names", "cat\ndog\n")
    for name, split in (("a", "Train"), ("b", "val")):
        write(root / "data" / f"{split}.txt", f"data/obj_{split}_data/{name}.png\n")
        picture(root / "data" / f"obj_{split}_data" / f"{name}.png", seed=ord(name))
        write(root / "data" / f"obj_{split}_data" / f"{name}.txt", rows())


def ultralytics_tracks(root: Path) -> None:
    """Of model.track(save_txt=True, save_conf=True): confidence, and the number of the track."""
    roboflow_yolo(root)
    for name in ("train/labels/a.txt", "valid/labels/b.txt"):
        lines = (root / name).read_text().splitlines()
        write(root / name, "".join(f"{line} 0.91 {number}\n" for number, line in enumerate(lines, start=1)))


def cvat_tracks(root: Path) -> None:
    """A number of the track in some rows."""
    cvat_ultralytics(root)
    path = root / "labels" / "train" / "a.txt"
    first, second = path.read_text().splitlines()
    write(path, f"{first} 7\n{second}\n")


def fiftyone_coco(root: Path) -> None:
    picture(root / "data" / "a.png")
    write(root / "labels.json", {"info": {"description": "FiftyOne"}, **coco()})


def fiftyone_voc(root: Path) -> None:
    picture(root / "data" / "a.png")
    write(root / "labels" / "a.xml", voc())


def fiftyone_yolo(root: Path) -> None:
    write(root / "dataset.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: ./images/train/\n")
    picture(root / "images" / "train" / "a.png")
    write(root / "labels" / "train" / "a.txt", rows())


def supervisely_coco(root: Path) -> None:
    picture(root / "images" / "a.png")
    write(root / "annotations" / "instances.json", coco())


def sahi_coco(root: Path) -> None:
    document = coco("a_0_0_60_40.png")
    for one in document["annotations"]:
        one["segmentation"] = []
    picture(root / "images" / "a_0_0_60_40.png")
    write(root / "sliced_coco.json", document)


def lvis(root: Path) -> None:
    """Images have an address, and no file_name."""
    document = coco(coco_url="somewhere/train2017/a.png", not_exhaustive_category_ids=[])
    del document["images"][0]["file_name"]
    picture(root / "train2017" / "a.png")
    write(root / "lvis_v1_train.json", document)


READ = (
    *(cvat_coco, cvat_voc, cvat_yolo, cvat_ultralytics, label_studio_coco, label_studio_voc, label_studio_yolo),
    *(roboflow_coco, roboflow_yolo, roboflow_voc, label_img_voc, label_img_yolo, labelme, x_anylabeling),
    *(via, via_project, via_csv, via_coco, vott_voc, fiftyone_coco, fiftyone_voc, fiftyone_yolo),
    *(supervisely_coco, supervisely_yolo, datumaro_yolo, ultralytics_tracks, cvat_tracks, sahi_coco, lvis),
)


def opened(root: Path) -> Dataset:
    layout = find_layout(root)
    split = "train" if "train" in layout.splits else layout.splits[0]
    return opener(layout, Options())(split)


@pytest.mark.parametrize("export", READ, ids=lambda export: export.__name__)
def test_an_export_is_read_with_all_its_objects(export: Callable[[Path], None], tmp_path: Path) -> None:
    export(tmp_path / "d")
    dataset = opened(tmp_path / "d")
    assert dataset.names == NAMES
    assert len(dataset) == 1
    assert dataset.labels.tolist() == [0, 1]
    np.testing.assert_allclose(dataset.boxes, [CAT, DOG], atol=1e-3)
    assert dataset.path(0).is_file()
    report = check(tmp_path / "d")
    assert report.ok, report.format()


AZURE = {"label": "cat", "topX": 0.1, "topY": 0.1, "bottomX": 0.5, "bottomY": 0.6}
REFUSED = {
    "cvat-xml": (
        "annotations.xml",
        "<?xml version='1.0'?><annotations>\n<version>1.1</version></annotations>",
        "COCO 1.0",
    ),
    "label-studio": (
        "p.json",
        [{"id": 1, "annotations": [{"result": []}], "data": {"image": "a"}}],
        "Label Studio.*COCO",
    ),
    "label-studio-min": ("p.json", [{"image": "a", "label": [{"original_width": 6}]}], "Label Studio.*COCO"),
    "createml": ("p.json", [{"image": "a.png", "annotations": [{"label": "c", "coordinates": {}}]}], "CreateML.*VOC"),
    "supervisely": (
        "ds/ann/a.png.json",
        {"objects": [{"classTitle": "cat", "points": {"exterior": [[1, 2], [3, 4]], "interior": []}}]},
        "Supervisely.*COCO",
    ),
    "vott": ("p-export.json", {"name": "p", "tags": [{"name": "cat"}], "assets": {}}, "VoTT.*Pascal VOC"),
    "sagemaker": (
        "output.manifest",
        '{"source-ref": "s3://a.png", "boxes": {"annotations": []}}\n',
        "SageMaker.*own-data",
    ),
    "azure-ml": ("labels.jsonl", json.dumps({"image_url": "AmlDatastore://a.png", "label": [AZURE]}), "Azure.*COCO"),
    "custom-vision": ("p.json", [{"id": "x", "regions": [{"tagName": "cat", "left": 0.1}]}], "Custom Vision.*own-data"),
    "fiftyone": (
        "samples.json",
        {"samples": [{"_media_type": "image", "ground_truth": {}}]},
        "FiftyOne.*COCODetection",
    ),
    "datumaro": ("default.json", {"info": {}, "categories": {"label": {"labels": []}}, "items": []}, "Datumaro.*COCO"),
    "via-3": ("via.json", {"project": {"pid": "x"}, "vid_list": ["1"]}, "VIA 3.*VIA 2"),
    "csv": ("_annotations.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n", "table of boxes.*COCO"),
    "tfrecord": ("pets.tfrecord", "\x00", "TFRecord.*COCO"),
}


@pytest.mark.parametrize(("name", "content", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("by", ["folder", "file"])
def test_another_export_is_named_with_the_way_round(
    name: str, content: Any, words: str, by: str, tmp_path: Path
) -> None:
    write(tmp_path / name, content)
    with pytest.raises(DataError, match=words):
        find_layout(tmp_path if by == "folder" else tmp_path / name)


def test_cvat_xml_beside_images_is_named_too(tmp_path: Path) -> None:
    write(tmp_path / "annotations.xml", "<annotations><version>1.1</version></annotations>")
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="CVAT for images"):
        open_dataset(tmp_path, split="all")


def test_azure_boxes_are_read_when_they_are_said_to_be_fractions(tmp_path: Path) -> None:
    """Azure Machine Learning's COCO export (MachineLearningNotebooks#1865)."""
    document = coco(width=60.0, height=40.0)
    for one in document["annotations"]:
        x, y, width, height = one["bbox"]
        one["bbox"] = [x / 60, y / 40, width / 60, height / 40]
    picture(tmp_path / "a.png")
    write(tmp_path / "labels.json", document)
    with pytest.raises(DataError, match="--boxes xywh-fractions"):
        open_dataset(tmp_path, split="labels")
    np.testing.assert_allclose(
        open_dataset(tmp_path, split="labels", boxes="xywh-fractions").boxes, [CAT, DOG], atol=1e-4
    )


def mask_png(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_labelme_masks_groups_and_circles(tmp_path: Path) -> None:
    """A mask is a PNG of its box; polygons of one group are one object; points are left out, with their count."""
    part = np.zeros((4, 6), bool)
    part[1:3, 2:5] = True
    shapes = [
        {"label": "cat", "shape_type": "mask", "points": [[10, 5], [15, 8]], "mask": mask_png(part)},
        {"label": "dog", "shape_type": "polygon", "points": [[20, 10], [24, 10], [24, 14], [20, 14]], "group_id": 1},
        {"label": "dog", "shape_type": "polygon", "points": [[30, 20], [34, 20], [34, 24], [30, 24]], "group_id": 1},
        {"label": "cat", "shape_type": "circle", "points": [[45, 20], [50, 20]]},
        {"label": "eye", "shape_type": "point", "points": [[3, 3]]},
        {"label": "dog", "shape_type": "rotation", "points": [[10, 30], [14, 26], [18, 30], [14, 34]]},
    ]
    picture(tmp_path / "a.png")
    write(tmp_path / "a.json", labelme_file(shapes=shapes))
    dataset = open_dataset(tmp_path, split="all")
    assert dataset.names == ("cat", "dog")
    expected = [(10, 5, 16, 9), (20, 10, 34, 24), (40, 15, 50, 25), (10, 26, 18, 34)]
    np.testing.assert_allclose(dataset.boxes, expected, atol=0.02)
    codes = {fault.code: fault.message for fault in dataset.faults}
    assert "1 of type point" in codes["left-out-shapes"]
    assert "1 rotated" in codes["rotated-boxes"]
    masks = dataset.masks_of(0)
    mask, group, circle, _ = decode(masks)
    np.testing.assert_array_equal(np.argwhere(mask), np.argwhere(part) + np.array([5, 10]))
    assert group.sum() == 32
    assert abs(circle.sum() - np.pi * 25) < 6


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"label": "cat", "points": [[1, 2]], "shape_type": "rectangle"}, "has 2 or more"),
        ({"label": "cat", "points": [[1, "x"], [3, 4]], "shape_type": "rectangle"}, "points are"),
        ({"points": [[1, 2], [3, 4]], "shape_type": "rectangle"}, "has no label"),
        ({"label": "cat", "points": [[1, 2], [3, 4]], "shape_type": "cuboid"}, "not one of labelme's"),
        ({"label": "cat", "points": [[1, 2], [3, 4]], "shape_type": "mask", "mask": "!!"}, "not a PNG"),
        (
            {"label": "cat", "points": [[58, 2], [63, 4]], "shape_type": "mask", "mask": mask_png(np.ones((3, 6)))},
            "within",
        ),
        ("cat", "has no label"),
    ],
)
def test_labelme_shapes_that_cannot_be_read_are_named(shape: Any, words: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.json", labelme_file(shapes=[*labelme_file()["shapes"], shape]))
    with pytest.raises(DataError, match=rf"a\.json:shapes\[2\].*{words}"):
        open_dataset(tmp_path, split="all")
    assert len(open_dataset(tmp_path, split="all", on_error="skip").labels) == 2


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ([{"shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": None, "height": 3}}], "not numbers"),
        ([{"shape_attributes": {"name": "blob"}}], "not one of VIA's"),
        (
            [{"shape_attributes": {"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1]}}],
            "polygon has the points",
        ),
        (
            [{"shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 2, "height": 3}, "region_attributes": {}}],
            "no class",
        ),
    ],
)
def test_via_regions_that_cannot_be_read_are_named(regions: list[Any], words: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    regions = [{"region_attributes": {"label": "cat"}, **region} for region in regions]
    image = {"filename": "a.png", "size": 1, "regions": [*VIA_REGIONS, *regions], "file_attributes": {}}
    write(tmp_path / "via.json", {"a.png1": image})
    with pytest.raises(DataError, match=rf"via\.json:a\.png, region 2.*{words}"):
        open_dataset(tmp_path, split="via")
    assert len(open_dataset(tmp_path, split="via", on_error="skip").labels) == 2


def test_via_classes_are_checkboxes_or_the_only_attribute_or_there_are_none(tmp_path: Path) -> None:
    def saved(*attributes: dict[str, Any]) -> Path:
        shape = {"name": "rect", "x": 1, "y": 2, "width": 9, "height": 9}
        regions = [{"shape_attributes": shape, "region_attributes": one} for one in attributes]
        image = {"filename": "a.png", "size": 1, "regions": regions, "file_attributes": {}}
        write(tmp_path / "via.json", {"a.png1": image})
        return tmp_path

    picture(tmp_path / "a.png")
    assert open_dataset(saved({"kind": {"cat": True}}, {"kind": {"dog": True}}), split="via").names == ("cat", "dog")
    assert open_dataset(saved({"animal": "cat"}, {"animal": "dog", "note": "x"}), split="via").names == ("cat", "dog")
    assert open_dataset(saved({}, {}), split="via").names == ("object",)
    with pytest.raises(DataError, match=r"which attribute.*animal, mood"):
        open_dataset(saved({"animal": "cat", "mood": "good"}), split="via")
