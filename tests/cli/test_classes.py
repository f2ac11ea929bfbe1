"""`eval`, `inspect` and `data audit` on a part of the detector's classes, on others, and in another order."""

import contextlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from detectors import lively
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from twostage.data.convert import convert
from twostage.data.extras import NAME as EXTRAS
from twostage.data.scenes import NAMES
from twostage.detector import Detector

Shell = Callable[..., Any]
IDS = {name: number for number, name in enumerate(NAMES, 1)}
PERMUTED = {"cross": 3, "star": 1, "circle": 40, "triangle": 18, "square": 7}
LACKING = "Classes of the detector that the data set does not have: "


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    lively("faster_rcnn_tiny_fpn").save(path)
    return path


@pytest.fixture(scope="module")
def coco(scenes: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose objects are every second detection of each image: classes differ in their AP."""
    root = tmp_path_factory.mktemp("classes") / "coco"
    (root / "val").mkdir(parents=True)
    detector = Detector.load(weights, device="cpu")
    images, annotations = [], []
    for number, file in enumerate(sorted((scenes / "val").iterdir())[:2], 1):
        shutil.copy(file, root / "val")
        found = detector.predict(file, conf=0.0)
        images.append({"id": number, "file_name": file.name, "height": found.size[0], "width": found.size[1]})
        for one in found.to_coco(number)[::2]:
            area = one["bbox"][2] * one["bbox"][3]
            annotations.append({**one, "id": len(annotations) + 1, "iscrowd": 0, "area": area})
    return _write(root, images, annotations, IDS)


def _write(root: Path, images: list[Any], annotations: list[Any], ids: Mapping[str, int]) -> Path:
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_val.json").write_text(json.dumps(document))
    return root


def _with_ids(coco: Path, root: Path, ids: Mapping[str, int]) -> Path:
    """The data set with other category ids; objects of classes without one are left out."""
    shutil.copytree(coco / "val", root / "val")
    document = json.loads((coco / "annotations" / "instances_val.json").read_text())
    name_of = {number: name for name, number in IDS.items()}
    kept = [one for one in document["annotations"] if name_of[one["category_id"]] in ids]
    kept = [one | {"category_id": ids[name_of[one["category_id"]]]} for one in kept]
    return _write(root, document["images"], kept, ids)


def _voc(coco: Path, root: Path, without: str = "^$") -> Path:
    """The data set as VOC, without the objects of some classes; VOC has no list of classes."""
    convert(coco, root, "voc")
    (root / EXTRAS).unlink()
    for path in (root / "Annotations").iterdir():
        tree = ET.parse(path)
        for one in tree.findall("object"):
            if re.search(without, str(one.findtext("name"))):
                tree.getroot().remove(one)
        tree.write(path)
    return root


def _lacking(data: Path) -> str:
    """What is printed of a VOC data set that lacks some classes."""
    there = {one.findtext("name") for path in (data / "Annotations").iterdir() for one in ET.parse(path).iter("object")}
    return f"{LACKING}{', '.join(name for name in NAMES if name not in there)}\n"


def _eval(shell: Shell, data: Path, weights: Path, *words: object) -> Any:
    answer = shell("eval", data, "--weights", weights, "--device", "cpu", "--workers", 0, "--json", *words)
    assert answer.code == 0, answer.messages
    return answer


def test_permuted_categories_score_the_same_and_keep_their_ids(
    shell: Shell, coco: Path, weights: Path, tmp_path: Path
) -> None:
    plain = _eval(shell, coco, weights, "--out", tmp_path / "plain")
    data, out = _with_ids(coco, tmp_path / "permuted", PERMUTED), tmp_path / "out"
    answer = _eval(shell, data, weights, "--out", out)
    assert answer.json["metrics"] == plain.json["metrics"]
    assert list(answer.json["per_class"]) == list(NAMES), "in the detector's order"
    assert answer.json["per_class"] == plain.json["per_class"]
    assert len({row["AP"] for row in answer.json["per_class"].values()}) > 2
    assert LACKING not in answer.messages
    expected = Counter(one["category_id"] for one in json.loads((tmp_path / "plain" / "results.json").read_text()))
    found = Counter(one["category_id"] for one in json.loads((out / "results.json").read_text()))
    assert found == {PERMUTED[name]: expected[number] for name, number in IDS.items() if expected[number]}
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = COCO(str(data / "annotations" / "instances_val.json"))
        oracle = COCOeval(oracle, oracle.loadRes(str(out / "results.json")), "bbox")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    assert [answer.json["metrics"][name] for name in names] == pytest.approx(oracle.stats.tolist(), abs=1e-9)


def test_a_class_that_a_coco_file_lacks_has_no_ap(shell: Shell, coco: Path, weights: Path, tmp_path: Path) -> None:
    whole = _eval(shell, coco, weights).json["per_class"]
    ids = {name: number for name, number in PERMUTED.items() if name != "circle"}
    data, out = _with_ids(coco, tmp_path / "part", ids), tmp_path / "out"
    answer = _eval(shell, data, weights, "--out", out)
    found = answer.json
    assert answer.messages.count(f"{LACKING}circle\n") == 1
    assert found["per_class"] == whole | {"circle": dict.fromkeys(whole["circle"], -1)}
    others = [row["AP"] for name, row in whole.items() if name != "circle" and row["AP"] >= 0]
    assert found["metrics"]["AP"] == pytest.approx(fmean(others))
    assert {one["category_id"] for one in json.loads((out / "results.json").read_text())} <= set(ids.values())
    again = shell("eval", data, "--predictions", out / "results.json", "--json")
    assert again.json["metrics"] == pytest.approx(found["metrics"])


def test_a_class_that_does_not_occur_in_voc_has_no_ap(shell: Shell, coco: Path, weights: Path, tmp_path: Path) -> None:
    whole = _eval(shell, _voc(coco, tmp_path / "whole"), weights).json["per_class"]
    data = _voc(coco, tmp_path / "part", without="circle")
    answer = _eval(shell, data, weights)
    assert "circle" in _lacking(data)
    assert _lacking(data) in answer.messages
    assert answer.json["per_class"] == whole | {"circle": dict.fromkeys(whole["circle"], -1)}


def test_the_page_and_the_audit_of_a_part_of_the_classes(
    shell: Shell, coco: Path, weights: Path, tmp_path: Path
) -> None:
    data = _voc(coco, tmp_path / "voc", without="circle")
    common = ("--weights", weights, "--device", "cpu", "--json")
    page = shell("inspect", data, *common, "--out", tmp_path / "page.html", "--conf", 0.3)
    assert page.code == 0, page.messages
    assert _lacking(data) in page.messages
    assert page.json["why"]["stages"]["circle"] == dict.fromkeys(page.json["why"]["stages"]["circle"], -1)
    missed = {one["label"] for one in page.json["why"]["objects"]}
    assert missed <= {"square", "triangle", "cross"}
    audit = shell("data", "audit", data, *common, "--out", tmp_path / "audit")
    assert audit.code == 0, audit.messages
    assert _lacking(data) in audit.messages
    every = json.loads((tmp_path / "audit" / "suggestions.json").read_text())["suggestions"]
    assert {one["label"] for one in every} <= {None, "square", "triangle", "cross"}
    assert "circle" in {one["suggested_label"] for one in every}


def test_permuted_categories_have_the_same_audit_and_the_same_missed_objects(
    shell: Shell, coco: Path, weights: Path, tmp_path: Path
) -> None:
    permuted = _with_ids(coco, tmp_path / "permuted", PERMUTED)
    common = ("--weights", weights, "--device", "cpu", "--json")
    audits, pages = [], []
    for name, data in (("plain", coco), ("permuted", permuted)):
        audits.append(shell("data", "audit", data, *common, "--out", tmp_path / f"audit-{name}").json["suggestions"])
        image = sorted((data / "val").iterdir())[0]
        page = tmp_path / f"{name}.html"
        pages.append(shell("inspect", image, *common, "--data", data, "--conf", 0.5, "--out", page).json["missed"])
    assert audits[0] == audits[1] != []
    assert pages[0] == pages[1] != []


@pytest.mark.parametrize(
    "words", [("eval", "--workers", "0"), ("inspect", "--split", "val"), ("data", "audit")], ids=lambda words: words[-1]
)
def test_a_class_that_the_detector_does_not_have_is_named(
    shell: Shell, coco: Path, weights: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    data, out = _voc(coco, tmp_path / "voc"), tmp_path / "out"
    for path in (data / "Annotations").iterdir():
        path.write_text(path.read_text().replace(">circle<", ">circel<"))
    answer = shell(*words, data, "--weights", weights, "--device", "cpu", "--out", out)
    assert answer.code == 2
    assert f"{data}: the detector does not have its class circel. Did you mean 'circle'?" in answer.messages
    assert "Rename what is the same class" in answer.messages
    assert not out.exists()


@pytest.mark.parametrize("words", [("eval", "--workers", 0), ("inspect",), ("data", "audit")], ids=lambda one: one[0])
def test_a_data_set_without_objects_has_no_ap_and_no_missed_objects(
    shell: Shell, coco: Path, weights: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    data = _voc(coco, tmp_path / "voc", without=".")
    answer = shell(*words, data, "--weights", weights, "--device", "cpu", "--json", "--out", tmp_path / "out")
    assert answer.code == 0, answer.messages
    assert _lacking(data) == f"{LACKING}{', '.join(NAMES)}\n"
    assert _lacking(data) in answer.messages
    if "metrics" in answer.json:
        assert set(answer.json["metrics"].values()) == {-1}
        assert json.loads((tmp_path / "out" / "results.json").read_text()) == []
    if "why" in answer.json:
        assert answer.json["why"]["objects"] == []


def test_of_a_data_set_with_more_classes_those_of_the_detector_count(
    shell: Shell, coco: Path, weights: Path, tmp_path: Path
) -> None:
    """As after `train --names`. An audit is refused: the labels that it writes for tools would not be all."""
    data = _with_ids(coco, tmp_path / "more", IDS)
    file = data / "annotations" / "instances_val.json"
    document = json.loads(file.read_text())
    document["categories"].insert(0, {"id": 99, "name": "ghost"})
    document["annotations"][0]["category_id"] = 99
    file.write_text(json.dumps(document))
    common = ("--weights", weights, "--device", "cpu", "--json")
    found = _eval(shell, data, weights)
    page = shell("inspect", data, *common, "--out", tmp_path / "page.html", "--conf", 0.3)
    for answer in (found, page):
        assert f"Evaluated on the detector's classes only: {', '.join(NAMES)}\n" in answer.messages
    assert found.json["settings"]["objects"] == len(document["annotations"]) - 1
    assert list(found.json["per_class"]) == list(NAMES)
    assert "ghost" not in page.json["why"]["stages"]
    audit = shell("data", "audit", data, *common, "--out", tmp_path / "out")
    assert (audit.code, (tmp_path / "out").exists()) == (2, False)
    assert "the detector does not have its class ghost" in audit.messages
