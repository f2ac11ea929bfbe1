"""Generated scenes: what the issue asks of sizes and overlaps, the same every time, readable by anyone's COCO tools."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from twostage.data.recognise import open_dataset
from twostage.data.scenes import EASY, HARD, NAMES, Scene, SceneStyle, make_scene, write_scenes
from twostage.errors import TwostageError, UsageError


def scenes(style: SceneStyle, count: int = 60) -> list[Scene]:
    return [make_scene(1, 0, i, style=style) for i in range(count)]


@pytest.mark.parametrize(
    ("style", "side", "objects", "sides"), [(EASY, 192, (1, 6), (19, 69)), (HARD, 256, (3, 10), (10, 110))]
)
def test_sizes_and_counts(style: SceneStyle, side: int, objects: tuple[int, int], sides: tuple[int, int]) -> None:
    made = scenes(style)
    counts = [len(s.labels) for s in made]
    assert (min(counts), max(counts)) == objects
    assert all(s.image.shape == (side, side, 3) for s in made)
    assert {label for s in made for label in s.labels} == set(range(len(NAMES)))
    boxes = np.array([b for s in made for b in s.boxes])
    assert boxes.min() >= 0
    assert boxes.max() <= side
    drawn = boxes[:, 2:] - boxes[:, :2]
    # What another object hides is not in the box; the edge of a shape may take part of a pixel.
    assert drawn.max() <= sides[1] + 2
    assert np.quantile(drawn, 0.02) >= sides[0] - 3


def test_boxes_are_the_bounds_of_masks_and_masks_do_not_overlap() -> None:
    for scene in scenes(HARD, 20):
        assert scene.masks.sum(axis=0).max() <= 1
        for mask, box in zip(scene.masks, scene.boxes, strict=True):
            rows, columns = np.nonzero(mask)
            assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize(("style", "limit"), [(EASY, 0.15), (HARD, 0.45)])
def test_boxes_overlap_as_little_as_asked(style: SceneStyle, limit: float) -> None:
    for scene in scenes(style, 30):
        boxes = np.array(scene.boxes, dtype=float)
        xywh = np.c_[boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]
        iou = coco_mask.iou(xywh, xywh, [0] * len(xywh))
        assert iou[~np.eye(len(iou), dtype=bool)].max(initial=0) <= limit


def test_a_scene_is_a_function_of_its_numbers() -> None:
    first, again = make_scene(3, 1, 7), make_scene(3, 1, 7)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.boxes == again.boxes
    for other in (make_scene(4, 1, 7), make_scene(3, 0, 7), make_scene(3, 1, 8)):
        assert (first.image != other.image).any()


def test_written_scenes_are_a_coco_folder(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", train=4, val=3, seed=5)
    assert [p.name for p in tmp_path.iterdir()] == ["scenes"]
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = COCO(str(folder / "annotations" / "instances_val.json"))
    dataset = open_dataset(folder, split="val")
    assert len(open_dataset(folder, split="train")) == 4
    assert dataset.faults == ()
    assert dataset.names == NAMES
    assert len(dataset) == 3
    for index in range(3):
        scene = make_scene(5, 1, index)
        assert dataset.objects(index).boxes.tolist() == [list(b) for b in scene.boxes]
        assert dataset.objects(index).areas.tolist() == scene.masks.sum(axis=(1, 2)).tolist()
        for mine, record, mask in zip(
            dataset.masks_of(index), oracle.loadAnns(oracle.getAnnIds(index + 1)), scene.masks, strict=True
        ):
            np.testing.assert_array_equal(coco_mask.decode(mine), mask)
            np.testing.assert_array_equal(oracle.annToMask(record), mask)


def test_fewer_scenes_are_the_first_of_more(tmp_path: Path) -> None:
    few, more = (write_scenes(tmp_path / str(n), train=n, val=1) for n in (2, 3))
    for name in ("000000.jpg", "000001.jpg"):
        assert (few / "train" / name).read_bytes() == (more / "train" / name).read_bytes()


def test_places_that_are_taken_or_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="exists already"):
        write_scenes(tmp_path, train=1, val=1)
    with pytest.raises(TwostageError, match="file"):
        write_scenes(tmp_path / "file" / "scenes", train=1, val=1)


def test_scenes_that_are_interrupted_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> Scene:
        raise KeyboardInterrupt

    monkeypatch.setattr("twostage.data.scenes.make_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes", train=1, val=1)
    assert not list(tmp_path.iterdir())
