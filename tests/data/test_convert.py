"""From any layout into any other and back: the same data set, and the source untouched."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twostage.data.convert import convert
from twostage.data.dataset import Dataset, difference
from twostage.data.extras import NAME
from twostage.data.flat import NONE, POLYGONS
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.data.split import split as deal_out
from twostage.data.stuff import find_stuff
from twostage.data.write import write_dataset
from twostage.errors import DataError, TwostageError, UsageError

LAYOUTS = ("coco", "voc", "yolo")
RING = [2.5, 3, 20.25, 3, 20.25, 17.5, 2.5, 17.5]


def annotation(number: int, image: int = 1, **changes: Any) -> dict[str, Any]:
    plain = {"id": number, "image_id": image, "category_id": 7, "bbox": [2.5, 3, 17.75, 14.5], "iscrowd": 0}
    return plain | changes


RICH = [
    annotation(11, area=3.25, segmentation=[RING]),
    annotation(5, category_id=3, iscrowd=1, segmentation={"size": [40, 60], "counts": [100, 50, 2250]}),
    annotation(9, image=2, difficult=1, segmentation=[RING, [30, 30, 35, 30, 35, 38]]),
    annotation(90, image=2, bbox=[0, 0, 0.5, 40], segmentation=[RING]),
]


def everything(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_same(given: Dataset, other: Dataset) -> None:
    """The same images, known by their ids, with the same objects."""
    place = {int(number): index for index, number in enumerate(other.image_ids)}
    assert set(place) == set(given.image_ids.tolist())
    assert difference(given, other, [place[int(number)] for number in given.image_ids]) == ""


def opened(root: Path, split: str = "train") -> Dataset:
    return open_dataset(root, split=split, repair=False, boxes="format")


@pytest.mark.parametrize("way", [*permutations(LAYOUTS, 2), *permutations(LAYOUTS)], ids="-".join)
def test_nothing_is_lost_on_any_way(make_coco: Callable[..., Path], tmp_path: Path, way: tuple[str, ...]) -> None:
    """Ids with gaps, crowds, difficult objects, areas, polygons of one and of two rings, run lengths, thin boxes."""
    source = make_coco(RICH)
    before = everything(source)
    root = source
    for number, kind in enumerate((*way, "coco")):
        root = convert(root, tmp_path / str(number), kind).path
    assert_same(opened(source), opened(root))
    assert everything(source) == before
    again = json.loads((root / "annotations" / "instances_train.json").read_text())
    one = next(a for a in again["annotations"] if a["id"] == 11)
    assert one == annotation(11, area=3.25, segmentation=[RING])


def test_what_fits_is_written_plainly(make_voc: Callable[..., Path], tmp_path: Path) -> None:
    """Whole pixels, ids by position, no masks: other tools' own files, with nothing beside them."""
    voc = make_voc({"a": [("dog", (2, 3, 20, 30))], "b": [("cat", (1, 1, 60, 40))]}, train=["a"], val=["b"])
    for kind in ("voc", "yolo", "coco"):
        root = convert(voc, tmp_path / "out" / kind, kind).path
        assert not (root / NAME).exists()
        for split in ("train", "val"):
            assert_same(opened(voc, split), opened(root, split))
    xml = (tmp_path / "out" / "voc" / "Annotations" / "a.xml").read_text()
    assert "<xmin>2</xmin>" in xml
    assert "<ymax>30</ymax>" in xml
    assert (tmp_path / "out" / "voc" / "ImageSets" / "Main" / "val.txt").read_text() == "b\n"
    assert (tmp_path / "out" / "yolo" / "labels" / "train" / "a.txt").read_text().startswith("1 0.175 0.4 0.316")


