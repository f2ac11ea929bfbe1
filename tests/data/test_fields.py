"""Fields that nothing reads are kept: attributes, keypoints, licences, pose (datumaro#206, and field case 10)."""

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twostage.data.convert import convert
from twostage.data.dataset import select_classes
from twostage.data.extras import NAME
from twostage.data.fields import pack, together, unpack
from twostage.data.fix import fix_dataset
from twostage.data.recognise import open_dataset
from twostage.data.split import split as deal_out
from twostage.errors import DataError

WHOLE = {
    "info": {"contributor": "me", "year": 2026},
    "licenses": [{"id": 1, "name": "CC BY"}],
    "videos": [],
    "categories": [
        {"id": 7, "name": "cat", "supercategory": "pet", "keypoints": ["nose"], "skeleton": [[1, 1]]},
        {"id": 3, "name": "dog", "supercategory": "pet"},
    ],
}
OF_OBJECT = {
    "attributes": {"occluded": True, "track_id": 7, "mood": None},
    "keypoints": [30.5, 30, 2],
    "num_keypoints": 1,
    "score": 0.25,
    "note": "l’été <b>",
}
OF_IMAGE = {"license": 1, "date_captured": "2026-03-01", "extra": {"name": "x"}}
PLAIN = {"area": 400.0, "iscrowd": 0, "bbox": [20, 10, 20, 20]}


def rich(make_coco: Callable[..., Path], **more: Any) -> Path:
    annotations = [{"id": i, "image_id": i, "category_id": 7, **PLAIN, **OF_OBJECT} for i in (1, 2, 3, 4)]
    root = make_coco(annotations, images=4, **{**WHOLE, **more})
    path = root / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["images"] = [{**image, **OF_IMAGE} for image in document["images"]]
    path.write_text(json.dumps(document))
    return root


def saved(root: Path, split: str = "train") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    return document


def assert_kept(document: dict[str, Any]) -> None:
    for key in ("info", "licenses", "videos"):
        assert document[key] == WHOLE[key]
    assert sorted(document["categories"], key=lambda one: -one["id"]) == WHOLE["categories"]
    for image in document["images"]:
        assert {key: image[key] for key in OF_IMAGE} == OF_IMAGE
    for one in document["annotations"]:
        assert {key: one[key] for key in OF_OBJECT} == OF_OBJECT


@pytest.mark.parametrize("way", [("coco",), *permutations(("voc", "yolo", "coco"))], ids="-".join)
def test_other_fields_survive_any_way(make_coco: Callable[..., Path], tmp_path: Path, way: tuple[str, ...]) -> None:
    root = rich(make_coco)
    for number, kind in enumerate((*way, "coco")):
        root = convert(root, tmp_path / str(number), kind).path
    assert_kept(saved(root))


def test_other_fields_survive_a_split_and_a_repair(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    root = rich(make_coco)
    parts = deal_out(root, tmp_path / "parts", {"train": 0.5, "val": 0.5})
    for name in ("train", "val"):
        assert_kept(saved(parts.path, name))
    document = saved(root)
    document["annotations"][0]["bbox"] = [50, 10, 20, 20]  # over the border
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document))
    assert_kept(saved(fix_dataset(root, tmp_path / "fixed").path))


def test_chosen_classes_keep_their_fields(make_coco: Callable[..., Path]) -> None:
    dataset = select_classes(open_dataset(rich(make_coco), split="train"), ["cat"])
    assert dataset.fields is not None
    assert [unpack(text)["supercategory"] for text in dataset.fields.classes] == ["pet"]
    assert len(dataset.fields.objects) == len(dataset.labels) == 4


VOC = (
    "<annotation><source><database>mine</database></source><owner><name>me</name></owner><filename>a.jpg</filename>"
    "<size><width>60</width><height>40</height><depth>3</depth></size><object><name>cat</name><pose>Left</pose>"
    "<truncated>1</truncated><occluded>1</occluded><difficult>0</difficult><id>12</id>"
    "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
    "<part><name>head</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    "<part><name>foot</name></part></object></annotation>"
)


