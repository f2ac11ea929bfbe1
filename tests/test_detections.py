"""Detections: what they hold, how they are cut, converted, drawn and saved."""

import copy
import json
import pickle
import subprocess
import sys
import types
from xml.etree import ElementTree

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from twostage.detections import Detections
from twostage.errors import MissingError, TwostageError, UsageError

NAMES = ("cat", "dog", "bird")


def make(n=3, **fields):
    boxes = np.array([[10, 20, 50, 60], [0, 0, 100, 80], [30.25, 40.5, 31.125, 70]], np.float32)[:n]
    values = {
        "boxes": boxes,
        "scores": np.array([0.9, 0.75, 0.123456789], np.float32)[:n],
        "class_ids": np.array([0, 2, 0])[:n],
        "names": NAMES,
        "size": (80, 100),
    }
    return Detections(**{**values, **fields})


def rle(rows=slice(20, 60), columns=slice(10, 50)):
    plane = np.zeros((80, 100), np.uint8, order="F")
    plane[rows, columns] = 1
    return coco_mask.encode(plane)


def test_holding_reading_and_drawing_names_need_no_torch():
    code = "import sys, twostage.detections, twostage.drawing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_fields_by_all_their_names():
    detections = make()
    assert len(detections) == 3
    assert detections.labels == ["cat", "bird", "cat"]
    assert detections.xyxy is detections.boxes
    assert detections.confidence is detections.scores
    assert detections.class_id is detections.class_ids
    assert detections.xywh[0].tolist() == [10, 20, 40, 40]
    assert detections.cxcywh[0].tolist() == [30, 40, 40, 40]
    np.testing.assert_allclose(detections.xyxyn[0], [0.1, 0.25, 0.5, 0.75])
    assert detections.xywh.dtype == detections.cxcywh.dtype == detections.xyxyn.dtype == np.float32


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_hold_the_same_and_share_no_memory(copied):
    fields = {"masks": [rle()] * 3, "proposals": np.array([7, 8, 9]), "image": np.ones((80, 100, 3), np.uint8)}
    detections = make(**fields, path="a.jpg")
    other = copied(detections)
    assert repr(other) == repr(detections)
    for name, value in vars(detections).items():
        np.testing.assert_array_equal(getattr(other, name), value)
        if isinstance(value, np.ndarray):
            assert not np.shares_memory(getattr(other, name), value)
    assert [d.label for d in other[1:]] == detections.labels[1:]


def test_one_by_number_and_by_iteration():
    detections = make(masks=[rle()] * 3, proposals=np.array([7, 8, 9]))
    assert [d.label for d in detections] == detections.labels
    last = detections[-1]
    assert (last.label, last.class_id, last.proposal, last.mask) == ("cat", 0, 9, detections.masks[2])
    assert last.score == pytest.approx(0.123456789)
    assert last.box.tolist() == detections.boxes[2].tolist()
    with pytest.raises(IndexError):
        detections[3]


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        (np.array([True, False, True]), [0, 2]),
        ([True, False, True], [0, 2]),
        (np.array([2, 0, 0]), [2, 0, 0]),
        ([1], [1]),
        ([], []),
        (np.zeros(3, bool), []),
    ],
)
def test_parts_keep_everything_together(index, kept):
    detections = make(masks=[rle(columns=slice(k, 50)) for k in range(3)], proposals=np.array([7, 8, 9]), path="a.jpg")
    part = detections[index]
    assert isinstance(part, Detections)
    for name in ("boxes", "scores", "class_ids", "proposals"):
        assert getattr(part, name).tolist() == getattr(detections, name)[kept].tolist()
    assert part.masks == [detections.masks[k] for k in kept]
    assert (part.names, part.size, part.path) == (detections.names, detections.size, detections.path)


