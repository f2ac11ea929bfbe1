"""Selective search, sliding windows, and the cache of their boxes."""

import logging
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from twostage.data.dataset import Dataset
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.errors import DataError, MissingError
from twostage.models.proposals import selective_search as module
from twostage.models.proposals import sources
from twostage.models.proposals.selective_search import rank, selective_search
from twostage.models.proposals.sliding_window import sliding_windows
from twostage.models.proposals.sources import Source, propose


def two_blocks(height: int = 60, width: int = 90) -> np.ndarray:
    """Two uniform rectangles on a uniform background."""
    image = np.full((height, width, 3), 40, dtype=np.uint8)
    image[10:40, 10:35] = (220, 30, 30)
    image[20:50, 50:80] = (30, 30, 220)
    return image


def best_iou(boxes: np.ndarray, box: tuple[float, ...]) -> float:
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2] - box[0]) * (box[3] - box[1])
    return float((shared / (areas - shared)).max())


@pytest.mark.parametrize("mode", ["fast", "quality"])
@pytest.mark.parametrize("width", [500, 45])
def test_selective_search_finds_uniform_rectangles(mode: str, width: int) -> None:
    boxes = selective_search(two_blocks(), mode, width=width)  # type: ignore[arg-type]
    least = 0.9 if width > 90 else 0.75  # half the pixels
    assert best_iou(boxes, (10, 10, 35, 40)) > least
    assert best_iou(boxes, (50, 20, 80, 50)) > least
    assert boxes.min() >= 0
    assert (boxes <= [90, 60, 90, 60]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_selective_search_is_the_same_in_every_process_and_for_every_order_of_calls() -> None:
    """OpenCV ranks with the C library's `rand()`, whose state is global."""
    first = selective_search(two_blocks(), seed=3)
    again = selective_search(two_blocks(), seed=3)
    np.testing.assert_array_equal(first, again)
    other = selective_search(two_blocks(), seed=4)
    assert sorted(map(tuple, first)) == sorted(map(tuple, other))


def test_the_ranking_does_not_depend_on_the_order_of_the_boxes() -> None:
    boxes = np.random.default_rng(1).integers(0, 20, (400, 4)).astype(np.float32)
    order = rank(boxes, 0)
    assert sorted(order) == list(range(400))
    shuffled = np.random.default_rng(0).permutation(400)
    np.testing.assert_array_equal(boxes[shuffled][rank(boxes[shuffled], 0)], boxes[order])
    assert not np.array_equal(boxes[rank(boxes, 1)], boxes[order])


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 500)])
def test_selective_search_of_degenerate_images(shape: tuple[int, int]) -> None:
    boxes = selective_search(np.zeros((*shape, 3), dtype=np.uint8))
    assert boxes.dtype == np.float32
    assert boxes.shape[1] == 4
    assert (boxes <= [shape[1], shape[0]] * 2).all()


def test_without_the_extra_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingError, match=r"pip install 'twostage\[lineage\]'"):
        module.selective_search(two_blocks())


def test_without_contributed_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", type(sys)("cv2"))
    with pytest.raises(MissingError, match="pip uninstall opencv-python"):
        module.selective_search(two_blocks())