def test_polygons_are_yolos_own(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    root = convert(make_coco([annotation(1, segmentation=[RING])]), tmp_path / "out", "yolo").path
    fields = (root / "labels" / "train" / "1.txt").read_text().split()
    assert fields[0] == "1"
    assert np.allclose(np.array(fields[1:], float) * np.tile([60, 40], 4), RING)


def test_voc_keeps_classes_without_objects(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    source = make_coco([annotation(1)])
    assert opened(convert(source, tmp_path / "out", "voc").path).names == ("dog", "cat")


def test_decimals_are_written_as_they_were_read(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    """Not as the nearest float32, which has 17 digits."""
    source = make_coco([annotation(1, bbox=[10.1, 20.2, 30.3, 4.7])])
    root = convert(source, tmp_path / "out", "coco").path
    (written,) = json.loads((root / "annotations" / "instances_train.json").read_text())["annotations"]
    assert written["bbox"] == [10.1, 20.2, 30.3, 4.7]


boxes = st.tuples(*[st.floats(-5, 70, width=32)] * 4)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.tuples(boxes, st.booleans(), st.booleans(), st.sampled_from([3, 7]))),
    kind=st.sampled_from(LAYOUTS),
)
def test_any_boxes_survive(
    make_coco: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[tuple[float, ...], bool, bool, int]],
    kind: str,
) -> None:
    """Inverted, without area, over the border: a conversion mends nothing."""
    annotations = [
        annotation(i, bbox=[*box], iscrowd=int(crowd), difficult=int(hard), category_id=category)
        for i, (box, crowd, hard, category) in enumerate(rows)
    ]
    source = make_coco(annotations)
    root = convert(source, tmp_path_factory.mktemp("any") / "out", kind, boxes="format").path
    assert_same(opened(source), opened(root))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_box_far_outside_its_image_survives(make_coco: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    """As a fraction of the image its centre is above 2, which a foreign YOLO file has by mistake alone."""
    source = make_coco([annotation(1, bbox=[3, 60, 20, 50])])
    assert_same(opened(source), opened(convert(source, tmp_path / "out", kind).path))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_boxes_of_a_pixel_and_less_are_trained_on_after_a_conversion(
    make_coco: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """VOC's files cannot tell a pixel from none; twostage.json can."""
    thin = [annotation(1, bbox=[5, 5, 1, 10]), annotation(2, bbox=[5, 5, 0.5, 10]), annotation(3, bbox=[5, 5, 9, 1])]
    dataset = open_dataset(convert(make_coco(thin), tmp_path / "out", kind).path, split="train")
    np.testing.assert_allclose(dataset.boxes, [[5, 5, 6, 15], [5, 5, 5.5, 15], [5, 5, 14, 6]], atol=1e-5)


def test_a_box_of_voc_that_begins_and_ends_at_the_same_pixel_stays_a_mistake(
    make_voc: Callable[..., Path], tmp_path: Path
) -> None:
    """Also where twostage.json has its box."""
    voc = make_voc({"a": [("dog", (5, 5, 5, 20)), ("dog", (2, 3, 20, 30))]})
    source = opened(voc)
    root = tmp_path / "out"
    root.mkdir()
    write_dataset(root, [replace(source, annotation_ids=source.annotation_ids + 5)], "voc")
    assert (root / NAME).exists()
    for place in (voc, root):
        dataset = open_dataset(place, split="train")
        assert [fault.code for fault in dataset.faults] == ["zero-area-box"]
        assert len(dataset.boxes) == 1


@pytest.mark.parametrize("kind", LAYOUTS)
def test_long_names_are_cut(make_coco: Callable[..., Path], make_image: Any, tmp_path: Path, kind: str) -> None:
    """In VOC's layout folders become parts of the name, of which a system takes 255 bytes."""
    images = [make_image(tmp_path / ("x" * 200) / ("나" * 40) / f"{name}.jpg", seed=ord(name)) for name in "ab"]
    root = make_coco([annotation(1), annotation(2, image=2)])
    path = root / "annotations" / "instances_train.json"
    text = (
        path.read_text().replace('"1.jpg"', json.dumps(str(images[0]))).replace('"2.jpg"', json.dumps(str(images[1])))
    )
    path.write_text(text)
    written = opened(convert(root, tmp_path / "out", kind).path)
    assert_same(opened(root), written)
    assert {written.path(index).name[-5:] for index in range(2)} == {"a.jpg", "b.jpg"}


def test_images_of_like_names_are_told_apart(make_coco: Callable[..., Path], make_image: Any, tmp_path: Path) -> None:
    names = ["a/x.jpg", "b/x.jpg", "X.png", "no suffix", "line\nbreak.jpg", "한국 🙂.jpg", " .jpg"]
    root = make_coco([annotation(i, image=i) for i in range(1, 8)])
    for number, name in enumerate(names):
        make_image(root / "train" / name, seed=number, format="PNG")
    listed = [{"id": i, "file_name": name, "height": 40, "width": 60} for i, name in enumerate(names, start=1)]
    path = root / "annotations" / "instances_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": listed}))
    for kind in LAYOUTS:
        written = opened(convert(root, tmp_path / "out" / kind, kind).path)
        assert_same(opened(root), written)
        for index, number in enumerate(written.image_ids):
            assert written.path(index).read_bytes() == (root / "train" / names[number - 1]).read_bytes()


