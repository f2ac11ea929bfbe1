"""Fetched whole, verified, resumed; or a message that names where to put the file by hand."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twostage.download import download
from twostage.errors import MissingError, TwostageError

CONTENT = bytes(range(256)) * 1000
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]


def test_whole(server: Any, tmp_path: Path) -> None:
    server.files["a.pth"] = CONTENT
    download(server.url("a.pth"), tmp_path / "a.pth", DIGITS)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(breaks=st.lists(st.integers(0, len(CONTENT) // 4), min_size=1, max_size=10), ranges=st.booleans())
def test_broken_off_again_and_again(
    server: Any, tmp_path_factory: pytest.TempPathFactory, breaks: list[int], ranges: bool
) -> None:
    """It goes on where it was as long as something comes; only so many empty answers in a row are too many."""
    empty = [i for i in range(len(breaks) - 2) if not any(breaks[i : i + 3])]
    if empty:
        breaks[empty[0] :: 3] = [1] * len(breaks[empty[0] :: 3])
    server.files["a.pth"], server.breaks, server.ranges = CONTENT, list(breaks), ranges
    path = tmp_path_factory.mktemp("broken") / "a.pth"
    if ranges:
        download(server.url("a.pth"), path, DIGITS)
        assert path.read_bytes() == CONTENT
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("twostage.download._TRIES", 12)
            download(server.url("a.pth"), path, DIGITS)
        assert path.read_bytes() == CONTENT


def test_a_later_call_resumes(server: Any, tmp_path: Path) -> None:
    server.files["a.pth"] = CONTENT
    (tmp_path / "a.pth.part").write_bytes(CONTENT[:1000])
    download(server.url("a.pth"), tmp_path / "a.pth", DIGITS)
    assert server.asked == ["bytes=1000-"]
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"], ids=["whole", "longer"])
def test_a_part_that_is_whole_or_longer(server: Any, tmp_path: Path, part: bytes) -> None:
    server.files["a.pth"] = CONTENT
    (tmp_path / "a.pth.part").write_bytes(part)
    download(server.url("a.pth"), tmp_path / "a.pth", DIGITS)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_a_wrong_byte_is_refused(server: Any, tmp_path: Path) -> None:
    server.files["a.pth"] = CONTENT[:-1] + b"x"
    with pytest.raises(MissingError, match=rf"begin with {DIGITS}.*It was removed.*put it at .*a\.pth"):
        download(server.url("a.pth"), tmp_path / "a.pth", DIGITS)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_not_asked_for_again(server: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"HTTP 404.*or download it by hand and put it at"):
        download(server.url("a.pth"), tmp_path / "a.pth", DIGITS)
    assert len(server.asked) == 1


def test_no_network(server: Any, tmp_path: Path) -> None:
    address = server.address.rpartition(":")[0] + ":9"  # nobody listens there
    with pytest.raises(MissingError, match=r"cannot be downloaded .*refused.*put it at"):
        download(f"{address}/a.pth", tmp_path / "a.pth", DIGITS)


def test_a_server_that_gives_nothing_is_left(server: Any, tmp_path: Path) -> None:
    server.files["a.pth"], server.breaks = CONTENT, [0] * 10
    with pytest.raises(MissingError, match="cannot be downloaded"):
        download(server.url("a.pth"), tmp_path / "a.pth", DIGITS)
    assert len(server.asked) == 3


def test_a_folder_that_cannot_be_written(server: Any, tmp_path: Path) -> None:
    server.files["a.pth"] = CONTENT
    (tmp_path / "file").write_text("")
    with pytest.raises(TwostageError, match=r"a\.pth\.part: cannot be written"):
        download(server.url("a.pth"), tmp_path / "file" / "a.pth", DIGITS)


def test_proxies_of_the_environment_are_used(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    server.files["http://weights.example/a.pth"] = CONTENT
    download("http://weights.example/a.pth", tmp_path / "a.pth", DIGITS)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
