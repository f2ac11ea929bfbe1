"""Files of predictions: which are written, when, and under which names."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from twostage import Detections
from twostage.errors import UsageError
from twostage.inference.results import ResultsWriter


def detections(path: str | None, count: int = 0) -> Detections:
    boxes = np.tile(np.array([1, 2, 5, 7], np.float32), (count, 1))
    return Detections(
        *(boxes, np.full(count, 0.5, np.float32), np.zeros(count, np.int64)),
        **{"names": ("dog",), "size": (8, 8), "path": path, "image": np.zeros((8, 8, 3), np.uint8)},
    )


def test_every_format_is_written_for_every_image(tmp_path: Path) -> None:
    with closing(ResultsWriter(tmp_path / "out", ("json", "coco", "voc"))) as writer:
        added = [writer.add(detections("a/one.png", 2)), writer.add(detections("a/two.png"))]
        assert not (tmp_path / "out" / "results.json").exists(), "before the last image"
    assert {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")} == {
        *("one.jpg", "two.jpg", "voc/one.xml", "voc/two.xml", "results.json", "coco.json")
    }
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == {"images": added}
    assert [image["picture"] for image in added] == ["one.jpg", "two.jpg"]
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [(row["image_id"], row["file_name"], row["category_name"]) for row in coco] == [(1, "a/one.png", "dog")] * 2
    assert coco[0]["bbox"] == [1, 2, 4, 5]


def test_json_alone_is_the_default(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, settings={"precision": "bf16"})
    writer.add(detections(None))
    writer.close()
    assert {p.name for p in tmp_path.iterdir()} == {"image.jpg", "results.json"}
    assert json.loads((tmp_path / "results.json").read_text())["settings"] == {"precision": "bf16"}


def test_images_of_one_name_are_numbered(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path)
    paths = ("a/photo.png", "b/Photo.png", "c/photo.png")  # one file where names have no case
    assert [writer.add(detections(p))["picture"] for p in paths] == ["photo.jpg", "Photo-2.jpg", "photo-3.jpg"]


def test_frames_of_a_video_keep_their_numbers(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, ("json", "voc"))
    for path in ("walk.mp4#0", "walk.mp4#12", "no. #3.png"):
        assert (tmp_path / writer.add(detections(path))["picture"]).exists()
    assert {p.name for p in tmp_path.glob("*.jpg")} == {"walk-0.jpg", "walk-12.jpg", "no. #3.jpg"}


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"format is .cocoo.\. Did you mean .coco."):
        ResultsWriter(tmp_path, ("json", "cocoo"))