@pytest.mark.parametrize("kind", LAYOUTS)
def test_images_of_hidden_names_are_read_from_the_new_data_set(
    make_coco: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """A folder of YOLO and a list of VOC are read without what is hidden."""
    root = make_coco([annotation(1), annotation(2, image=2)])
    path = root / "annotations" / "instances_train.json"
    for old, new in (("1.jpg", ".1.jpg"), ("2.jpg", ".cache/2.jpg")):
        (root / "train" / new).parent.mkdir(exist_ok=True)
        (root / "train" / old).rename(root / "train" / new)
        path.write_text(path.read_text().replace(json.dumps(old), json.dumps(new)))
    assert_same(opened(root), opened(convert(root, tmp_path / "out", kind).path))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_network_share_in_a_name_does_not_lead_out_of_the_new_folder(
    make_coco: Callable[..., Path], make_image: Any, tmp_path: Path, kind: str
) -> None:
    """`//share/a.jpg` is an absolute path too, and its label file was written beside the image."""
    elsewhere = make_image(tmp_path / "share" / "a.jpg").with_suffix(".txt")
    elsewhere.write_text("a caption")
    root = make_coco([annotation(1)], images=1)
    path = root / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"1.jpg"', json.dumps(f"/{tmp_path}/share/a.jpg")))
    written = opened(convert(root, tmp_path / "out", kind).path)
    assert_same(opened(root), written)
    assert written.path(0).is_relative_to(tmp_path / "out")
    assert elsewhere.read_text() == "a caption"


def test_one_image_in_two_splits_stays_one_file_in_voc(make_voc: Callable[..., Path], tmp_path: Path) -> None:
    source = make_voc({"a": [("dog", (2, 3, 20, 30))], "b": []}, train=["a"], trainval=["a", "b"])
    root = convert(source, tmp_path / "out", "voc").path
    assert sorted(p.name for p in (root / "JPEGImages").iterdir()) == ["a.jpg", "b.jpg"]
    assert_same(opened(source, "trainval"), opened(root, "trainval"))


def test_images_may_be_links(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    source = make_coco(RICH)
    root = convert(source, tmp_path / "out", "yolo", pictures="link").path
    assert (root / "images" / "train" / "1.jpg").is_symlink()
    assert_same(opened(source), opened(root))


def test_names_of_splits_that_yolo_does_not_have(make_voc: Callable[..., Path], tmp_path: Path) -> None:
    several = make_voc({"a": [("dog", (2, 3, 20, 30))]}, train2017=["a"], val2017=["a"], night=["a"])
    with pytest.raises(UsageError, match="'night'"):
        convert(several, tmp_path / "no", "yolo")
    (several / "ImageSets" / "Main" / "night.txt").unlink()
    assert set(convert(several, tmp_path / "yes", "yolo").splits) == {"train", "val"}
    (several / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    with pytest.raises(UsageError, match="the same name"):
        convert(several, tmp_path / "no", "yolo")


def test_a_split_without_images_is_refused_for_yolo_before_images_are_copied(
    make_coco: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_coco([annotation(1)])
    path = root / "annotations" / "instances_train.json"
    empty = json.loads(path.read_text()) | {"images": [], "annotations": []}
    path.with_name("instances_val.json").write_text(json.dumps(empty))
    assert convert(root, tmp_path / "voc", "voc").splits == {"train": (2, 1), "val": (0, 0)}
    monkeypatch.setattr("shutil.copyfile", lambda *_: pytest.fail("images were copied"))
    with pytest.raises(DataError, match=r"the split 'val' has no images, and YOLO's layout cannot hold that"):
        convert(root, tmp_path / "yolo", "yolo")


def test_a_failed_conversion_leaves_nothing(make_coco: Callable[..., Path], tmp_path: Path, monkeypatch: Any) -> None:
    source = make_coco(RICH)
    before = sorted(tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(TwostageError, match="No space left"):
        convert(source, tmp_path / "out", "voc")
    assert sorted(tmp_path.iterdir()) == before


def test_faults_stop_a_conversion(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    source = make_coco([annotation(1, category_id=99)])
    with pytest.raises(DataError, match="no category has the id 99"):
        convert(source, tmp_path / "out", "voc")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="not empty"):
        convert(source, source, "voc")


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_what_was_changed_by_hand_is_believed(make_coco: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    """The other images keep what stands beside; ids do not collide with theirs."""
    root = convert(make_coco(RICH), tmp_path / "out", kind).path
    path = root / ("Annotations/1.xml" if kind == "voc" else "labels/train/1.txt")
    path.write_text(path.read_text() + "\n")
    found = opened(root)
    assert [f.code for f in found.faults].count("stale-extras") == 1
    assert set(found.objects(1).annotation_ids.tolist()) == {9, 90}
    assert not found.objects(0).crowd.any()
    assert len(set(found.annotation_ids.tolist())) == 4
    assert found.image_ids.tolist() == [1, 2]


BROKEN: list[tuple[Callable[[dict], Any], str]] = [
    (lambda d: d.update(format=2), "format is 2"),
    (lambda d: d.update(classes=None), "no list of classes"),
    (lambda d: d["classes"][0].update(id="x"), "lacks a whole id"),
    (lambda d: d["classes"][0].update(name=d["classes"][1]["name"]), "share"),
    (lambda d: d["splits"].update(train=[]), "is no object"),
    (lambda d: next(iter(d["splits"]["train"].values())).pop("id"), "lacks a sha256"),
    (lambda d: next(iter(d["splits"]["train"].values()))["objects"][0].update(area="x"), "object 0"),
    (lambda d: next(iter(d["splits"]["train"].values()))["objects"][0].update(box=[1, 2]), "object 0"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_file_beside_is_refused(
    make_coco: Callable[..., Path], tmp_path: Path, change: Callable[[dict], Any], message: str
) -> None:
    root = convert(make_coco(RICH), tmp_path / "out", "voc").path
    document = json.loads((root / NAME).read_text())
    change(document)
    (root / NAME).write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        opened(root)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYOUTS)
def test_blood_cells(real_data: Path, tmp_path: Path, kind: str) -> None:
    source = real_data / "blood-cells"
    written = convert(source, tmp_path / "out", kind, pictures="link")
    for split in written.splits:
        assert_same(opened(source, split), opened(written.path, split))


def test_photos_with_masks_and_crowds(real_data: Path, tmp_path: Path) -> None:
    """Through both other layouts and back; their file names hold folders."""
    root = source = real_data / "coco-photos" / "instances.json"
    images = real_data / "coco-photos" / "images"
    for kind in ("voc", "yolo", "coco"):
        root = convert(root, tmp_path / kind, kind, images=images if root == source else None).path
    (split,) = convert(root, tmp_path / "last", "coco").splits
    assert_same(open_dataset(source, split="instances", images=images, repair=False), opened(root, split))


def test_an_object_without_mask_stays_without(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    root = make_coco([annotation(1, segmentation=[RING]), annotation(2, image=2)])
    for kind in LAYOUTS:
        out = tmp_path / "written" / kind
        convert(root, out, kind)
        dataset = open_dataset(out, split="train")
        assert dataset.masks is not None
        assert sorted(dataset.masks.kinds.tolist()) == [NONE, POLYGONS]
        assert [fault.code for fault in dataset.faults] == ["missing-mask"]
    written = json.loads(next((tmp_path / "written" / "coco" / "annotations").iterdir()).read_text())
    assert ["segmentation" in one for one in written["annotations"]] == [True, False]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_maps_of_stuff_go_along(tmp_path: Path, kind: str) -> None:
    scenes = write_scenes(tmp_path / "scenes", train=3, val=2)
    convert(scenes, tmp_path / "out", kind)
    deal_out(scenes, tmp_path / "dealt", {"train": 0.6, "val": 0.4}, to=kind)
    for folder in (tmp_path / "out", tmp_path / "dealt"):
        of_pixels: dict[bytes, np.ndarray] = {}
        for part in ("train", "val"):
            for root in (scenes, folder):
                dataset = open_dataset(root, split=part)
                stuff = find_stuff(dataset)
                assert stuff is not None
                assert stuff.classes == 6
                for index in range(len(dataset)):
                    found = stuff.read(index, *dataset.sizes[index].tolist())
                    pixels = dataset.path(index).read_bytes()
                    assert np.array_equal(of_pixels.setdefault(pixels, found), found)
        assert len(of_pixels) == 5
