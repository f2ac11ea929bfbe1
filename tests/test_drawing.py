"""Drawings: boxes where they belong, labels inside the image and off each other."""

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from twostage import drawing, fonts
from twostage.drawing import colour_of, draw_boxes, draw_pair, save_picture, tile
from twostage.errors import MissingError, UsageError


def grey(height=200, width=300):
    return np.full((height, width, 3), 128, np.uint8)


def pixels_of(picture, colour):
    return np.argwhere((np.asarray(picture) == colour).all(axis=2))


def test_the_first_seven_colours_differ_for_every_kind_of_vision():
    """Pairwise distance after the projections of Viénot, Brettel and Mollon (1999) for protanopes and deuteranopes."""
    colours = np.array([colour_of(k) for k in range(7)]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    for matrix in (np.eye(3), protan, deutan):
        seen = (linear @ matrix.T).clip(0) ** (1 / 2.2)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=2)[~np.eye(7, dtype=bool)]
        assert distance.min() > 0.1


def test_more_classes_take_other_shades_then_repeat():
    assert len({colour_of(k) for k in range(21)}) == 21
    assert colour_of(21) == colour_of(0)


def test_the_box_lies_on_its_pixels():
    picture = draw_boxes(grey(), np.array([[60.0, 70, 160, 150]]), [""], class_ids=np.array([6]))
    rows, columns = pixels_of(picture, colour_of(6))[:, 0], pixels_of(picture, colour_of(6))[:, 1]
    assert (columns.min(), columns.max()) == (60, 159) or (columns.min(), columns.max()) == (60, 160)
    assert rows.max() in (149, 150)
    assert np.asarray(picture)[110, 110].tolist() == [128] * 3


def labels_placed(monkeypatch, *args, **options):
    placed = []
    write = drawing._write
    monkeypatch.setattr(drawing, "_write", lambda draw, label, font: (placed.append(label), write(draw, label, font)))
    return draw_boxes(*args, **options), placed


def test_labels_stay_inside_and_apart(monkeypatch):
    """Boxes at every border, outside it, and three on one spot."""
    boxes = [[0, 0, 40, 40], [260, 0, 300, 40], [0, 160, 40, 200], [-50, 90, 20, 120], [250, 150, 400, 260]]
    boxes += [[120, 80, 180, 130]] * 3
    names = [f"label {k}" for k in range(len(boxes))]
    picture, placed = labels_placed(
        monkeypatch, grey(), np.array(boxes, float), names, np.linspace(0.1, 0.9, len(boxes))
    )
    assert picture.size == (300, 200)
    assert len(placed) == len(boxes)
    places = np.array([label.place for label in placed])
    assert places[:, :2].min() >= 0
    assert (places[:, 2:] <= [300, 200]).all()
    common = np.minimum(places[:, None, 2:], places[None, :, 2:]) - np.maximum(places[:, None, :2], places[None, :, :2])
    area = common.clip(min=0).prod(axis=2)
    assert (area - np.diag(np.diag(area))).max() == 0


def test_a_crowded_image_gets_a_legend(monkeypatch):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 180, (150, 2))
    labels = ["nucleus"] * 100 + ["cell"] * 50
    _, placed = labels_placed(monkeypatch, grey(200, 200), np.concatenate([low, low + 12], axis=1), labels)
    assert [label.text for label in sorted(placed, key=lambda label: label.place[1])] == ["nucleus × 100", "cell × 50"]


def test_scores_are_written_and_equal_labels_share_a_colour(monkeypatch):
    boxes = np.array([[10.0, 40, 60, 90], [100, 40, 150, 90], [200, 40, 250, 90]])
    _, placed = labels_placed(monkeypatch, grey(), boxes, ["b", "a", "b"], np.array([0.5, 0.875, 0.25]))
    assert {label.text for label in placed} == {"b 0.50", "a 0.88", "b 0.25"}
    assert len({label.colour for label in placed}) == 2


