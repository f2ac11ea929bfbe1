"""Dealing images out: every one once, classes in their shares, equal images on one side, the same each time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twostage.data.check import check
from twostage.data.recognise import open_dataset
from twostage.data.split import split, stratify
from twostage.errors import DataError, UsageError


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=60),
    share=st.sampled_from([0.5, 0.7, 0.9]),
    seed=st.integers(0, 5),
)
def test_every_group_has_a_side_and_images_keep_their_shares(rows: list[list[int]], share: float, seed: int) -> None:
    counts = np.column_stack([np.array(rows, float).reshape(-1, 3), np.ones(len(rows))])
    sides = stratify(counts, [share, 1 - share], seed)
    assert set(sides.tolist()) <= {0, 1}
    assert (stratify(counts, [share, 1 - share], seed) == sides).all()


def test_classes_keep_their_shares() -> None:
    """A rare class is where a plain draw fails: in one split of a hundred images it may be wholly missing."""
    rng = np.random.default_rng(0)
    counts = np.column_stack([rng.integers(0, 6, 200), rng.random(200) < 0.05, rng.random(200) < 0.3, np.ones(200)])
    for seed in range(5):
        sides = stratify(counts.astype(float), [0.8, 0.2], seed)
        total = counts.sum(axis=0)
        off = np.abs(counts[sides == 1].sum(axis=0) - 0.2 * total)
        assert (off <= np.maximum(1, 0.04 * total)).all(), off


def dealt(root: Path, out: Path, **changes: object) -> dict[str, list[str]]:
    parts = {"train": 0.6, "val": 0.4}
    written = split(root, out, parts, **changes)
    names = {}
    for name in written.splits:
        dataset = open_dataset(out, split=name)
        names[name] = sorted(Path(dataset.file_name(i)).name for i in range(len(dataset)))
    return names


def test_each_image_once_and_twins_together(
    make_voc: Callable[..., Path], make_image: Callable[..., Path], tmp_path: Path
) -> None:
    """Splits of the source that share images do not double them."""
    stems = "abcdefghij"
    objects = [("dog", (2, 3, 20, 30))]
    root = make_voc(dict.fromkeys(stems, objects), train=stems[:5], val=stems[5:], trainval=stems)
    for stem in "cgj":
        make_image(root / "JPEGImages" / f"{stem}.jpg", seed=99)
    for seed in range(3):
        names = dealt(root, tmp_path / str(seed), seed=seed)
        assert sorted(names["train"] + names["val"]) == [f"{stem}.jpg" for stem in stems]
        assert len([side for side in names.values() if {"c.jpg", "g.jpg", "j.jpg"} & set(side)]) == 1
        assert "duplicate-image" not in {f.code for f in check(tmp_path / str(seed)).faults}


def test_the_same_seed_deals_the_same(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    objects = [
        {"id": i, "image_id": i, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0} for i in range(1, 13)
    ]
    root = make_coco(objects, images=12)
    one, same, other = (dealt(root, tmp_path / str(i), seed=seed) for i, seed in enumerate((3, 3, 4)))
    assert one == same
    assert one != other
    both = [open_dataset(tmp_path / "0", split=name) for name in ("train", "val")]
    assert sorted(i for d in both for i in d.image_ids.tolist()) == list(range(1, 13))


def test_masks_and_other_layouts(scenes_like: Path, tmp_path: Path) -> None:
    written = split(scenes_like, tmp_path / "out", {"a1": 0.5, "b1": 0.5}, to="voc", pictures="link")
    assert sum(images for images, _ in written.splits.values()) == 6
    dataset = open_dataset(tmp_path / "out", split="a1")
    assert dataset.masks is not None


@pytest.fixture
def scenes_like(tmp_path: Path) -> Path:
    from twostage.data.scenes import write_scenes

    return write_scenes(tmp_path / "scenes", train=4, val=2)


def test_what_cannot_be_dealt(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    root = make_coco([], images=2)
    with pytest.raises(UsageError, match=r"0\.8 \+ 0\.3 is 1\.1"):
        split(root, tmp_path / "out", {"train": 0.8, "val": 0.3})
    with pytest.raises(UsageError, match="above 0"):
        split(root, tmp_path / "out", {"train": 1.0, "val": 0.0})
    with pytest.raises(DataError, match="leave none for 'test'"):
        split(root, tmp_path / "out", {"train": 0.5, "val": 0.4, "test": 0.1})
    assert not (tmp_path / "out").exists()
