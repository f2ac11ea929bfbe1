"""Batches: the right pixels with the right boxes, the same whatever the workers, from whatever step."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from twostage.data import loader
from twostage.data.augment import Augment
from twostage.data.dataset import Dataset
from twostage.data.images import read_image
from twostage.data.loader import Loaded, evaluation_batches, training_batches
from twostage.data.randomness import mix
from twostage.data.recognise import open_dataset
from twostage.data.resize import Resize
from twostage.errors import DataError, TwostageError, UsageError

FULL = Augment(flip=0.5, vertical_flip=0.5, scale=(0.7, 1.4), crop=0.5, colour=0.5)


@pytest.fixture
def small(make_voc: Callable[..., Path]) -> Dataset:
    objects = [("cat", (3, 4, 30, 20)), ("dog", (10, 10, 50, 35))]
    return open_dataset(make_voc({f"{i:02d}": objects[: i % 3] for i in range(7)}), split="train")


def take(dataset: Dataset, number: int, **options: object) -> list[Loaded]:
    settings = {"resize": Resize(size=32), "augment": FULL, "batch": 3, "seed": 5} | options
    return list(itertools.islice(training_batches(dataset, **settings), number))


def equal(one: Loaded, two: Loaded) -> bool:
    pairs = [
        (one.batch.images, two.batch.images), (one.batch.sizes, two.batch.sizes),
        (one.targets.boxes, two.targets.boxes), (one.targets.labels, two.targets.labels),
        (one.targets.valid, two.targets.valid), (one.targets.seeds, two.targets.seeds), (one.indices, two.indices),
    ]  # fmt: skip
    return one.step == two.step and one.epoch == two.epoch and all(torch.equal(a, b) for a, b in pairs)


def test_images_boxes_and_seeds_of_a_batch(real_data: Path) -> None:
    dataset = open_dataset(real_data / "coco-photos", split="instances")
    resize = Resize(size=200, max_size=320)
    seen = []
    for loaded in evaluation_batches(dataset, resize=resize, batch=8, seed=3):
        seen += loaded.indices.tolist()
        for row, index in enumerate(loaded.indices.tolist()):
            height, width = loaded.batch.sizes[row].tolist()
            pixels = torch.from_numpy(read_image(dataset.path(index))).permute(2, 0, 1)
            old = pixels.shape[1:]
            assert (height, width) == resize.shape(*old)
            expected = interpolate(pixels[None].float() / 255, (height, width), mode="bilinear")[0]
            canvas = loaded.batch.images[row]
            torch.testing.assert_close(canvas[:, :height, :width], expected)
            assert canvas[:, height:].abs().sum() == 0
            assert canvas[:, :, width:].abs().sum() == 0
            objects = dataset.objects(index)
            learn = ~objects.crowd
            valid = loaded.targets.valid[row]
            factor = np.array([width / old[1], height / old[0]] * 2)
            np.testing.assert_allclose(loaded.targets.boxes[row][valid], objects.boxes[learn] * factor, rtol=1e-5)
            assert loaded.targets.labels[row][valid].tolist() == objects.labels[learn].tolist()
            assert loaded.targets.seeds[row] == mix(3, int(dataset.image_ids[index]))
    assert sorted(seen) == list(range(len(dataset)))


def test_difficult_objects_are_not_learned(make_voc: Callable[..., Path]) -> None:
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    objects = [f"<object><name>a</name><difficult>{d}</difficult>{box}</object>" for d in (1, 0)]
    dataset = open_dataset(make_voc({"a": f"<annotation>{''.join(objects)}</annotation>"}), split="train")
    (loaded,) = evaluation_batches(dataset, resize=Resize(size=40), batch=1)
    assert loaded.targets.valid.tolist() == [[True]]
    assert loaded.targets.boxes[0, 0].tolist() == [1, 1, 9, 9]


def test_workers_and_late_starts_change_nothing(small: Dataset) -> None:
    plain = take(small, 8)
    assert [(one.step, one.epoch) for one in plain] == [(i, i // 3) for i in range(8)]
    for options in ({"workers": 1}, {"workers": 2}):
        assert all(equal(a, b) for a, b in zip(plain, take(small, 8, **options), strict=True))
    assert all(equal(a, b) for a, b in zip(plain[4:], take(small, 4, start=4, workers=2), strict=True))


def test_an_image_is_augmented_otherwise_in_every_epoch(small: Dataset) -> None:
    views = [one.batch.images for one in take(small, 9, augment=Augment(flip=0.0, crop=1.0), batch=7)]
    assert len({round(float(v.sum()), 3) for v in views}) == 9


def test_processes_share_a_batch_and_uneven_shares_are_refused(small: Dataset) -> None:
    whole = take(small, 4, batch=4)
    for part in (0, 1):
        for one, all_ in zip(take(small, 4, batch=4, rank=part, world=2), whole, strict=True):
            assert one.indices.tolist() == all_.indices[2 * part : 2 * part + 2].tolist()
            assert one.targets.seeds.tolist() == all_.targets.seeds[2 * part : 2 * part + 2].tolist()
    with pytest.raises(UsageError, match="multiple of the 2"):
        take(small, 1, batch=3, world=2)


def test_images_without_objects_can_fill_a_batch(make_voc: Callable[..., Path]) -> None:
    dataset = open_dataset(make_voc({"a": [], "b": []}), split="train")
    (loaded,) = take(dataset, 1, batch=2)
    assert loaded.targets.boxes.shape == (2, 1, 4)
    assert not loaded.targets.valid.any()


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_vanish_or_change_are_named(small: Dataset, workers: int, make_image: Callable[..., Path]) -> None:
    path = small.path(2)
    make_image(path, 20, 20)
    with pytest.raises(DataError, match=r"02\.jpg: is 20 x 20 now, and was 60 x 40"):
        take(small, 3, workers=workers)
    path.unlink()
    with pytest.raises(DataError, match=r"02\.jpg: does not exist"):
        list(evaluation_batches(small, resize=Resize(size=32), batch=2, workers=workers))


def test_a_split_without_images_is_refused(make_voc: Callable[..., Path]) -> None:
    dataset = open_dataset(make_voc({"a": []}, train=["a"], empty=[""]), split="empty")
    with pytest.raises(DataError, match="'empty' has no images"):
        take(dataset, 1)


class Dying(loader.Reader):
    """A reader whose process is ended as soon as it is asked for anything."""

    def __getitem__(self, plan: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_reported_in_words(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "Reader", Dying)
    with pytest.raises(TwostageError, match="fewer --workers"):
        take(small, 1, workers=1)


def test_little_shared_memory_means_fewer_workers(
    small: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loader, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert equal(take(small, 1, workers=2)[0], take(small, 1)[0])
    assert "--shm-size" in caplog.text