@pytest.mark.parametrize(
    "box", [[5, 5, 5, 5], [-100, -100, -50, -50], [500, 500, 600, 600], [np.nan] * 4, [0, 0, 1e6, 1e6]]
)
def test_strange_boxes_do_not_stop_drawing(box):
    assert draw_boxes(grey(), np.array([box], float), ["odd"], np.array([0.5])).size == (300, 200)


def test_tiny_and_empty_images():
    box = np.array([[0.0, 0, 1, 1]])
    assert draw_boxes(grey(1, 1), box, ["one"]).size == (1, 1)
    assert draw_boxes(grey(), np.zeros((0, 4)), []).getpixel((5, 5)) == (128, 128, 128)


def test_small_images_are_enlarged_by_whole_factors():
    box = np.array([[10.0, 10, 40, 40]])
    picture = draw_boxes(grey(50, 60), box, ["x"], class_ids=np.array([6]), min_side=120)
    assert picture.size == (180, 150)
    assert pixels_of(picture, colour_of(6))[:, 1].min() == 30
    assert draw_boxes(grey(50, 60), box, ["x"], min_side=50).size == (60, 50)


def test_masks_tint_their_pixels():
    plane = np.zeros((200, 300), np.uint8, order="F")
    plane[100:150, 100:200] = 1
    box = np.array([[100.0, 100, 200, 150]])
    picture = np.asarray(draw_boxes(grey(), box, ["m"], class_ids=np.array([0]), masks=[coco_mask.encode(plane)]))
    red, _, blue = picture[125, 150]
    assert red > 150
    assert blue < 100
    assert picture[60, 150].tolist() == [128] * 3


def test_pair_and_tile_keep_every_image():
    truth = (np.array([[10.0, 10, 60, 60]]), np.array([0]))
    found = (np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
    pair = draw_pair(grey(), truth, found, ("cat",), min_side=0)
    assert pair.width > 600
    assert pair.height > 200
    assert pixels_of(pair, colour_of(0))[:, 1].max() < 310

    sheet = tile([Image.new("RGB", (20 + k, 30), colour_of(k)) for k in range(5)], columns=2)
    assert all(len(pixels_of(sheet, colour_of(k))) == (20 + k) * 30 for k in range(5))
    with pytest.raises(UsageError, match="at least one"):
        tile([])


@pytest.mark.parametrize("shape", [(1, 30000), (20, 4000), (9000, 2)])
def test_thin_images_are_enlarged_no_further_than_memory_and_files_hold(tmp_path, shape):
    none = np.zeros((0, 4)), np.zeros(0, np.int64)
    pair = draw_pair(grey(*shape), none, (*none, np.zeros(0)), ("cat",))
    save_picture(pair, tmp_path / "pair.jpg")
    assert Image.open(tmp_path / "pair.jpg").size == pair.size


@pytest.mark.parametrize(("suffix", "most"), [("jpg", 65500), ("webp", 16383)])
def test_a_picture_is_no_larger_than_its_format_holds(tmp_path, suffix, most):
    picture = Image.new("RGB", (70000, 20))
    save_picture(picture, tmp_path / f"a.{suffix}")
    assert Image.open(tmp_path / f"a.{suffix}").width == most
    assert picture.width == 70000


def test_letters_of_many_languages_are_drawn():
    font = drawing.font_for((640, 480))
    unknown = bytes(font.getmask("\U0010fffd"))
    drawn = [bytes(font.getmask(letter)) for letter in "×äéøŁЖйΩñ–"]
    assert unknown not in drawn
    assert len(set(drawn)) == len(drawn)


def test_pillow_without_freetype_names_the_mend(monkeypatch):
    monkeypatch.setattr(fonts.features, "check", lambda _feature: False)
    with pytest.raises(MissingError, match="pip install"):
        drawing.font_for((640, 480))
