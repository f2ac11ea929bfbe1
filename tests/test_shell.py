"""Commands to be copied into a shell."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twostage.shell import command

WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n")), min_size=1, max_size=4)


@pytest.mark.skipif(os.name == "nt", reason="the shell of other systems")
@settings(max_examples=25)
@given(WORDS)
def test_the_shell_reads_the_words_as_they_were_given(words: list[str]) -> None:
    line = f"printf '%s\\n' {command(*words)}"
    assert subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout.decode() == "\n".join(
        [*words, ""]
    )


def test_plain_words_are_not_quoted() -> None:
    assert (
        command("twostage", "train", "--resume", Path("runs") / "mine")
        == f"twostage train --resume {Path('runs/mine')}"
    )


def test_windows_takes_double_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.name", "nt")
    assert command("twostage", "predict", r"C:\my photos\a.jpg") == r'twostage predict "C:\my photos\a.jpg"'
