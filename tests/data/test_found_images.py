"""Paths of another machine: the images are found by the end of them (YOLO-World#535)."""

from pathlib import Path

import pytest

from twostage.data.found_images import find_images


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


@pytest.mark.parametrize(
    "prefix", ["images\\", "C:\\Users\\me\\project\\images\\", "/content/drive/project/images/", "./x//images/"]
)
def test_images_are_found_by_the_end_of_their_paths(tmp_path: Path, prefix: str) -> None:
    root = touch(tmp_path, "a.jpg", "b.jpg")
    found = find_images([f"{prefix}a.jpg", f"{prefix}b.jpg"], [tmp_path / "none", root])
    assert found.any
    assert found.moved
    assert found.place(f"{prefix}b.jpg") == ("b.jpg", root / "b.jpg")


def test_a_path_that_exists_as_written_is_used_as_it_is(tmp_path: Path) -> None:
    root = touch(tmp_path, "x/a.jpg", "a.jpg")
    found = find_images(["x/a.jpg"], [root])
    assert not found.moved
    assert found.place("x/a.jpg") == ("x/a.jpg", root / "x/a.jpg")


def test_some_paths_of_another_machine_are_found_and_said(tmp_path: Path) -> None:
    root = touch(tmp_path, "a.jpg", "b.jpg")
    found = find_images(["a.jpg", "/content/b.jpg", "c.jpg"], [root])
    assert "1 of 3 are not there as written, '/content/b.jpg'" in found.moved
    assert found.place("/content/b.jpg") == ("b.jpg", root / "b.jpg")


def test_a_missing_image_is_not_replaced_by_another_without_a_word(tmp_path: Path) -> None:
    root = touch(tmp_path, "x/a.jpg", "b.jpg")
    found = find_images(["x/a.jpg", "y/c.jpg"], [root])
    assert not found.moved
    assert found.place("y/c.jpg") == ("y/c.jpg", root / "y/c.jpg")


def test_the_longest_end_that_exists_is_taken(tmp_path: Path) -> None:
    root = touch(tmp_path, "left/a.jpg", "right/a.jpg")
    found = find_images(["D:\\data\\left\\a.jpg", "D:\\data\\right\\a.jpg"], [root])
    assert found.place("D:\\data\\right\\a.jpg")[1] == root / "right/a.jpg"


def test_without_any_image_nothing_is_found(tmp_path: Path) -> None:
    assert not find_images(["a.jpg", "C:\\b.jpg"], [tmp_path]).any
    assert not find_images([], [tmp_path]).any
