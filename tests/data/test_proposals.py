import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from twostage.data.augment import Augment, Sample
from twostage.data.dataset import Dataset
from twostage.data.flat import FlatStrings
from twostage.data.loader import PrecomputedProposals, evaluation_batches, training_batches
from twostage.data.proposals import (
    ProposalSet,
    is_proposals_file,
    merge_proposals,
    read_proposals,
    require_distinct_splits,
    warn_few_proposals,
    write_proposals,
)
from twostage.data.recognise import open_dataset
from twostage.data.resize import Resize
from twostage.errors import DataError, MissingError, UsageError

OBJECT = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [5, 5, 20, 10], "area": 200, "iscrowd": 0}


@pytest.fixture
def dataset(make_coco: Callable[..., Path]) -> Dataset:
    """Two images of 60 x 40."""
    return open_dataset(make_coco([OBJECT]), split="train")


def some(counts: tuple[int, ...] = (3, 2), seed: int = 0) -> ProposalSet:
    rng = np.random.default_rng(seed)

    def image(count: int) -> tuple[np.ndarray, np.ndarray]:
        corner, side = rng.uniform(0, 20, (count, 2)), rng.uniform(5, 20, (count, 2))
        return np.concatenate([corner, corner + side], axis=1), rng.random(count)

    return ProposalSet.of((image(count) for count in counts), "some")


def test_images_boxes_are_sorted_by_score() -> None:
    boxes = np.arange(12.0).reshape(3, 4)
    found = ProposalSet.of([(boxes, np.array([0.1, 0.9, 0.9])), (boxes[:0], np.zeros(0))], "x")
    np.testing.assert_array_equal(found.best(0, 2)[0], boxes[[1, 2]])  # equal ones in the order given
    assert len(found) == 2
    assert len(found.best(1, 5)[0]) == 0
    np.testing.assert_array_equal(found.select([1, 0]).best(1, 9)[1], np.float32([0.9, 0.9, 0.1]))


def test_file_gives_back_what_was_written(dataset: Dataset, tmp_path: Path) -> None:
    path, written = tmp_path / "p.safetensors", some()
    write_proposals(path, [(dataset, written)], keep=2)
    read = read_proposals(path, dataset)
    for i in range(2):
        for a, b in zip(read.best(i, 9), written.best(i, 2), strict=True):
            np.testing.assert_array_equal(a, b)
    assert is_proposals_file(path)
    assert not is_proposals_file(tmp_path / "none.safetensors")


def test_a_file_holds_splits_whose_images_share_names(dataset: Dataset, tmp_path: Path) -> None:
    other, path = replace(dataset, split="val"), tmp_path / "p.safetensors"
    write_proposals(path, [(dataset, some(seed=1)), (other, some(seed=2))], keep=9)
    np.testing.assert_array_equal(read_proposals(path, other).boxes, some(seed=2).boxes)
    np.testing.assert_array_equal(read_proposals(path, dataset).boxes, some(seed=1).boxes)


