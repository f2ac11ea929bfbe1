"""Every label file has an image and every image its labels (cvat#9201: nested exports, HEIC, images that are gone)."""

from collections.abc import Callable
from pathlib import Path

from twostage.data.recognise import open_dataset

ROW = "0 0.25 0.333 0.25 0.333\n"


def test_label_files_without_an_image_are_named_with_their_number(make_yolo: Callable[..., Path]) -> None:
    root = make_yolo({"a": ROW, "gone": ROW, "photo": ROW})
    (root / "images" / "train" / "gone.png").unlink()
    (root / "images" / "train" / "photo.png").rename(root / "images" / "train" / "photo.HEIC")
    labels = root / "labels" / "train"
    (labels / "classes.txt").write_text("cat\ndog\n")  # LabelImg writes it beside the labels
    (labels / "empty.txt").write_text("")
    faults = {fault.code: fault for fault in open_dataset(root, split="train").faults}
    assert faults.keys() == {"left-over-labels", "left-over-images"}
    assert faults["left-over-labels"].message.startswith("2 label files have no image")
    assert "labels/train/gone.txt, labels/train/photo.txt" in faults["left-over-labels"].message
    assert "1 files (.heic)" in faults["left-over-images"].message
    assert "JPEG" in faults["left-over-images"].fix


def test_label_files_of_another_split_are_not_left_over(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_image(tmp_path / "images" / f"{name}.png")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text(ROW)
    for split, name in (("train", "a"), ("val", "b")):
        (tmp_path / f"{split}.txt").write_text(f"images/{name}.png\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [cat]\n")
    assert open_dataset(tmp_path, split="train").faults == ()


def test_labels_of_a_nested_export_are_found(make_image: Callable[..., Path], tmp_path: Path) -> None:
    """CVAT keeps the path of an imported export below `images` and below `labels`."""
    names = ["Train/set/images/train/f0", "Train/set/images/train/f1", "Train/other/g"]
    for number, name in enumerate(names):
        make_image(tmp_path / "images" / f"{name}.png", seed=number)
        label = tmp_path / "labels" / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(ROW)
    (tmp_path / "Train.txt").write_text("".join(f"images/{name}.png\n" for name in names))
    (tmp_path / "data.yaml").write_text("path: ./\ntrain: Train.txt\nnames: {0: cat}\n")
    dataset = open_dataset(tmp_path, split="train")
    assert len(dataset.labels) == 3
    assert dataset.faults == ()