def test_vocs_elements_are_written_as_elements(make_voc: Callable[..., Path], tmp_path: Path) -> None:
    root = make_voc({"a": VOC, "b": [("cat", (2, 3, 20, 30))]})
    text = (convert(root, tmp_path / "out", "voc").path / "Annotations" / "a.xml").read_text()
    tree = ElementTree.fromstring(text)
    assert tree.findtext("source/database") == "mine"
    assert tree.findtext("owner/name") == "me"
    item = tree.find("object")
    assert item is not None
    assert [item.findtext(tag) for tag in ("pose", "truncated", "occluded")] == ["Left", "1", "1"]
    assert [part.findtext("name") for part in item.findall("part")] == ["head", "foot"]
    assert item.findtext("part/bndbox/xmax") == "9"
    assert not (tmp_path / "out" / NAME).exists()
    back = convert(convert(root, tmp_path / "coco", "coco").path, tmp_path / "again", "voc").path
    again = ElementTree.fromstring((back / "Annotations" / "a.xml").read_text()).find("object")
    assert again is not None
    assert again.findtext("part/name") == "head"
    one = saved(tmp_path / "coco")["annotations"][0]
    assert (one["id"], one["voc_id"], one["pose"], one["truncated"]) == (1, 12, "Left", 1)


def test_what_tools_write_without_being_asked_is_no_field(make_voc: Callable[..., Path]) -> None:
    plain = VOC[: VOC.index("<source>")] + VOC[VOC.index("<filename>") :]
    plain = (
        plain.replace(">Left<", ">Unspecified<")
        .replace("<truncated>1", "<truncated>0")
        .replace("<occluded>1", "<occluded>0")
    )
    plain = plain[: plain.index("<part>")].replace("<id>12</id>", "") + "</object></annotation>"
    assert open_dataset(make_voc({"a": plain}), split="train").fields is None


def test_keys_of_data_yaml_are_kept(make_yolo: Callable[..., Path], tmp_path: Path) -> None:
    yaml = (
        "names: [cat, dog]\ntrain: images/train\nroboflow: {license: CC BY 4.0, version: 3}\n7: x\nwhen: 2026-01-02\n"
    )
    root = make_yolo({"a": "0 0.5 0.5 0.2 0.2\n"}, yaml)
    document = saved(convert(root, tmp_path / "coco", "coco").path)
    assert document["roboflow"] == {"license": "CC BY 4.0", "version": 3}
    text = (convert(root, tmp_path / "out", "yolo").path / "data.yaml").read_text()
    assert "license: CC BY 4.0" in text
    assert not (tmp_path / "out" / NAME).exists()


def test_a_broken_twostage_json_is_named(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    root = convert(rich(make_coco), tmp_path / "out", "yolo").path
    document = json.loads((root / NAME).read_text())
    for broken in (
        {"fields": []},
        {"fields": {"train": 3}},
        {"classes": [{"id": 1, "name": "cat", "fields": "x"}]},
    ):
        (root / NAME).write_text(json.dumps({**document, **broken}))
        with pytest.raises(DataError, match=r"twostage\.json.*fields"):
            open_dataset(root, split="train")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.text(min_size=1, max_size=10).filter(
    lambda key: key not in PLAIN and key not in ("id", "image_id", "segmentation")
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(KEYS, JSON, max_size=4), kind=st.sampled_from(["voc", "yolo"]))
def test_any_json_survives(
    make_coco: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any], kind: str
) -> None:
    fields = {key: value for key, value in fields.items() if key not in ("category_id", "difficult")}
    root = make_coco([{"id": 1, "image_id": 1, "category_id": 7, **PLAIN, **fields}], images=1)
    work = tmp_path_factory.mktemp("w")
    back = convert(convert(root, work / "there", kind).path, work / "back", "coco").path
    (one,) = saved(back)["annotations"]
    assert {key: value for key, value in one.items() if key in fields} == fields


def test_fields_of_several_files_are_put_together() -> None:
    one, two = {"licenses": [{"id": 1}], "info": 1}, {"licenses": [{"id": 1}, {"id": 2}], "info": 2, "more": "x"}
    assert unpack(together([pack(one), pack(two)])) == {"licenses": [{"id": 1}, {"id": 2}], "info": 1, "more": "x"}
    assert together([pack(one), pack(one)]) == pack(one)
