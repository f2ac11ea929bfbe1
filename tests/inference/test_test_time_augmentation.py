"""Several views of one image: boxes of each in its own pixels, fused into one result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from twostage.cli import main
from twostage.data.batch import Batch
from twostage.data.dataset import Dataset
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.detections import Detections
from twostage.detector import Detector
from twostage.errors import DataError, UsageError
from twostage.inference import test_time_augmentation as module
from twostage.inference.prepare import PreparedModel
from twostage.inference.test_time_augmentation import TestTimeAugmentation, detect_augmented, fuse, windows
from twostage.models.heads.postprocess import BatchDetections, PostprocessConfig
from twostage.models.image import ImageConfig
from twostage.ops import masks as rle_masks

HEIGHT, WIDTH = 90, 140
OBJECTS = np.array([[10, 10, 30, 40], [60, 20, 100, 60], [110, 50, 138, 88]], dtype=np.float32)


@pytest.fixture
def image() -> np.ndarray:
    """Rectangles of three colours, which `seeing` finds."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for k, (x1, y1, x2, y2) in enumerate(OBJECTS.astype(int)):
        pixels[y1:y2, x1:x2, k] = 200
    return pixels


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Instead of a network: boxes and masks of the visible rectangles; records the sizes of the images."""
    asked: list[tuple[int, int, int]] = []

    def seeing(
        model: object, images: list[np.ndarray], names: tuple[str, ...], *, image: ImageConfig, **_: object
    ) -> list[Detections]:
        asked.extend((*pixels.shape[:2], image.size) for pixels in images)
        return [one(pixels, names) for pixels in images]

    def one(pixels: np.ndarray, names: tuple[str, ...]) -> Detections:
        boxes, masks, ids = [], [], []
        for k in range(3):
            inside = pixels[..., k] > 100
            if inside.any():
                y, x = np.nonzero(inside)
                boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                masks.append(inside)
                ids.append(k)
        return Detections(
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            scores=np.linspace(0.9, 0.8, len(ids)).astype(np.float32),
            class_ids=np.array(ids, np.int64),
            masks=rle_masks.encode(np.array(masks, dtype=bool).reshape(-1, *pixels.shape[:2])),
            names=names,
            size=pixels.shape[:2],
        )

    monkeypatch.setattr(module, "detect_images", seeing)
    return asked


def seen(image: np.ndarray, **how: object) -> Detections:
    model = Detector.build("mask_rcnn_tiny_fpn", ["a", "b", "c"], device="cpu").prepared
    config = model.config.postprocess
    return detect_augmented(model, image, ("a", "b", "c"), postprocess=config, views=TestTimeAugmentation(**how))  # type: ignore[arg-type]


@pytest.mark.parametrize("fused", ["nms", "wbf"])
@pytest.mark.parametrize(
    "how", [{"flip": True}, {"scales": (0.5, 1.0, 2.0)}, {"tile": 64}, {"flip": True, "tile": 50, "scales": (1.0, 1.5)}]
)
def test_all_views_agree_on_one_answer(
    image: np.ndarray, looks: list[tuple[int, int, int]], how: dict, fused: str
) -> None:
    found = seen(image, **how, fuse=fused)
    order = np.argsort(found.class_ids)
    assert found.class_ids[order].tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.boxes[order], OBJECTS, atol=1e-3)
    # All views that could see an object have seen it: tiles that cut it, or show others, take nothing from its score.
    assert found.scores.min() >= 0.8
    for k, mask in zip(found.class_ids, rle_masks.decode(found.masks), strict=True):
        assert (mask == (image[..., k] > 100)).all()
    assert len(looks) > 1


def test_scales_are_of_the_models_size(image: np.ndarray, looks: list[tuple[int, int, int]]) -> None:
    seen(image, scales=(0.5, 2.0))
    assert [size for *_, size in looks] == [160, 640]


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    tile=st.integers(32, 200),
    overlap=st.floats(0, 0.89),
)
def test_tiles_cover_the_image_and_overlap(height: int, width: int, tile: int, overlap: float) -> None:
    whole, *tiles = windows(height, width, TestTimeAugmentation(tile=tile, overlap=overlap))
    assert whole == (0, 0, height, width)
    if max(height, width) <= tile:
        assert not tiles
        return
    covered = np.zeros((height, width), dtype=int)
    for top, left, rows, columns in tiles:
        assert top >= 0
        assert top + rows <= height
        assert left + columns <= width
        covered[top : top + rows, left : left + columns] += 1
    assert covered.min() >= 1
    for axis, side in ((0, height), (1, width)):
        starts = sorted({one[axis] for one in tiles})
        steps = np.diff(starts)
        assert side <= tile or (steps <= tile * (1 - overlap) + 1).all()


def test_a_cut_box_yields_to_the_whole_one(image: np.ndarray, looks: list[tuple[int, int, int]]) -> None:
    """Tiles of 50 cut the second rectangle in several pieces."""
    found = seen(image, tile=50, overlap=0.0)
    assert sorted(found.class_ids.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(("whole", "kept"), [(0.8, [0.8]), (0.2, [0.9])])
def test_a_sure_part_does_not_yield_to_a_doubtful_whole(whole: float, kept: list[float]) -> None:
    boxes = np.array([[10.0, 10, 58, 60], [10, 10, 60, 60]])
    part = module._parts_of_others(boxes, np.array([0.9, whole]), np.zeros(2, np.int64), np.array([True, False]))
    scores = np.array([0.9, whole])[~part]
    assert scores.max() == kept[0]


def test_weighted_fusion_asks_for_one_box_of_an_object_and_view(image: np.ndarray, monkeypatch) -> None:
    """Soft-NMS leaves weakened copies, and a mean over them would be too low."""
    asked = []
    monkeypatch.setattr(
        module, "detect_images", lambda *a, postprocess, **_: asked.append(postprocess) or [two(image)] * len(a[1])
    )
    seen(image, scales=(1.0, 2.0), fuse="wbf")
    assert [(config.soft_nms, config.nms) for config in asked] == [("off", 0.5)] * 2


@pytest.mark.parametrize(("soft", "scores"), [("linear", [0.9, 0.8 * 0.4]), ("off", [0.9])])
def test_a_neighbour_is_weakened_once_for_all_views_together(
    image: np.ndarray, monkeypatch, soft: str, scores: list[float]
) -> None:
    asked = []
    monkeypatch.setattr(
        module, "detect_images", lambda *a, postprocess, **_: asked.append(postprocess) or [two(image)] * len(a[1])
    )
    model = Detector.build("faster_rcnn_tiny_fpn", ["a", "b", "c"], device="cpu", soft_nms=soft).prepared
    found = detect_augmented(
        model,
        image,
        ("a", "b", "c"),
        postprocess=model.config.postprocess,
        views=TestTimeAugmentation(scales=(1.0, 2.0)),
    )
    assert found.scores.tolist() == pytest.approx(scores)
    assert [config.soft_nms for config in asked] == ["off"] * 2
    assert all(config.nms > 0.6 for config in asked) == (soft != "off"), "a view must not drop what is to be weakened"


def test_every_tile_has_the_most_detections(image: np.ndarray, looks: list[tuple[int, int, int]]) -> None:
    model = Detector.build("mask_rcnn_tiny_fpn", ["a", "b", "c"], device="cpu", max_det=1).prepared
    for fused in ("nms", "wbf"):
        views = TestTimeAugmentation(tile=64, fuse=fused)
        assert (
            len(detect_augmented(model, image, ("a", "b", "c"), postprocess=model.config.postprocess, views=views)) == 3
        )


def two(image: np.ndarray) -> Detections:
    """Neighbours with an IoU of 0.6."""
    return Detections(
        boxes=np.array([[0, 0, 40, 40], [10, 0, 50, 40]], np.float32),
        scores=np.array([0.9, 0.8], np.float32),
        class_ids=np.zeros(2, np.int64),
        names=("a", "b", "c"),
        size=image.shape[:2],
    )


def test_fusion_is_the_papers() -> None:
    """Section 3: the mean weighed by scores; what one of two models saw has half its score."""
    boxes = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60], [0, 0, 10, 10]], dtype=float)
    scores, ids = np.array([0.9, 0.3, 0.8, 0.5]), np.array([0, 0, 0, 1])
    fused, together, best = fuse(boxes, scores, ids, 2)
    assert best.tolist() == [0, 2, 3]
    np.testing.assert_allclose(fused[0], [0.5, 0, 10.5, 10])
    np.testing.assert_allclose(together, [0.6, 0.4, 0.25])
    nothing = fuse(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), 2)
    assert [len(part) for part in nothing] == [0, 0, 0]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"scales": (0.01,)}, "factors"),
        ({"tile": 5}, "32 pixels"),
        ({"tile": 64, "overlap": 0.95}, "below 0.9"),
        ({"overlap": 0.5}, "there are no tiles"),
        ({"fuse": "wbf"}, "one view alone"),
    ],
)
def test_values_out_of_range(how: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TestTimeAugmentation(**how)


@pytest.mark.parametrize(
    ("name", "value"),
    [("fuse", "wfb"), ("scales", ()), ("scales", 1.5), ("scales", ("a",)), ("tile", 64.5), ("flip", "no")],
)
def test_values_of_other_kinds_are_refused_where_no_types_are_checked(name: str, value: object) -> None:
    """This suite checks them, users' programs do not."""
    views = TestTimeAugmentation()
    object.__setattr__(views, name, value)
    with pytest.raises(UsageError, match=rf"^{name} cannot be .*: it takes "):
        views.__post_init__()


