"""`check` names every fault, by file and object, and changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twostage.data.check import Report, check
from twostage.data.faults import CODES, Fault, fault, format_faults
from twostage.data.resize import Resize
from twostage.data.scenes import write_scenes
from twostage.errors import DataError


def codes(report: Report) -> set[str]:
    return {f.code for f in report.faults}


def of_code(report: Report, code: str) -> list[Fault]:
    return [f for f in report.faults if f.code == code]


def test_blood_cells_has_its_two_zero_area_boxes_and_nothing_else_to_mend(real_data: Path) -> None:
    report = check(real_data / "blood-cells", deep=True)
    assert report.counts["error"] == 0
    assert [(f.code, f.file, f.object) for f in report.faults if f.severity == "repair"] == [
        ("zero-area-box", "Annotations/BloodImage_00343.xml", "object 4"),
        ("zero-area-box", "Annotations/BloodImage_00338.xml", "object 13"),
    ]
    assert not report.ok
    totals = {name: (held["images"], held["objects"]) for name, held in report.splits.items()}
    assert totals == {"test": (72, 945), "train": (205, 2804), "trainval": (292, 3941), "val": (87, 1137)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco-photos", "nuclei"])
def test_clean_real_data_has_notes_only(real_data: Path, name: str) -> None:
    report = check(real_data / name, deep=True)
    assert report.ok
    assert report.counts == {"error": 0, "repair": 0, "note": len(report.faults)}


def test_a_report_as_values_and_as_text(make_voc: Callable[..., Path]) -> None:
    root = make_voc({"a": [("cat", (1, 1, 9, 9)), ("cat", (5, 5, 5, 9))], "b": []})
    report = check(root)
    values = json.loads(json.dumps(report.to_dict()))
    assert values["ok"] is False
    assert values["counts"]["repair"] == 1
    assert values["splits"]["train"]["classes"] == {"cat": 1}
    assert values["splits"]["train"]["without_objects"] == 1
    named = [f for f in values["faults"] if f["severity"] == "repair"]
    assert named[0] | {"message": "", "fix": ""} == {
        "code": "zero-area-box", "severity": "repair", "file": "Annotations/a.xml", "object": "object 2",
        "message": "", "fix": "",
    }  # fmt: skip
    text = report.format()
    assert "zero-area-box repair Annotations/a.xml:object 2: " in text
    assert "1 repair," in text
    assert "VOC layout" in text


def test_all_splits_are_checked_even_if_one_cannot_be_opened(make_coco: Callable[..., Path]) -> None:
    root = make_coco([{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 0, 4]}])
    (root / "annotations" / "instances_val.json").write_text('{"images": [')
    report = check(root)
    assert {"broken-json", "zero-area-box", "filled-default"} <= codes(report)
    assert list(report.splits) == ["train"]


def test_broken_data_yaml_is_a_finding(make_yolo: Callable[..., Path]) -> None:
    report = check(make_yolo({"a": ""}, "names: [cat\ntrain: x"))
    assert codes(report) == {"broken-yaml"}
    assert not report.ok


def test_nothing_to_check_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set recognised"):
        check(tmp_path)


def test_the_same_image_in_two_splits(make_voc: Callable[..., Path]) -> None:
    names = ["a", "b", "c", "d"]
    root = make_voc({n: [] for n in names}, train=["a", "b"], val=["b", "c", "d"], trainval=names)
    folder = root / "JPEGImages"
    (folder / "c.jpg").write_bytes((folder / "a.jpg").read_bytes())
    (folder / "d.jpg").write_bytes((folder / "b.jpg").read_bytes())
    report = check(root)
    found = {(f.file, f.message) for f in of_code(report, "duplicate-image")}
    assert found == {
        ("a.jpg", "in the split 'train', and as c.jpg in the split 'val'"),
        ("b.jpg", "in the split 'train', and as b.jpg in the split 'val'"),
        ("b.jpg", "in the split 'train', and as d.jpg in the split 'val'"),
    }
    assert {f.severity for f in of_code(report, "duplicate-image")} == {"repair"}
    assert of_code(report, "repeated-image")


def test_images_of_other_kinds_are_noted(make_voc: Callable[..., Path]) -> None:
    root = make_voc({n: [("cat", (1, 1, 9, 9))] for n in "abcdef"})
    folder = root / "JPEGImages"
    rgb = Image.open(folder / "a.jpg")
    rgb.save(folder / "a.jpg", format="PNG")
    rgb.convert("CMYK").save(folder / "b.jpg")
    rgb.convert("RGBA").save(folder / "c.png")
    Image.fromarray(np.zeros((40, 60), dtype=np.uint16)).save(folder / "d.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    rgb.save(folder / "e.jpg", exif=exif)
    for name in ("c.jpg", "d.jpg"):
        (folder / name).unlink()
    report = check(root)
    assert report.ok
    assert [f.file for f in of_code(report, "wrong-extension")] == [str(folder / "a.jpg")]
    assert {f.message.split()[3].rstrip(":") for f in of_code(report, "pixel-format")} == {"CMYK", "RGBA", "I;16"}
    assert "EXIF tag: 1;" in of_code(report, "exif-turned")[0].message


def test_notes_on_objects_and_classes(make_coco: Callable[..., Path]) -> None:
    def item(number: int, bbox: list[float], **fields: Any) -> dict[str, Any]:
        return {"id": number, "image_id": 1, "category_id": 3, "bbox": bbox, "area": 1, "iscrowd": 0} | fields

    rows = [item(1, [1, 1, 0.5, 9]), item(2, [0, 0, 60, 40]), item(3, [5, 5, 9, 9]), item(4, [5, 5, 9, 9])]
    rows += [item(5, [5, 5, 9, 9], category_id=7), item(6, [0, 0, 60, 40], iscrowd=1)]
    categories = [{"id": i, "name": n} for i, n in ((3, "dog"), (7, "Cat"), (8, "cat"), (9, "CAT "))]
    report = check(make_coco(rows, categories=categories), resize=Resize(size=40))
    assert report.ok
    expected = {
        "tiny-box", "whole-image-box", "duplicate-box", "crowd-objects", "background-images", "unused-class",
        "similar-class-names", "category-id-gaps",
    }  # fmt: skip
    assert codes(report) == expected
    assert [f.object for f in of_code(report, "duplicate-box")] == ["dog [5, 5, 14, 14]"]
    assert [f.object for f in of_code(report, "whole-image-box")] == ["dog [0, 0, 60, 40]"]
    assert "2 of 4 classes" in of_code(report, "unused-class")[0].message
    assert "'Cat', 'cat', 'CAT '" in of_code(report, "similar-class-names")[0].message


def test_rare_classes_and_splits_with_other_classes(make_coco: Callable[..., Path]) -> None:
    rows = [
        {"id": i, "image_id": 1, "category_id": 3 if i else 7, "bbox": [i, 0, 5, 5], "area": 25, "iscrowd": 0}
        for i in range(30)
    ]
    root = make_coco(rows)
    train = root / "annotations" / "instances_train.json"
    other = json.loads(train.read_text()) | {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cow"}]}
    (root / "annotations" / "instances_val.json").write_text(json.dumps(other))
    report = check(root)
    assert "'dog' has 29 objects, 'cat' 1" in of_code(report, "class-imbalance")[0].message
    assert of_code(report, "classes-differ")[0].severity == "error"


def test_only_decoding_finds_damage_inside_a_complete_file(
    make_voc: Callable[..., Path], make_image: Callable[..., Path]
) -> None:
    root = make_voc({"a": []})
    path = make_image(root / "JPEGImages" / "a.png", 64, 64)
    (root / "JPEGImages" / "a.jpg").unlink()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "unreadable-image" not in codes(check(root))
    (found,) = of_code(check(root, deep=True), "unreadable-image")
    assert found.file == str(path)


def test_checking_writes_nothing(make_voc: Callable[..., Path]) -> None:
    root = make_voc({"a": [("cat", (1, 1, 9, 9))]})
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    check(root, deep=True)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_long_lists_of_faults_are_cut_and_counted() -> None:
    faults = [fault("zero-area-box", "a.xml", f"object {i}", "no area", "Mend it") for i in range(70)]
    faults += [fault("missing-image", "b.jpg", "", "gone", "Bring it")]
    lines = format_faults(faults, most=10).splitlines()
    assert lines[0].startswith("missing-image error b.jpg: gone. Bring it")
    assert len(lines) == 11
    assert lines[-1] == "... and 61 more: 61 zero-area-box"


def test_one_fault_with_many_consequences_does_not_hide_the_others() -> None:
    faults = [fault("unknown-class", "a.json", f"annotations[{i}]", "no category", "Add it") for i in range(300)]
    faults.insert(200, fault("duplicate-class", "a.json", "categories[1]", "the name is taken", "Rename it"))
    lines = format_faults(faults, most=10).splitlines()
    assert sum(line.startswith("duplicate-class") for line in lines) == 1
    assert lines[-1] == "... and 291 more: 291 unknown-class"


def test_a_fault_is_one_line_whatever_the_file_is_called() -> None:
    assert "\n" not in str(fault("missing-image", "new\nline.jpg", "", "gone", "Bring it"))
    assert all(severity in ("error", "repair", "note") and meaning for severity, meaning in CODES.values())


def test_faults_grow_with_the_copies_and_not_with_their_square(make_voc: Callable[..., Path]) -> None:
    names = [f"{i:03d}" for i in range(60)]
    root = make_voc({n: [] for n in names}, train=names[:40], val=names[40:])
    folder = root / "JPEGImages"
    for name in names[1:]:
        (folder / f"{name}.jpg").write_bytes((folder / "000.jpg").read_bytes())
    report = check(root)
    named = {f.file for f in of_code(report, "duplicate-image") + of_code(report, "repeated-image")}
    assert named == {f"{n}.jpg" for n in names if n != "040"}
    assert len(of_code(report, "duplicate-image")) == 59


def test_a_split_to_learn_nothing_from_is_an_error(make_voc: Callable[..., Path]) -> None:
    """As `train` would refuse it."""
    root = make_voc({"a": [], "b": [("cat", (1, 1, 9, 9))]}, train=["a"], val=["b"])
    (found,) = of_code(check(root), "empty-split")
    assert (found.severity, found.object) == ("error", "train")
    (root / "ImageSets" / "Main" / "val.txt").write_text("\n")
    assert {f.object for f in of_code(check(root), "empty-split")} == {"train", "val"}


def test_a_split_without_masks_beside_one_with_them(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "scenes", train=2, val=1)
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    for record in document["annotations"]:
        del record["segmentation"]
    path.write_text(json.dumps(document))
    (fault,) = [f for f in check(root).faults if f.code == "missing-mask"]
    assert fault.file == "val"
    assert "no object of this split has a mask, those of train have" in fault.message