def test_filter_by_confidence_and_classes():
    detections = make()
    assert detections.filter(conf=0.5).labels == ["cat", "bird"]
    assert detections.filter(conf=float(detections.scores[1])).labels == ["cat", "bird"]
    assert detections.filter(classes=["cat"]).scores.tolist() == detections.scores[[0, 2]].tolist()
    assert detections.filter(classes="bird").labels == detections.filter(classes=[2]).labels == ["bird"]
    assert len(detections.filter(classes=["dog"])) == len(detections.filter(classes=[])) == 0
    with pytest.raises(UsageError, match="Did you mean 'bird'"):
        detections.filter(classes=["brid"])
    with pytest.raises(UsageError, match=r"0\.\.2"):
        detections.filter(classes=[3])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scores": np.zeros(2, np.float32)}, "3 boxes but 2 scores"),
        ({"masks": []}, "0 masks"),
        ({"class_ids": np.array([0, 3, 0])}, "class id 3"),
        ({"class_ids": np.array([0, -1, 0])}, "class id -1"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, words):
    values = {k: getattr(make(), k) for k in ("boxes", "scores", "class_ids", "names", "size")}
    # Object by object, because the suite's shape checks would be the first to refuse.
    detections = object.__new__(Detections)
    for name, value in {**values, "masks": None, "proposals": None, **fields}.items():
        object.__setattr__(detections, name, value)
    with pytest.raises(UsageError, match=words):
        detections.__post_init__()


def test_to_dict_is_predicts_json():
    detections = make(path="photos/a.jpg").to_dict()
    assert detections == {
        "path": "photos/a.jpg",
        "width": 100,
        "height": 80,
        "detections": [
            {"label": "cat", "class_id": 0, "score": 0.9, "box": [10.0, 20.0, 50.0, 60.0]},
            {"label": "bird", "class_id": 2, "score": 0.75, "box": [0.0, 0.0, 100.0, 80.0]},
            {"label": "cat", "class_id": 0, "score": 0.123457, "box": [30.25, 40.5, 31.125, 70.0]},
        ],
    }
    assert json.loads(make(path="photos/a.jpg").to_json()) == detections
    assert make(0).to_dict() == {"path": None, "width": 100, "height": 80, "detections": []}


def test_masks_in_json_are_plain_run_lengths():
    (detections,) = make(1, masks=[rle()]).to_dict()["detections"]
    assert detections["mask"] == {"size": [80, 100], "counts": rle()["counts"].decode()}
    assert json.dumps(detections)
    assert coco_mask.decode(detections["mask"]).sum() == 1600


def test_to_coco_writes_ids_of_the_file():
    rows = make().to_coco(7, [18, 3, 44])
    assert rows[1] == {"image_id": 7, "category_id": 44, "bbox": [0.0, 0.0, 100.0, 80.0], "score": 0.75}
    assert [row["category_id"] for row in make().to_coco(image_id=7)] == [1, 3, 1]
    assert all(type(row["category_id"]) is int for row in make().to_coco(7, np.array([18, 3, 44])))
    assert make(1, masks=[rle()]).to_coco(7)[0]["segmentation"]["size"] == [80, 100]
    with pytest.raises(UsageError, match="2 category ids for 3 classes"):
        make().to_coco(7, [1, 2])


def test_to_voc_is_xml_whatever_the_file_is_called():
    name = b"a\x1fb\xff.jpg".decode("utf-8", "surrogateescape")
    text = make(path=f"photos/{name}").to_voc()
    assert ElementTree.fromstring(text.encode()).findtext("filename") == "a?b?.jpg"