@given(st.integers(1, 300), st.integers(1, 300))
def test_windows_lie_inside_and_reach_every_border(height: int, width: int) -> None:
    boxes = sliding_windows(height, width)
    assert boxes.min() >= 0
    assert (boxes <= np.float32([width, height] * 2)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes[:, 2].max() == width
    assert boxes[:, 3].max() == height
    np.testing.assert_array_equal(boxes, sliding_windows(height, width))


def test_windows_step_by_a_quarter_of_their_side() -> None:
    boxes = sliding_windows(100, 100, scales=(0.4,), ratios=(1.0,))
    starts = np.unique(boxes[:, 0][boxes[:, 2] - boxes[:, 0] < 50])
    np.testing.assert_allclose(starts, np.arange(0, 61, 10), atol=1e-4)


@pytest.fixture
def scenes(tmp_path: Path) -> Dataset:
    """Three scenes."""
    return open_dataset(write_scenes(tmp_path / "scenes", train=3, val=1), split="train")


def counting(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """Counts the calls of `sliding_windows`; call number `fail_at` is interrupted."""
    made: list[int] = []

    def count(*args: int, **settings: object) -> np.ndarray:
        if len(made) == fail_at:
            raise KeyboardInterrupt
        made.append(1)
        return sliding_windows(*args)

    monkeypatch.setattr(sources, "sliding_windows", count)
    return made


def test_computed_boxes_are_cached(scenes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, source, seen = counting(monkeypatch), Source("sliding_window"), []
    first = propose(source, scenes, folder=tmp_path / "c", after_image=lambda done, all: seen.append((done, all)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    again = propose(source, scenes, folder=tmp_path / "c")
    assert len(made) == 3
    np.testing.assert_array_equal(first.boxes, again.boxes)
    np.testing.assert_array_equal(first.best(0, 2)[1], [0, -1])
    propose(replace(source, seed=1), scenes, folder=tmp_path / "c")
    assert len(made) == 6  # other settings
    Image.new("RGB", (60, 40)).save(scenes.path(1))
    propose(source, scenes, folder=tmp_path / "c")
    assert len(made) == 7  # another image


def test_an_interrupted_run_continues_where_it_stopped(
    scenes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source("sliding_window")
    made = counting(monkeypatch, fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        propose(source, scenes, folder=tmp_path / "c", threads=1)
    assert len(made) == 2
    made = counting(monkeypatch)
    propose(source, scenes, folder=tmp_path / "c")
    assert len(made) == 1


def test_a_damaged_file_of_the_cache_is_computed_again(scenes: Dataset, tmp_path: Path) -> None:
    source = Source("sliding_window")
    whole = propose(source, scenes, folder=tmp_path / "c")
    for number, kept in enumerate(sorted((tmp_path / "c").rglob("*.npy"))):
        kept.write_bytes([b"", b"\x93NUMPY", kept.read_bytes()[:-5]][number])
    np.testing.assert_array_equal(propose(source, scenes, folder=tmp_path / "c").boxes, whole.boxes)


def test_an_image_that_cannot_be_read_is_named(scenes: Dataset, tmp_path: Path) -> None:
    scenes.path(1).write_bytes(b"no image")
    with pytest.raises(DataError, match=str(scenes.path(1))):
        propose(Source("sliding_window"), scenes, folder=tmp_path / "c")
    scenes.path(0).unlink()
    with pytest.raises(DataError, match=r"cannot be"):
        propose(Source("sliding_window"), scenes, folder=tmp_path / "c")


def test_two_processes_share_the_work(scenes: Dataset, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from twostage.data.recognise import open_dataset\n"
        "from twostage.models.proposals.sources import Source, propose\n"
        f"data = open_dataset(Path({str(scenes.root)!r}), split='train')\n"
        "from twostage.models.proposals import sources\n"
        "made, own = [], sources.sliding_windows\n"
        "sources.sliding_windows = lambda *a, **k: made.append(1) or own(*a, **k)\n"
        f"found = propose(Source('sliding_window'), data, folder=Path({str(tmp_path / 'c')!r}))\n"
        "print(found.boxes.sum(), len(made))\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    one, two = (process.communicate()[0].split() for process in both)
    assert one[0] == two[0]
    assert float(one[0]) > 0
    assert sorted([one[1], two[1]]) == ["0", "3"]  # one of them made all


def test_waiting_for_another_process_is_logged(
    scenes: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, begun, waited = Source("sliding_window"), threading.Event(), threading.Event()

    def hold(done: int, all: int) -> None:
        begun.set()
        waited.wait(20)

    first = threading.Thread(
        target=propose, args=(source, scenes), kwargs={"folder": tmp_path / "c", "after_image": hold}
    )
    first.start()
    assert begun.wait(20)
    with caplog.at_level(logging.INFO, "twostage.proposals"):
        second = threading.Thread(target=propose, args=(source, scenes), kwargs={"folder": tmp_path / "c"})
        second.start()
        deadline = time.monotonic() + 20
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        waited.set()
        first.join()
        second.join()
    assert caplog.messages == ["train: another process proposes boxes for these images; waiting for it"]
