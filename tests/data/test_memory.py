"""A data set made in memory is the data set that the same images and boxes make as files."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco
from PIL import Image

import twostage
from twostage.data import Kind
from twostage.data.augment import Augment
from twostage.data.dataset import Dataset, difference, join, select_images
from twostage.data.loader import Loaded, evaluation_batches, training_batches
from twostage.data.recognise import open_dataset
from twostage.data.resize import Resize
from twostage.data.stats import stats
from twostage.data.write import write_dataset
from twostage.errors import DataError, UsageError

NAMES = ("cat", "dog", "owl")
SHAPES = ((40, 60), (64, 48), (50, 50), (40, 60))


def arrays(*, masks: bool = True) -> list[tuple[Any, ...]]:
    """Samples of noise: image 2 has no objects, the masks are halves of the boxes."""
    rng = np.random.default_rng(5)
    samples = []
    for index, (height, width) in enumerate(SHAPES):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        count = 0 if index == 2 else index + 1
        corners = rng.integers(0, 20, (count, 2))
        boxes = np.concatenate([corners, corners + rng.integers(4, 20, (count, 2))], axis=1).astype(np.float32)
        labels = rng.integers(0, 3, count)
        grids = np.zeros((count, height, width), dtype=bool)
        for grid, (x1, y1, x2, y2) in zip(grids, boxes.astype(int), strict=True):
            grid[y1:y2, x1 : (x1 + x2 + 1) // 2] = True
        samples.append((image, boxes, labels, grids) if masks else (image, boxes, labels))
    return samples


def assert_equal_batches(first: Iterator[Loaded], second: Iterator[Loaded], count: int | None = None) -> None:
    seen = 0
    for one, two in zip(first, second, strict=count is None):
        tensors = [
            (one.batch.images, two.batch.images),
            (one.batch.sizes, two.batch.sizes),
            (one.targets.boxes, two.targets.boxes),
            (one.targets.labels, two.targets.labels),
            (one.targets.valid, two.targets.valid),
            (one.targets.seeds, two.targets.seeds),
            (one.indices, two.indices),
        ]
        if one.targets.masks is not None:
            assert two.targets.masks is not None
            tensors += zip(one.targets.masks, two.targets.masks, strict=True)
        assert all(torch.equal(a, b) for a, b in tensors)
        seen += 1
        if seen == count:
            return
    assert seen


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_the_same_data_set_from_files_is_equal(tmp_path: Path, kind: Kind) -> None:
    made = twostage.Dataset.from_samples(arrays(), NAMES)
    (root := tmp_path / "files").mkdir()
    write_dataset(root, [made], kind)
    opened = open_dataset(root, split="train")
    assert difference(made, opened, range(len(made))) == ""
    for index in range(len(made)):
        assert np.array_equal(made.image(index), opened.image(index))
        assert made.masks_of(index) == opened.masks_of(index)
    assert stats(made, Resize()) == stats(opened, Resize())
    resize = Resize(size=48, max_size=64)
    augment = Augment(flip=0.5, scale=(0.6, 1.6), crop=0.5, colour=0.5)
    for workers in (0, 2):
        streams = (
            training_batches(d, resize=resize, augment=augment, batch=2, seed=3, workers=workers, masks=True)
            for d in (made, opened)
        )
        assert_equal_batches(*streams, count=6)
    assert_equal_batches(*(evaluation_batches(d, resize=resize, batch=2, masks=True) for d in (made, opened)))


def test_paths_images_arrays_and_lists_are_the_same_sample(tmp_path: Path) -> None:
    samples = arrays()
    for index, (image, *_) in enumerate(samples):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    made = Dataset.from_samples(samples, NAMES)

    def rles(grids: np.ndarray) -> list[Any]:
        return [coco.encode(np.asfortranarray(grid).view(np.uint8)) for grid in grids]

    otherwise: Sequence[Any] = [
        ((tmp_path / f"{i}.png", b.tolist(), [NAMES[c] for c in c], rles(m)) for i, (_, b, c, m) in enumerate(samples)),
        ((Image.open(tmp_path / f"{i}.png"), b, list(c), list(m)) for i, (_, b, c, m) in enumerate(samples)),
        ((str(tmp_path / f"{i}.png"), torch.tensor(b), torch.tensor(c), torch.tensor(m).to(torch.uint8))
         for i, (_, b, c, m) in enumerate(samples)),
    ]  # fmt: skip
    for some in otherwise:
        other = Dataset.from_samples(some, NAMES)
        assert difference(made, other, range(len(made))) == ""
        assert all(np.array_equal(made.image(i), other.image(i)) for i in range(len(made)))


def test_a_torchvision_data_set_is_one_line(tmp_path: Path) -> None:
    detection = [
        (Image.fromarray(image), {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)})
        for image, boxes, labels in arrays(masks=False)
    ]
    made = Dataset.from_samples(((image, t["boxes"], t["labels"]) for image, t in detection), NAMES)
    assert difference(Dataset.from_samples(arrays(masks=False), NAMES), made, range(len(made))) == ""
    assert made.masks is None


def test_files_are_not_decoded_before_they_are_needed(tmp_path: Path, make_image: Callable[..., Path]) -> None:
    paths = [make_image(tmp_path / "a" / "1.png"), make_image(tmp_path / "b" / "1.png", 30, 20)]
    made = Dataset.from_samples([(path, [[1, 2, 9, 9]], ["cat"]) for path in paths], NAMES, split="val")
    assert (made.root, made.split, made.sizes.tolist()) == (tmp_path, "val", [[40, 60], [30, 20]])
    assert [made.file_name(i) for i in range(2)] == ["a/1.png", "b/1.png"]
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(DataError, match=r"b/1\.png: is 60 x 40 now, and was 20 x 30"):
        made.image(1)


def test_selected_and_joined_images_keep_their_pixels(tmp_path: Path, make_image: Callable[..., Path]) -> None:
    made = Dataset.from_samples(arrays(masks=False), NAMES)
    from_file = Dataset.from_samples([(make_image(tmp_path / "1.png"), [], [])], NAMES)
    whole = join([from_file, select_images(made, np.array([3, 1]))])
    assert np.array_equal(whole.image(0), from_file.image(0))
    assert np.array_equal(whole.image(1), made.image(3))
    assert np.array_equal(whole.image(2), made.image(1))


def test_repairable_boxes_are_mended_as_those_of_files() -> None:
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    boxes = [[1, 2, 9, 9], [50, 30, 70, 38], [9, 9, 3, 20], [70, 1, 80, 9]]
    made = Dataset.from_samples([(image, boxes, [0, 1, 1, 2])], NAMES)
    assert made.boxes.tolist() == [[1, 2, 9, 9], [50, 30, 60, 38]]
    assert [(f.code, f.file, f.object) for f in made.faults] == [
        ("inverted-box", "sample 0", "object 2"),
        ("box-outside", "sample 0", "object 3"),
        ("box-partly-outside", "sample 0", "object 1"),
    ]
    with pytest.raises(DataError, match="inverted-box repair sample 0:object 2"):
        Dataset.from_samples([(image, boxes, [0, 1, 1, 2])], NAMES, on_error="fail")


IMAGE = np.zeros((40, 60, 3), dtype=np.uint8)
BOX = [[1, 2, 9, 9]]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ((IMAGE, BOX, [7]), r"sample 1:object 0: the label 7 is neither .* nor a whole number from 0 to 2"),
        ((IMAGE, BOX, [-1]), r"sample 1:object 0: the label -1"),
        ((IMAGE, BOX, [1.5]), r"sample 1:object 0: the label 1\.5"),
        ((IMAGE, BOX, ["cta"]), r"sample 1:object 0: there is no class 'cta'. Did you mean 'cat'"),
        ((IMAGE, [[1, 2, float("nan"), 9]], [0]), r"box-not-numbers error sample 1:object 0.*nan"),
        ((IMAGE, BOX, [0], np.zeros((1, 30, 60), bool)), r"sample 1:object 0: the mask has 60 x 30"),
        ((IMAGE, BOX, [0], [{"size": [40, 60], "counts": "!"}]), r"broken-mask error sample 1:object 0"),
        (("gone.png", BOX, [0]), r"missing-image error .*gone\.png"),
    ],
)  # fmt: skip
def test_wrong_values_are_named_by_sample(sample: tuple[Any, ...], message: str) -> None:
    good = (IMAGE, BOX, [0])
    with pytest.raises(DataError, match=message):
        Dataset.from_samples([good, sample], NAMES)
    skipped = Dataset.from_samples([good, sample, good], NAMES, on_error="skip")
    assert skipped.image_ids.tolist() in ([1, 2, 3], [1, 3])
    assert np.array_equal(skipped.image(len(skipped) - 1), IMAGE)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("a.jpg", r"sample 1 is a str; it must be \(image, boxes, labels\)"),
        ((IMAGE, BOX), r"sample 1 is a tuple of 2; it must be \(image, boxes, labels\)"),
        ((IMAGE.transpose(2, 0, 1), BOX, [0]), r"sample 1: the image is ndarray uint8 \[3, 40, 60\].*transpose\(1"),
        ((IMAGE / 255, BOX, [0]), r"sample 1: the image is ndarray float64 \[40, 60, 3\].*uint8 \[h, w, 3\]"),
        ((IMAGE[:, :, 0], BOX, [0]), r"sample 1: the image is ndarray uint8 \[40, 60\]"),
        ((IMAGE[:0], BOX, [0]), r"sample 1: the image .* has no pixels"),
        ((None, BOX, [0]), r"sample 1: the image is None"),
        ((IMAGE, [1, 2, 9, 9], [0]), r"sample 1: boxes are \[1, 2, 9, 9\]; .*\[n, 4\]"),
        ((IMAGE, np.ones((1, 5)), [0]), r"sample 1: boxes are ndarray float64 \[1, 5\]"),
        ((IMAGE, [[1, 2, 3], [1]], [0]), r"sample 1: boxes are"),
        ((IMAGE, BOX, [0, 1]), r"sample 1: 1 boxes and 2 labels"),
        ((IMAGE, BOX, 0), r"sample 1: labels and masks must be lists"),
        ((IMAGE, BOX, np.array(0.0)), r"sample 1: 1 boxes and no list of labels"),
        ((IMAGE, BOX, [0], []), r"sample 1: 1 boxes and 0 masks"),
    ],
)  # fmt: skip
def test_wrong_shapes_are_named_by_sample(sample: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Dataset.from_samples([(IMAGE, BOX, [0]), sample], NAMES)


@pytest.mark.parametrize("names", [(), ("cat", "cat"), "cat"])
def test_names_must_be_different_texts(names: Any) -> None:
    with pytest.raises(UsageError, match="names"):
        Dataset.from_samples([(IMAGE, BOX, [0])], names)


def test_no_samples_are_no_data_set() -> None:
    with pytest.raises(UsageError, match="no samples"):
        Dataset.from_samples([], NAMES)


def test_probabilities_are_no_mask() -> None:
    soft = np.full((1, 64, 64), 0.3, dtype=np.float32)
    with pytest.raises(DataError, match=r"values other than 0 and 1.*mask > 0\.5"):
        Dataset.from_samples([(np.zeros((64, 64, 3), np.uint8), [[0, 0, 9, 9]], [0], soft)], ["a"])
    Dataset.from_samples([(np.zeros((64, 64, 3), np.uint8), [[0, 0, 9, 9]], [0], soft > 0.2)], ["a"])


def test_images_may_be_on_several_drives(
    make_image: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Windows, whose paths have no folder in common then."""

    def refuse(paths: set[str]) -> str:
        raise ValueError("Paths don't have the same drive")

    paths = [make_image(tmp_path / f"{name}.png") for name in "ab"]
    monkeypatch.setattr("os.path.commonpath", refuse)
    dataset = Dataset.from_samples([(path, [[1, 2, 9, 9]], [0]) for path in paths], NAMES)
    assert [dataset.path(i) for i in range(2)] == paths