def test_to_voc_counts_pixels_from_one_and_stays_inside():
    root = ElementTree.fromstring(make(path="photos/a.jpg").to_voc())
    assert root.findtext("filename") == "a.jpg"
    assert [root.findtext(f"size/{side}") for side in ("width", "height", "depth")] == ["100", "80", "3"]
    boxes = [[int(o.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")] for o in root.iter("object")]
    assert boxes == [[11, 21, 50, 60], [1, 1, 100, 80], [31, 41, 31, 70]]
    assert [o.findtext("name") for o in root.iter("object")] == ["cat", "bird", "cat"]

    outside = make(1, boxes=np.array([[-9, -9, 500, 500]], np.float32), names=("a & <b>", "b", "c")).to_voc()
    box = ElementTree.fromstring(outside).find("object/bndbox")
    assert [v.text for v in box] == ["1", "1", "100", "80"]
    assert ElementTree.fromstring(outside).findtext("object/name") == "a & <b>"


def test_what_voc_writes_is_read_back(tmp_path):
    from twostage.data.recognise import open_dataset

    detections = make(2, image=np.zeros((80, 100, 3), np.uint8))
    for folder in ("train",):
        (tmp_path / folder).mkdir()
        Image.fromarray(detections.image).save(tmp_path / folder / "a.png")
        Detections(**{**vars(detections), "path": "a.png"}).save(tmp_path / folder / "a.xml")
    dataset = open_dataset(tmp_path, split="train", voc_offset="1")
    assert dataset.boxes.tolist() == detections.boxes.tolist()
    assert [dataset.names[k] for k in dataset.labels] == detections.labels


def test_saves_by_suffix(tmp_path):
    detections = make(image=np.full((80, 100, 3), 90, np.uint8), path="a.jpg")
    for suffix, kind in ((".jpg", "JPEG"), (".PNG", "PNG"), (".webp", "WEBP")):
        detections.save(tmp_path / "deep" / f"out{suffix}")
        with Image.open(tmp_path / "deep" / f"out{suffix}") as image:
            assert (image.format, image.size) == (kind, (100, 80))
    detections.save(str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == detections.to_dict()
    detections.save(tmp_path / "out.xml")
    assert (tmp_path / "out.xml").read_text() == detections.to_voc()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_what_cannot_be_saved_says_why(tmp_path):
    detections = make(image=np.zeros((80, 100, 3), np.uint8))
    for name in ("out.docx", "out"):
        with pytest.raises(UsageError, match=r"\.jpg, \.png"):
            detections.save(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(TwostageError, match="cannot be written"):
        detections.save(tmp_path / "file" / "out.jpg")
    with pytest.raises(UsageError, match="no image to draw on"):
        make().save(tmp_path / "out.jpg")


def test_draws_on_the_image_at_its_path(tmp_path):
    Image.new("RGB", (100, 80), (9, 9, 9)).save(tmp_path / "a.png")
    drawn = make(path=str(tmp_path / "a.png")).draw()
    assert drawn.size == (100, 80)
    assert len(drawn.getcolors(100_000)) > 3
    assert make(path=str(tmp_path / "a.png")).draw(min_side=240).size == (300, 240)


def test_drawing_leaves_the_image_alone():
    image = np.full((80, 100, 3), 90, np.uint8)
    make(image=image).draw()
    assert (image == 90).all()


def test_repr_has_the_image_and_the_counts():
    assert repr(make(path="photos/a.jpg")) == "Detections(a.jpg, 100 x 80 px: 2 cat, 1 bird; scores 0.12 to 0.90)"
    assert repr(make(0)) == "Detections(100 x 80 px: no detections)"


def test_html_escapes_names_and_shows_the_image():
    page = make(names=("<script>", "b", "c"), image=np.zeros((80, 100, 3), np.uint8))._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "data:image/jpeg;base64," in page
    assert "<img" not in make()._repr_html_()


def test_notebook_page_names_which_image_cannot_be_read(tmp_path):
    (tmp_path / "gone.jpg").write_bytes(b"no picture")
    page = make(path=str(tmp_path / "gone.jpg"))._repr_html_()
    assert "gone.jpg: is not an image" in page
    assert "<table>" in page


@pytest.mark.parametrize("library", ["pandas", "supervision"])
def test_a_missing_library_is_named_with_its_command(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingError, match=f"pip install {library}"):
        getattr(make(), f"to_{library}")()


def test_to_pandas_gives_a_row_for_each_object(monkeypatch):
    fake = types.ModuleType("pandas")
    fake.DataFrame = lambda data, index: (data, index)
    monkeypatch.setitem(sys.modules, "pandas", fake)
    data, index = make(path="a.jpg").to_pandas()
    assert list(data) == ["path", "label", "class_id", "score", "x1", "y1", "x2", "y2"]
    assert data["label"] == ["cat", "bird", "cat"]
    assert data["x2"].tolist() == [50, 100, 31.125]
    assert list(index) == [0, 1, 2]


def test_to_supervision_hands_over_the_arrays(monkeypatch):
    fake = types.ModuleType("supervision")
    fake.Detections = lambda **fields: fields
    monkeypatch.setitem(sys.modules, "supervision", fake)
    detections = make(masks=[rle()] * 3)
    fields = detections.to_supervision()
    assert fields["xyxy"] is detections.boxes
    assert fields["data"]["class_name"].tolist() == detections.labels
    assert fields["mask"].shape == (3, 80, 100)
    assert fields["mask"].dtype == bool
    assert make(0, masks=[]).to_supervision()["mask"].shape == (0, 80, 100)
    assert make().to_supervision()["mask"] is None
