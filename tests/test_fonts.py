"""A font of the machine with the letters of class names (yolov5#6522), or one plain message."""

import logging
from pathlib import Path

import pytest

from twostage import fonts


@pytest.fixture(autouse=True)
def fresh() -> None:
    fonts._file_of.cache_clear()
    fonts._warn.cache_clear()


def test_latin_greek_and_cyrillic_letters_are_in_the_default_font() -> None:
    assert fonts.font_file("größe αβγ мышь") == fonts.font_file("")


def test_a_font_that_has_the_letters_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two fonts of the machine the one that has them all; which it has is asked of the font itself."""
    default = fonts.font_file("")
    assert default is not None
    monkeypatch.setattr(fonts, "_has", lambda path, letters: path == Path("second.ttf"))
    monkeypatch.setattr(fonts, "_of_the_machine", lambda: (Path("first.ttf"), Path("second.ttf")))
    assert fonts.font_file("세포") == Path("second.ttf")


def test_without_one_a_message_is_given_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(fonts, "_of_the_machine", lambda: ())
    with caplog.at_level(logging.WARNING, "twostage"):
        for text in ("세포", "큰 것", "세포"):
            assert fonts.font(12, text).size == 12
    assert [record.getMessage() for record in caplog.records] == [
        "No font of this machine has all letters of the names: install one, such as Noto Sans CJK."
    ]


def test_letters_that_a_font_lacks_are_noticed() -> None:
    default = fonts.font_file("")
    assert default is not None
    assert fonts._has(default, frozenset("éж"))
    assert not fonts._has(default, frozenset("é세"))
    assert not fonts._has(Path(__file__), frozenset("a"))
