"""`twostage inspect` with an exported file: it needs one that was exported with its stages."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twostage.data.scenes import NAMES
from twostage.detector import Detector
from twostage.inspection.account import Objects
from twostage.inspection.causes import Cause, Change, Miss
from twostage.inspection.remedy import remedy

Shell = Callable[..., Any]


def data_of(page: Path) -> dict[str, Any]:
    """The data within a page."""
    return json.loads(page.read_text(encoding="utf-8").partition('id="data">')[2].partition("</script>")[0])


def differences(own: Any, wanted: Any, path: str = "") -> list[str]:
    """Where two pages have other values: boxes and scores by 1e-3, what is stored in steps by two of them."""
    if isinstance(own, dict) and isinstance(wanted, dict) and own.keys() == wanted.keys():
        if own.keys() != {"kind", "data"}:
            return [one for key in own for one in differences(own[key], wanted[key], f"{path}/{key}")]
        a, b = (
            np.frombuffer(base64.b64decode(one["data"]), np.dtype(one["kind"]).newbyteorder("<"))
            for one in (own, wanted)
        )
        step = {"f4": 1e-3, "u2": 1e-3 * 65535, "u1": 2}.get(own["kind"], 0)
        same = a.shape == b.shape and np.allclose(a.astype(float), b, rtol=1e-3 if step else 0, atol=step)
        return [] if same else [path]
    if isinstance(own, list) and isinstance(wanted, list) and len(own) == len(wanted):
        return [
            one for i, pair in enumerate(zip(own, wanted, strict=True)) for one in differences(*pair, f"{path}/{i}")
        ]
    if isinstance(own, float) and isinstance(wanted, float):
        return [] if own == pytest.approx(wanted, rel=1e-3, abs=1e-3) else [path]
    return [] if own == wanted else [path]


# The last pixel belongs to a box, and what is too small is measured on the image as it was.
CAFFE = {"edges": "inclusive", "resize_by": "caffe", "rounding": "nearest", "rpn_min_size_of": "original"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("faster_rcnn_tiny_fpn", {}),
        ("faster_rcnn_tiny", CAFFE),
        ("retinanet_tiny_fpn", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "caffe" if value else "",
)
def test_the_page_of_an_exported_file_is_that_of_its_weights(
    name: str,
    fields: dict[str, str],
    exported: Callable[..., Path],
    weights: Callable[..., Path],
    photos: list[Path],
    shell: Shell,
    tmp_path: Path,
) -> None:
    """Also why objects are missed. All but the maps, which an exported file does not give, and the settings that keep
    objects, most of which cannot be tried there."""
    (file,) = exported(name, "--format", "onnx", "--with-stages", **fields).glob("*.onnx")
    photo = next(path for path in photos if path.stem == "wide")
    data = annotated(photo, tmp_path / "data")
    pages = []
    for source in (file, weights(name, **fields)):
        out = tmp_path / f"{source.suffix}.html"
        words = ("--weights", source, "--data", data, "--out", out, "--conf", "0.05")
        answer = shell("inspect", data / "images" / photo.name, *words)
        assert answer.code == 0, answer.messages
        pages.append(data_of(out))
    own, wanted = pages
    assert own.pop("maps") == []
    assert wanted.pop("maps")
    assert any(own["truth"]["missed"].values())
    for one in (*own["truth"]["missed"].values(), *wanted["truth"]["missed"].values()):
        del one["remedy"]
    assert differences(own, wanted) == []


def annotated(photo: Path, folder: Path) -> Path:
    """A data set of the image with an object in each corner."""
    with Image.open(photo) as image:
        width, height = image.size
        (folder / "images").mkdir(parents=True)
        image.save(folder / "images" / photo.name)
    boxes = [(x, y, 40, 30) for x in (0, width - 40) for y in (0, height - 30)]
    rows = [
        {"id": k, "image_id": 1, "category_id": k % 2 + 1, "bbox": box, "area": 1200, "iscrowd": 0}
        for k, box in enumerate(boxes, 1)
    ]
    content = {
        "images": [{"id": 1, "file_name": photo.name, "width": width, "height": height}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES, 1)],
        "annotations": rows,
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


@pytest.mark.slow
def test_a_file_without_stages_is_refused_by_name(
    exported: Callable[..., Path],
    photos: list[Path],
    shell: Shell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (file,) = exported("faster_rcnn_tiny_fpn", "--format", "onnx").glob("*.onnx")
    answer = shell("inspect", photos[0], "--weights", file, "--out", tmp_path / "page.html")
    assert answer.code == 2
    message = f"{file}: gives detections and no stages. Export it again with --with-stages."
    assert message in answer.messages
    data = annotated(photos[0], tmp_path / "data")
    # Before the images are predicted, which may take hours.
    monkeypatch.setattr(Detector, "detect_dataset", lambda *_, **__: pytest.fail("all images were detected"))
    for words in (("inspect", data, "--out", tmp_path / "page.html"), ("eval", data, "--why")):
        answer = shell(*words, "--weights", file)
        assert (answer.code, message in answer.messages) == (2, True)


@pytest.mark.slow
def test_the_default_threshold_is_no_lower_than_that_of_the_file(
    exported: Callable[..., Path], photos: list[Path], shell: Shell, tmp_path: Path
) -> None:
    """Of an image and of a data set."""
    (file,) = exported("faster_rcnn_tiny_fpn", "--with-stages", "--conf", "0.6").glob("*.onnx")
    data = annotated(photos[0], tmp_path / "data")
    for source in (photos[0], data):
        answer = shell("inspect", source, "--weights", file, "--out", tmp_path / f"{source.name}.html")
        assert answer.code == 0, answer.messages


@pytest.mark.slow
def test_of_an_exported_file_only_settings_of_the_last_step_are_tried(
    exported: Callable[..., Path], photos: list[Path]
) -> None:
    (file,) = exported("faster_rcnn_tiny_fpn", "--format", "onnx", "--with-stages").glob("*.onnx")
    detector = Detector.load(file)
    trace, post = detector.trace(photos[0]), detector.config.postprocess
    objects = Objects.of(np.array([[10.0, 10, 60, 60]]), np.array([0]))
    for change, tried in ((Change("rpn.nms", 0.8, 0.7), 0), (Change("postprocess.nms", 0.6, 0.5), 1)):
        miss = Miss(Cause.RPN_NMS, {"anchor_iou": 0.6}, (change,))
        assert len(remedy(detector.runner, trace, objects, 0, miss, post).changes) == tried
