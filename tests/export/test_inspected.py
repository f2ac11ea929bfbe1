"""`twostage inspect` with an exported file: it needs one that was exported with its stages."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twostage.detector import Detector
from twostage.inspection.account import Objects
from twostage.inspection.causes import Cause, Change, Miss
from twostage.inspection.remedy import remedy

Shell = Callable[..., Any]


def data_of(page: Path) -> dict[str, Any]:
    """The data within a page."""
    return json.loads(page.read_text(encoding="utf-8").partition('id="data">')[2].partition("</script>")[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_rcnn_tiny_fpn"])
def test_the_page_of_an_exported_file_is_that_of_its_weights(
    name: str,
    exported: Callable[..., Path],
    weights: Callable[..., Path],
    photos: list[Path],
    shell: Shell,
    tmp_path: Path,
) -> None:
    """All but the maps, which an exported file does not give."""
    (file,) = exported(name, "--format", "onnx", "--with-stages").glob("*.onnx")
    pages = []
    for source in (file, weights(name)):
        out = tmp_path / f"{source.suffix}.html"
        answer = shell("inspect", photos[0], "--weights", source, "--out", out, "--conf", "0.05")
        assert answer.code == 0, answer.messages
        pages.append(data_of(out))
    own, wanted = pages
    assert own["maps"] == []
    assert own["family"] == wanted["family"]
    assert own["anchors"]["levels"] == wanted["anchors"]["levels"]
    assert len(own["regions"]["boxes"]["data"]) == len(wanted["regions"]["boxes"]["data"])
    assert [grid and grid["kind"] for grid in own["regions"]["grids"]] == [
        grid and grid["kind"] for grid in wanted["regions"]["grids"]
    ]


@pytest.mark.slow
def test_a_file_without_stages_is_refused_by_name(
    exported: Callable[..., Path], photos: list[Path], shell: Shell, tmp_path: Path
) -> None:
    (file,) = exported("faster_rcnn_tiny_fpn", "--format", "onnx").glob("*.onnx")
    answer = shell("inspect", photos[0], "--weights", file, "--out", tmp_path / "page.html")
    assert answer.code == 2
    assert f"{file}: gives detections and no stages. Export it again with --with-stages." in answer.messages


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
