"""Changes of written data sets that keep their meaning, or make it doubtful: ids, paths, nesting, sizes and classes.

Each takes the folder of a data set as `other_meanings.write` leaves it. The boxes that are meant stay the same, unless
its name says that the file is in doubt: then it must be refused.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image


def _coco(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = root / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def coco_text_ids(root: Path) -> None:
    """Names of files as ids."""

    def change(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image["id"] = f"image {image['id']}"
        for one in document["annotations"]:
            one["image_id"] = f"image {one['image_id']}"

    _coco(root, change)


def coco_digits(root: Path) -> None:
    """Numbers as text, on one side alone."""
    _coco(root, lambda document: [one.update(image_id=str(one["image_id"])) for one in document["annotations"]])


def coco_backslashes(root: Path) -> None:
    """Paths of Windows."""
    _coco(root, lambda document: [i.update(file_name=f"C:\\work\\train\\{i['file_name']}") for i in document["images"]])


def coco_other_machine(root: Path) -> None:
    """Absolute paths."""
    _coco(root, lambda document: [i.update(file_name=f"/content/d/{i['file_name']}") for i in document["images"]])


def coco_folders(root: Path) -> None:
    """Images in folders within the split's."""

    def change(document: dict[str, Any]) -> None:
        for image in document["images"]:
            place = root / "train" / "day 1" / "camera"
            place.mkdir(parents=True, exist_ok=True)
            (root / "train" / image["file_name"]).rename(place / image["file_name"])
            image["file_name"] = f"day 1/camera/{image['file_name']}"

    _coco(root, change)


def coco_root_category(root: Path) -> None:
    """Roboflow's."""
    _coco(
        root,
        lambda document: document.update(
            categories=[
                {"id": 0, "name": "things", "supercategory": "none"},
                {"id": 1, "name": "a", "supercategory": "things"},
            ]
        ),
    )


def coco_in_doubt_resized(root: Path) -> None:
    """Images of half the size."""
    for path in (root / "train").iterdir():
        with Image.open(path) as image:
            smaller = image.resize((image.width // 2, image.height // 2))
        smaller.save(path)


def yolo_names(root: Path) -> None:
    """The name of the class in every row."""
    for path in (root / "labels" / "train").iterdir():
        path.write_text("".join(f"a{line[1:]}\n" for line in path.read_text().splitlines()))


def yolo_in_doubt_from_one(root: Path) -> None:
    """Classes from 1."""
    for path in (root / "labels" / "train").iterdir():
        path.write_text("".join(f"1{line[1:]}\n" for line in path.read_text().splitlines()))


def yolo_folders(root: Path) -> None:
    """Images and labels in folders."""
    for kind in ("images", "labels"):
        files = list((root / kind / "train").iterdir())
        (root / kind / "train" / "day 1").mkdir()
        for path in files:
            path.rename(path.parent / "day 1" / path.name)


def yolo_list(root: Path) -> None:
    """A list with the paths of another machine."""
    names = sorted(path.name for path in (root / "images" / "train").iterdir())
    (root / "train.txt").write_text("".join(f"/content/d/images/train/{name}\n" for name in names))
    (root / "data.yaml").write_text("train: train.txt\nnames: [a]\n")


def yolo_darknet(root: Path) -> None:
    """CVAT's YOLO 1.1."""
    folder = root / "obj_train_data"
    shutil.move(root / "images" / "train", folder)
    for path in (root / "labels" / "train").iterdir():
        path.rename(folder / path.name)
    (root / "data.yaml").unlink()
    (root / "obj.names").write_text("a\n")
    (root / "obj.data").write_text("classes = 1\ntrain = data/train.txt\nnames = data/obj.names\n")
    names = sorted(path.name for path in folder.glob("*.png"))
    (root / "train.txt").write_text("".join(f"data/obj_train_data/{name}\n" for name in names))


def yolo_class_list(root: Path) -> None:
    """Label Studio's."""
    for kind in ("images", "labels"):
        for path in (root / kind / "train").iterdir():
            path.rename(root / kind / path.name)
        (root / kind / "train").rmdir()
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("a\n")


def voc_folders(root: Path) -> None:
    """CVAT's nested names."""
    for kind in ("Annotations", "JPEGImages"):
        files = list((root / kind).iterdir())
        (root / kind / "day 1").mkdir()
        for path in files:
            path.rename(root / kind / "day 1" / path.name)


def voc_path(root: Path) -> None:
    """LabelImg's path on another machine, and a name without suffix."""
    for path in (root / "Annotations").iterdir():
        inside = f"<annotation><filename>{path.stem}</filename><path>C:\\work\\{path.stem}.png</path>"
        path.write_text(path.read_text().replace("<annotation>", inside))


def voc_images_folder(root: Path) -> None:
    """Label Studio's folder of images."""
    (root / "JPEGImages").rename(root / "images")


def voc_in_doubt_resized(root: Path) -> None:
    """Images of half the size, with the size as it was in the XML."""
    for path in (root / "Annotations").iterdir():
        image_path = root / "JPEGImages" / f"{path.stem}.png"
        with Image.open(image_path) as image:
            size = f"<size><width>{image.width}</width><height>{image.height}</height></size>"
            smaller = image.resize((image.width // 2, image.height // 2))
        smaller.save(image_path)
        path.write_text(path.read_text().replace("<annotation>", f"<annotation>{size}"))


CHANGES: dict[str, tuple[Callable[[Path], None], ...]] = {
    "coco": (
        *(coco_text_ids, coco_digits, coco_backslashes, coco_other_machine, coco_folders, coco_root_category),
        coco_in_doubt_resized,
    ),
    "yolo": (yolo_names, yolo_in_doubt_from_one, yolo_folders, yolo_list, yolo_darknet, yolo_class_list),
    "voc": (voc_folders, voc_path, voc_images_folder, voc_in_doubt_resized),
}
