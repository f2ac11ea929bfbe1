"""Output folders that are complete or not there."""

from pathlib import Path

import pytest

from twostage.atomic import write_text
from twostage.errors import UsageError
from twostage.folders import require_new_file, require_replaceable, whole_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_there_when_it_is_complete(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out", "--out") as folder:
        (folder / "a.txt").write_text("x")
        assert names(tmp_path / "out") == []
    assert names(tmp_path / "out") == ["a.txt"]
    assert names(tmp_path) == ["out"]


def test_an_open_lock_that_cannot_be_removed_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows no open file can be."""

    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(13, "in use", str(self))

    with whole_folder(tmp_path / "out", "--out") as folder:
        (folder / "a.txt").write_text("x")
        monkeypatch.setattr(Path, "unlink", refuse)
    assert names(tmp_path / "out") == ["a.txt"]


def test_a_mount_point_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be replaced, as of a container's volume."""
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path)
    with (
        pytest.raises(UsageError, match="is a mount point, which cannot be replaced: choose a folder in it"),
        whole_folder(tmp_path, "--out"),
    ):
        pytest.fail("the work began")


def test_a_new_file_may_be_in_folders_that_are_made_with_it(tmp_path: Path) -> None:
    require_new_file(tmp_path / "a" / "b" / "page.html", "--out")
    assert names(tmp_path) == []


def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.html").touch()
    with pytest.raises(UsageError, match=r"page\.html: exists already"):
        require_new_file(tmp_path / "page.html", "--out")
    with pytest.raises(UsageError, match=r"--out .*page.html is a file, not a folder"):
        require_new_file(tmp_path / "page.html" / "other.html", "--out")
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(UsageError, match=r"cannot be written to: name a file elsewhere"):
        require_new_file(tmp_path / "new" / "page.html", "--out")


def test_a_drive_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a path may have no folder that exists."""
    monkeypatch.setattr("os.path.exists", lambda _: False)
    with pytest.raises(UsageError, match="there is no drive"):
        require_new_file(tmp_path / "page.html", "--out")


def test_of_a_link_the_folder_itself_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with whole_folder(tmp_path / "out", "--out") as folder:
        (folder / "a.txt").write_text("x")
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "disk") == ["a.txt"]


def test_a_link_to_the_folder_one_is_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="is the folder you are in"):
        require_replaceable(tmp_path / "out", "--out")


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "out")
    with pytest.raises(UsageError, match=r"out: cannot be made \("), whole_folder(tmp_path / "out", "--out"):
        pytest.fail("the work began")


def test_a_drive_without_modes_of_its_own_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a memory card that another user has mounted: chmod is not permitted there."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.chmod", refuse)
    with whole_folder(tmp_path / "out", "--out") as folder:
        write_text(folder / "a.txt", "x")
    assert names(tmp_path / "out") == ["a.txt"]
