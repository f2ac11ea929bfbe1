"""What other tasks and tools write into YOLO's label files: keypoints, rotated boxes, confidences."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twostage.data.faults import FaultyDataError
from twostage.data.recognise import open_dataset

BOX = [0.375, 0.5, 0.25, 0.5]
CORNERS = [15.0, 10.0, 30.0, 30.0]  # of it on 60 x 40 pixels
POINTS = [0.3, 0.3, 0.45, 0.3, 0.45, 0.7, 0.3, 0.7]
YAML = "names: [cat, dog]\ntrain: images/train\n"


def row(*numbers: float) -> str:
    return f"0 {' '.join(map(str, numbers))}\n"


def with_visibility(points: list[float]) -> list[float]:
    return [v for x, y in zip(points[::2], points[1::2], strict=True) for v in (x, y, 2)]


@pytest.mark.parametrize(
    ("numbers", "yaml", "code"),
    [
        ([*BOX, *POINTS], f"{YAML}kpt_shape: [4, 2]\n", "keypoints"),  # ultralytics#13221
        ([*BOX, *with_visibility(POINTS)], f"{YAML}kpt_shape: [4, 3]\n", "keypoints"),
        ([*BOX, *with_visibility(POINTS)], YAML, "keypoints"),  # exported without kpt_shape
        ([*BOX, 0.87], YAML, "confidence"),  # `yolo predict save_txt save_conf`, taken as labels
    ],
)
def test_the_box_is_read_and_the_rest_is_left_out_with_one_note(
    make_yolo: Callable[..., Path], numbers: list[float], yaml: str, code: str
) -> None:
    dataset = open_dataset(make_yolo({"a": row(*numbers) * 2, "b": row(*numbers)}, yaml), split="train")
    np.testing.assert_allclose(dataset.boxes, [CORNERS] * 3, atol=1e-4)
    assert dataset.masks is None
    (note,) = dataset.faults
    assert (note.code, note.severity) == (code, "note")
    assert note.message.startswith("3 of 3 rows")


def test_rotated_boxes_are_read_as_the_upright_boxes_around_them(make_yolo: Callable[..., Path]) -> None:
    """Of DOTA's and Ultralytics' OBB format: four corners; a square of 10 pixels, turned by 45 degrees."""
    corners = np.array([[30, 10], [40, 20], [30, 30], [20, 20]]) / [60, 40]
    dataset = open_dataset(make_yolo({"a": row(*corners.ravel().tolist())}), split="train")
    np.testing.assert_allclose(dataset.boxes, [[20, 10, 40, 30]], atol=1e-4)
    assert dataset.masks is None
    assert [fault.code for fault in dataset.faults] == ["rotated-boxes"]


def test_polygons_of_four_corners_stay_polygons_beside_others(make_yolo: Callable[..., Path]) -> None:
    square = row(0.1, 0.1, 0.3, 0.1, 0.3, 0.3, 0.1, 0.3)
    dataset = open_dataset(make_yolo({"a": square + row(0.1, 0.1, 0.5, 0.1, 0.5, 0.6)}), split="train")
    assert dataset.masks is not None
    assert dataset.faults == ()


def test_boxes_followed_by_points_stop_without_kpt_shape(make_yolo: Callable[..., Path]) -> None:
    root = make_yolo({"a": row(*BOX, *POINTS) * 2, "b": row(*BOX, *POINTS)})
    with pytest.raises(FaultyDataError) as caught:
        open_dataset(root, split="train")
    (found,) = caught.value.faults
    assert found.code == "keypoint-rows"
    assert "kpt_shape" in found.fix
    as_polygons = open_dataset(root, split="train", boxes="format")
    assert as_polygons.masks is not None


def test_a_row_of_another_length_than_kpt_shape_is_broken(make_yolo: Callable[..., Path]) -> None:
    root = make_yolo({"a": row(*BOX, *POINTS) + row(*BOX, *POINTS[:6])}, f"{YAML}kpt_shape: [4, 2]\n")
    with pytest.raises(FaultyDataError) as caught:
        open_dataset(root, split="train")
    assert [(f.code, f.object) for f in caught.value.faults if f.severity == "error"] == [("broken-row", "line 2")]


@pytest.mark.parametrize("numbers", [[24, 20, 15, 20], [37.5, 50, 25, 50]])
def test_pixels_and_percent_are_named_once(make_yolo: Callable[..., Path], numbers: list[float]) -> None:
    """Label Studio has percent in its own JSON, and so have exports made of it by hand."""
    root = make_yolo({"a": row(*numbers) * 3, "b": row(*numbers)})
    with pytest.raises(FaultyDataError) as caught:
        open_dataset(root, split="train")
    assert [f.code for f in caught.value.faults if f.severity == "error"] == ["box-notation"]


def test_one_row_in_pixels_among_fractions_is_named_itself(make_yolo: Callable[..., Path]) -> None:
    root = make_yolo({"a": row(*BOX) * 3 + row(24, 20, 15, 20)})
    with pytest.raises(FaultyDataError) as caught:
        open_dataset(root, split="train")
    assert [(f.code, f.object) for f in caught.value.faults] == [("not-normalised", "line 4")]