def entries(**changes: Any) -> list[dict[str, Any]]:
    first = {"image_id": 1, "bbox": [1, 2, 10, 20], "score": 0.5} | changes
    return [first, {"file_name": "2.jpg", "bbox": [0, 0, 70, 30], "score": 1}]


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "p.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_json_is_read_and_clipped(dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read_proposals(written(tmp_path, entries()), dataset)
    np.testing.assert_array_equal(found.boxes, np.float32([[1, 2, 11, 22], [0, 0, 60, 30]]))
    assert "1 proposals reach over the border" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [1, 2, float("nan"), 4]}, r"1\.jpg .*proposal 0 .*is not a number"),
        ({"bbox": [1, 2, 3]}, "entry 0 .*four numbers"),
        ({"bbox": [1, 2, -3, 4]}, r"1\.jpg .*has no area"),
        ({"bbox": [100, 2, 3, 4]}, r"1\.jpg \(60 x 40\).*lies outside the image"),
        ({"score": float("inf")}, "is not a number"),
        ({"score": "high"}, "entry 0 .*is not a proposal"),
        ({"score": 10**400}, "entry 0 .*is not a proposal"),
        ({"image_id": None}, "entry 0"),
    ],
)
def test_faulty_entries_are_named(dataset: Dataset, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_proposals(written(tmp_path, entries(**changes)), dataset)


def test_an_image_without_entries_has_no_proposals_but_not_all_of_them(dataset: Dataset, tmp_path: Path) -> None:
    found = read_proposals(written(tmp_path, entries(image_id=9)), dataset)
    assert np.diff(found.offsets).tolist() == [0, 1]
    with pytest.raises(DataError, match=r"no proposals for 2 of the 2 images .*belongs to other images"):
        read_proposals(written(tmp_path, [{**entries()[0], "image_id": 9}]), dataset)


def test_entries_of_another_split_are_passed_over(dataset: Dataset, tmp_path: Path) -> None:
    both = [{**entries()[0], "split": "train"}, {**entries()[0], "split": "val", "bbox": [5, 5, 5, 5]}]
    path = written(tmp_path, both)
    found = read_proposals(path, dataset)
    np.testing.assert_array_equal(found.boxes, np.float32([[1, 2, 11, 22]]))
    require_distinct_splits(path, dataset, replace(dataset, split="val"))


def test_a_json_that_would_serve_two_splits_alike_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    """VOC's and YOLO's ids begin at 1 in every split."""
    path = written(tmp_path, entries())
    with pytest.raises(DataError, match='Add "split" to each'):
        require_distinct_splits(path, dataset, replace(dataset, split="val"))
    other = replace(dataset, split="val", image_ids=dataset.image_ids + 10, files=FlatStrings.of(["a", "b"]))
    require_distinct_splits(path, dataset, other)


def test_shares_of_several_processes_come_together() -> None:
    whole = some((3, 2, 4))
    shares = [
        ProposalSet.of((whole.best(i, 9) if i % 2 == rank else (np.zeros((0, 4)), np.zeros(0)) for i in range(3)), "x")
        for rank in range(2)
    ]
    found = merge_proposals(shares)
    np.testing.assert_array_equal(found.boxes, whole.boxes)
    np.testing.assert_array_equal(found.offsets, whole.offsets)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_as_windows_shell_writes_it(dataset: Dataset, tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, entries())
    path.write_text(path.read_text(), encoding=encoding)
    assert len(read_proposals(path, dataset).boxes) == len(entries())


@pytest.mark.parametrize("content", ["{", "{}", '[1, "x"]', "[" * 100000])
def test_what_is_no_list_of_proposals(dataset: Dataset, tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"p\.json"):
        read_proposals(written(tmp_path, content), dataset)


def test_files_that_are_not_there_or_others(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="twostage data proposals"):
        read_proposals(tmp_path / "none.safetensors", dataset)
    with pytest.raises(UsageError, match="Name the file itself"):
        read_proposals(tmp_path, dataset)
    save_file({"x": np.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(DataError, match="not one of proposals"):
        read_proposals(tmp_path / "weights.safetensors", dataset)
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(DataError, match="not a readable file of proposals"):
        read_proposals(tmp_path / "broken.safetensors", dataset)


@pytest.mark.parametrize("change", ["boxes", "offsets", "split", "size"])
def test_files_that_contradict_themselves_or_the_images(dataset: Dataset, tmp_path: Path, change: str) -> None:
    path = tmp_path / "p.safetensors"
    write_proposals(path, [(dataset, some())], keep=9)
    if change in ("boxes", "offsets"):
        with safe_open(path, "np") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        tensors[change] = tensors[change][:-1]
        save_file(tensors, path, metadata)
        with pytest.raises(DataError, match="not a readable file of proposals"):
            read_proposals(path, dataset)
        return
    changed = (
        replace(dataset, sizes=dataset.sizes * 2)
        if change == "size"
        else replace(dataset, files=FlatStrings.of(["a", "b"]))
    )
    with pytest.raises(DataError, match="of another image" if change == "size" else "belongs to other images"):
        read_proposals(path, changed)


def test_images_without_proposals_are_said(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "twostage")
    warn_few_proposals(some((0, 2)), dataset, 5)
    assert "1 of 2 images have no proposals" in caplog.text
    assert "1.jpg" in caplog.text
    assert "1 of 2 images have fewer than 5 proposals, the fewest 2" in caplog.text


@pytest.mark.parametrize("training", [True, False])
def test_batches_carry_proposals_on_their_pixels(dataset: Dataset, training: bool) -> None:
    given = PrecomputedProposals(some(), 4)
    resize = Resize(size=80, max_size=200)
    if training:
        batches = training_batches(dataset, resize=resize, augment=None, batch=2, seed=0, proposals=given)
    else:
        batches = evaluation_batches(dataset, resize=resize, batch=2, proposals=given)
    loaded = next(batches)
    proposals = loaded.batch.proposals
    assert proposals is not None
    assert proposals.boxes.shape == (2, 4, 4)
    for row, index in enumerate(loaded.indices.tolist()):
        boxes, scores = given.all.best(index, 4)
        assert proposals.valid[row].tolist() == [True] * len(boxes) + [False] * (4 - len(boxes))
        np.testing.assert_allclose(proposals.boxes[row][: len(boxes)], boxes * 2, rtol=1e-6)
        np.testing.assert_array_equal(proposals.scores[row][: len(boxes)], scores)
    (part,) = loaded.batch.split(2)
    assert part.proposals is not None
    assert part.proposals.boxes.equal(proposals.boxes)
    assert [one.proposals.boxes.shape[0] for one in loaded.batch.split(1) if one.proposals] == [1, 1]


def test_proposals_move_with_the_image() -> None:
    boxes = torch.tensor([[1.0, 2, 11, 12], [30, 5, 50, 20]])
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    proposals = torch.cat([boxes, torch.tensor([[0.5], [0.25]])], dim=1)
    augment = Augment(flip=1.0, scale=(0.5, 2.0), crop=0.5)
    for seed in range(20):
        sample = augment.geometry(Sample(image, boxes, torch.tensor([0, 1]), proposals), np.random.default_rng(seed))
        assert sample.proposals is not None
        assert sample.proposals[:, :4].equal(sample.boxes)
        assert sample.proposals[:, 4].tolist() == [[0.5, 0.25][label] for label in sample.labels.tolist()]
