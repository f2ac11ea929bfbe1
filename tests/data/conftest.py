"""Small data sets written by the tests: a few coloured images, with annotations as each test needs them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

VocObjects = Sequence[tuple[str, Sequence[Any]]]


def picture(path: Path, height: int = 40, width: int = 60, *, seed: int = 0, **save: Any) -> Path:
    """An image of noise of this size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path


def voc_xml(
    objects: VocObjects, *, size: tuple[int, int] | None = (40, 60), filename: str = "", extra: str = ""
) -> str:
    """The text of a VOC annotation; `size` is (height, width)."""
    stated = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>" if size else ""
    items = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>{extra}</object>"
        for name, box in objects
    )
    return f"<annotation><filename>{filename}</filename>{stated}{items}</annotation>"


@pytest.fixture
def make_image() -> Callable[..., Path]:
    """`image`, for tests."""
    return picture


@pytest.fixture
def make_voc(tmp_path: Path) -> Callable[..., Path]:
    """A VOC data set from {stem: objects or XML text}, with lists of the given splits."""

    def make(images: Mapping[str, VocObjects | str], **splits: Sequence[str]) -> Path:
        root = tmp_path / "voc"
        (root / "Annotations").mkdir(parents=True)
        lists = root / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        for number, (stem, objects) in enumerate(images.items()):
            picture(root / "JPEGImages" / f"{stem}.jpg", seed=number)
            text = objects if isinstance(objects, str) else voc_xml(objects, filename=f"{stem}.jpg")
            (root / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
        for split, stems in (splits or {"train": list(images)}).items():
            (lists / f"{split}.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")
        return root

    return make


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Path]:
    """A COCO folder with annotations/instances_train.json and images in train/, from annotations by image id."""

    def make(annotations: Sequence[Mapping[str, Any]], *, images: int = 2, **document: Any) -> Path:
        root = tmp_path / "coco"
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        listed = []
        for number in range(1, images + 1):
            picture(root / "train" / f"{number}.jpg", seed=number)
            listed.append({"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 60})
        categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
        whole = {"images": listed, "annotations": list(annotations), "categories": categories} | document
        (root / "annotations" / "instances_train.json").write_text(json.dumps(whole), encoding="utf-8")
        return root

    return make


@pytest.fixture
def make_yolo(tmp_path: Path) -> Callable[..., Path]:
    """A YOLO data set from {stem: text of its label file, or None}, all in the split train."""

    def make(labels: Mapping[str, str | None], yaml: str = "names: [cat, dog]\ntrain: images/train\n") -> Path:
        root = tmp_path / "yolo"
        (root / "labels" / "train").mkdir(parents=True)
        for number, (stem, text) in enumerate(labels.items()):
            picture(root / "images" / "train" / f"{stem}.png", seed=number)
            if text is not None:
                (root / "labels" / "train" / f"{stem}.txt").write_text(text, encoding="utf-8")
        (root / "data.yaml").write_text(yaml, encoding="utf-8")
        return root

    return make
