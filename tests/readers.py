"""Every reader of a foreign file, and what must hold whatever stands in that file: for the tests and the fuzzer."""

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image

from twostage.data.check import check
from twostage.data.convert import convert
from twostage.data.dataset import Dataset
from twostage.data.images import read_header, read_image
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.errors import TwostageError
from twostage.evaluation.results import Results
from twostage.models.configure import configure
from twostage.models.zoo import named
from twostage.training.folder import read_options
from twostage.weights.file import Card, load_weights, save_weights
from twostage.weights.pickled import read_pickle

PICTURES = ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm")


class Reader(NamedTuple):
    """The file that may hold anything, within the folder of sound ones, and what reads it, given that folder."""

    file: str
    read: Callable[[Path], object]


def make_sound(root: Path) -> None:
    """A file for every reader, each as it should be."""
    write_scenes(root / "coco", train=2, val=1, seed=0)
    annotations = root / "coco" / "annotations" / "instances_val.json"
    document = json.loads(annotations.read_text())
    document["annotations"][0]["attributes"] = {"occluded": True, "rotation": 0.0}
    annotations.write_text(json.dumps(document))
    _make_labelme_and_via(root)
    for kind in ("voc", "yolo"):
        convert(root / "coco", root / kind, kind)
    truth = json.loads((root / "coco" / "annotations" / "instances_val.json").read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox", "segmentation")
    (root / "results.json").write_text(json.dumps([{**{k: one[k] for k in keys}, "score": 0.5} for one in truth]))
    (root / "results").mkdir()
    (root / "results" / "comp4_det_val_circle.txt").write_text("000000 0.5 10 10.5 20 3e1\n")
    (root / "run").mkdir()
    (root / "run" / "config.yaml").write_text(yaml.safe_dump({"data": "x", "epochs": 2, "scale": [0.5, 1.0]}))
    save_weights(
        root / "a.safetensors",
        {"a": torch.ones(2, 2)},
        Card("faster_rcnn_tiny_fpn", ("a",), configure(named("faster_rcnn_tiny_fpn"), {"size": 8})),
    )
    torch.save({"a.weight": torch.ones(2, 2)}, root / "a.pth")
    picture = Image.open(root / "coco" / "val" / "000000.jpg").resize((16, 12))
    for suffix in PICTURES:
        picture.save(root / f"a.{suffix}")


def _make_labelme_and_via(root: Path) -> None:
    """One image each, with shapes of several types."""
    for kind in ("labelme", "via"):
        (root / kind).mkdir()
        Image.new("RGB", (60, 40)).save(root / kind / "a.png")
    part = io.BytesIO()
    Image.new("L", (4, 3), 255).save(part, "PNG")
    shapes = [
        {"label": "cat", "shape_type": "rectangle", "points": [[30, 25], [10.5, 5]], "flags": {"x": True}},
        {"label": "cat", "shape_type": "polygon", "points": [[1, 2], [9, 2], [5, 8]], "group_id": 1},
        {"label": "dog", "shape_type": "circle", "points": [[20, 20], [25, 20]]},
        {
            "label": "dog",
            "shape_type": "mask",
            "points": [[5, 5], [8, 7]],
            "mask": base64.b64encode(part.getvalue()).decode(),
        },
    ]
    labelme = {"version": "5.5.0", "shapes": shapes, "imagePath": "a.png", "imageHeight": 40, "imageWidth": 60}
    (root / "labelme" / "a.json").write_text(json.dumps(labelme))
    regions = [
        {"name": "rect", "x": 1, "y": 2, "width": 9, "height": 8},
        {"name": "ellipse", "cx": 20, "cy": 20, "rx": 5, "ry": 4, "theta": 0.5},
        {"name": "polygon", "all_points_x": [1, 9, 5], "all_points_y": [2, 2, 8]},
    ]
    shown = [{"shape_attributes": shape, "region_attributes": {"label": "cat", "tag": "x"}} for shape in regions]
    image = {"filename": "a.png", "size": 1, "regions": shown, "file_attributes": {"caption": "y"}}
    (root / "via" / "via.json").write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": {"a": image}}))


def must_be_read_or_refused(name: str, root: Path, content: bytes) -> bool:
    """With this content the reader gives what holds, or an error of ours that names the file; whether it was read."""
    reader = READERS[name]
    path = root / reader.file
    path.write_bytes(content)
    try:
        reader.read(root)
    except TwostageError as error:
        message = str(error)
    else:
        return True
    data = root / Path(reader.file).parts[0]  # named where a missing split is asked for
    assert any(name in message for name in (path.name, path.stem, str(data))), f"{path.name} is not named: {message}"
    return False


def _open(kind: str, split: str = "val") -> Callable[[Path], None]:
    def read(root: Path) -> None:
        check(root / kind)
        for on_error in ("default", "skip"):
            _must_hold(open_dataset(root / kind, split=split, on_error=on_error))

    return read


def _must_hold(dataset: Dataset) -> None:
    assert np.isfinite(dataset.boxes).all()
    assert (dataset.boxes[:, 2:] > dataset.boxes[:, :2]).all(), "nothing can be learned of a box without area"
    height, width = np.repeat(dataset.sizes, np.diff(dataset.offsets), axis=0).T
    assert (dataset.boxes[:, 2] <= width).all()
    assert (dataset.boxes[:, 3] <= height).all()
    assert ((dataset.labels >= 0) & (dataset.labels < len(dataset.names))).all()
    assert (dataset.sizes > 0).all()
    assert len(set(dataset.names)) == len(dataset.names)


def _results(file: str) -> Callable[[Path], None]:
    def read(root: Path) -> None:
        truth = open_dataset(root / "coco", split="val")
        results = (Results.from_coco if file.endswith("json") else Results.from_voc)(root / file, truth)
        assert np.isfinite(results.boxes).all()
        assert np.isfinite(results.scores).all()
        assert ((results.images >= 0) & (results.images < len(truth))).all()
        assert ((results.class_ids >= 0) & (results.class_ids < len(truth.names))).all()

    return read


def _picture(root: Path) -> None:
    path = root / "a.png"
    try:
        pixels = read_image(path)
    finally:
        header = read_header(path)
    assert pixels.shape == (header.height, header.width, 3)


def _weights(root: Path) -> None:
    card, _ = load_weights(root / "a.safetensors")
    assert all(isinstance(name, str) for name in card.names)
    assert all(math.isfinite(value) for value in card.metrics.values())


READERS = {
    "coco": Reader("coco/annotations/instances_val.json", _open("coco")),
    "voc": Reader("voc/Annotations/000000.xml", _open("voc")),
    "voc-list": Reader("voc/ImageSets/Main/val.txt", _open("voc")),
    "yolo": Reader("yolo/labels/val/000000.txt", _open("yolo")),
    "yolo-yaml": Reader("yolo/data.yaml", _open("yolo")),
    "extras": Reader("yolo/twostage.json", _open("yolo")),
    "labelme": Reader("labelme/a.json", _open("labelme", "all")),
    "via": Reader("via/via.json", _open("via", "via")),
    "results": Reader("results.json", _results("results.json")),
    "voc-results": Reader("results/comp4_det_val_circle.txt", _results("results")),
    "picture": Reader("a.png", _picture),
    "weights": Reader("a.safetensors", _weights),
    "pickle": Reader("a.pth", lambda root: read_pickle(root / "a.pth")),
    "run": Reader("run/config.yaml", lambda root: read_options(root / "run")),
}