@pytest.mark.parametrize("soft_nms", ["off", "linear", "gaussian"])
@pytest.mark.parametrize("how", [{"flip": True}, {"tile": 40}, {"flip": True, "fuse": "wbf"}])
def test_nothing_found_in_any_view(soft_nms: str, how: dict) -> None:
    detector = Detector.build("mask_rcnn_tiny_fpn", ["a", "b"], device="cpu", soft_nms=soft_nms)
    found = detector.predict(np.zeros((64, 80, 3), dtype=np.uint8), conf=0.99, views=TestTimeAugmentation(**how))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.masks == []


def test_one_view_is_the_plain_prediction(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = Detector.build("mask_rcnn_tiny_fpn", ["a", "b"], device="cpu", score_threshold=0.0, soft_nms="off")
    image = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    plain = detector.predict(image, conf=0.0)
    again = detect_augmented(
        detector.prepared,
        image,
        detector.names,
        postprocess=detector.postprocess(0.0, None, None),
        views=TestTimeAugmentation(),
    )
    np.testing.assert_allclose(again.boxes, plain.boxes, atol=1e-3)
    assert again.masks == plain.masks


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"flip": True, "scales": (1.0, 1.25)}, {"tile": 48}])
def test_no_detection_depends_on_how_many_views_go_together(how: dict) -> None:
    torch.manual_seed(0)
    detector = Detector.build("mask_rcnn_tiny_fpn", ["a", "b"], device="cpu", score_threshold=0.0, size=96)
    image = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    one, many = (detector.predict(image, conf=0.0, views=TestTimeAugmentation(**how), batch=batch) for batch in (1, 4))
    assert len(one.scores) == len(many.scores) > 0
    np.testing.assert_allclose(many.boxes, one.boxes, atol=1e-2)
    np.testing.assert_allclose(many.scores, one.scores, atol=1e-4)


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = write_scenes(tmp_path / "scenes", train=1, val=2)
    detector = Detector.build("mask_rcnn_tiny_fpn", open_dataset(scenes, split="val").names, device="cpu", size=64)
    detector.save(tmp_path / "w.safetensors")
    more = ["--flip", "--scales", "1", "1.5", "--tile", "128", "--fuse", "wbf", "--conf", "0.0", "--json"]
    call = ["--weights", str(tmp_path / "w.safetensors"), *more]
    assert main(["eval", str(scenes), *call]) == 0
    assert "segm" in json.loads(capsys.readouterr().out)
    picture = tmp_path / "p.png"
    Image.fromarray(np.zeros((200, 300, 3), np.uint8)).save(picture)
    assert main(["predict", str(picture), *call]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["width"] == 300


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_an_image_of_a_pixel_is_mirrored(size: tuple[int, int]) -> None:
    """Its reversed view has a negative stride, and numpy calls it contiguous."""
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu")
    found = detector.predict(np.zeros((*size, 3), np.uint8), conf=0.0, views=TestTimeAugmentation(flip=True))
    assert found.size == size


def test_an_image_of_which_no_view_can_be_taken_is_named_and_the_others_are_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without views: an exported file may refuse small images."""
    detector = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", size=64, max_size=64, choose_forms=False)
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, height in zip(files, (60, 6, 60), strict=True):
        Image.new("RGB", (64, height)).save(file)
    detect = PreparedModel.detect

    def large_alone(self: PreparedModel, batch: Batch, config: PostprocessConfig) -> BatchDetections:
        if int(batch.sizes.min()) < 32:
            raise DataError("too small")
        return detect(self, batch, config)

    monkeypatch.setattr(PreparedModel, "detect", large_alone)
    views = TestTimeAugmentation(flip=True)
    found = []
    with pytest.raises(DataError, match=r"1\.png \(64 x 6 pixels\): too small"):
        found.extend(detector.predict(list(map(str, files)), views=views))
    assert [one.path for one in found] == [str(files[0]), str(files[2])]
    data = Dataset.from_samples([(file, [], []) for file in files], detector.names)
    with pytest.raises(DataError, match=r"1\.png \(64 x 6 pixels\): too small"):
        detector.detect_dataset(data, views=views)
