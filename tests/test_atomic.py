import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twostage.atomic import replacing, to_json, write_bytes, write_json, write_text
from twostage.errors import TwostageError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def failing(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_writes_and_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two\0")
    assert path.read_bytes() == b"two\0"
    assert names(tmp_path) == ["a.bin"]


def test_text_is_utf8_with_the_line_ends_given(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "größe,1\n")
    assert (tmp_path / "a.csv").read_bytes() == "größe,1\n".encode()


def test_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, mask: int) -> None:
    """Not the 0600 of a temporary file, which would shut out a colleague or a web server."""
    before = os.umask(mask)
    try:
        write_text(tmp_path / "ours", "x")
        (tmp_path / "plain").write_text("x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")]
    assert modes[0] == modes[1]


def test_the_umask_of_the_process_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of all threads: two that ask for it by setting it to 0 at the same time leave it at 0."""
    monkeypatch.setattr(os, "umask", failing(1))
    write_text(tmp_path / "ours", "x")
    assert names(tmp_path) == ["ours"]


def test_bytes_of_a_name_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "a.html", "<b>caf\udce9.jpg</b>")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == r"<b>caf\udce9.jpg</b>"


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_failing_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, step, failing(28))
    with pytest.raises(TwostageError, match=r"a\.txt: cannot be written: No space left on device\.$"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_interrupted_it_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is no error of the disk: it passes through, and the temporary file goes all the same."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(TwostageError, match=r"cannot be written"):
        write_text(tmp_path / "a" / "b.txt", "x")
    assert names(tmp_path) == ["a"]


def test_a_folder_where_the_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "a" / "inside").mkdir(parents=True)
    with pytest.raises(TwostageError, match=r"a: cannot be written"):
        write_text(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"]


def test_what_a_writer_leaves_beside_its_file_goes_too(tmp_path: Path) -> None:
    """safetensors writes a temporary file of its own beside the one that it is given."""

    def interrupted() -> None:
        with replacing(tmp_path / "a.safetensors") as written:
            (written.parent / ".tmpAbCdEf").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(TwostageError, match=r"x\.txt: cannot be written: Permission denied"):
        write_text(tmp_path / "shut" / "x.txt", "x")


def test_a_refused_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the test's user may write anywhere."""
    import tempfile

    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: failing(13)())
    with pytest.raises(TwostageError, match=r"x\.txt: cannot be written: Permission denied"):
        write_text(tmp_path / "x.txt", "x")


def test_a_name_as_long_as_the_system_allows(tmp_path: Path) -> None:
    """The temporary name is longer than the file's own, and must not be too long for that."""
    longest = "n" * 251 + ".txt"
    (tmp_path / longest).touch()
    write_text(tmp_path / longest, "x")
    assert (tmp_path / longest).read_text() == "x"


def test_json_takes_paths_and_numpy(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"path": Path("a"), "score": np.float32(0.5), "boxes": np.zeros((1, 4))})
    assert json.loads((tmp_path / "a.json").read_text()) == {"path": "a", "score": 0.5, "boxes": [[0, 0, 0, 0]]}


def test_nan_never_reaches_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"AP": float("nan")})
