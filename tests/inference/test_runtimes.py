"""What an exported file says about itself, before a runtime computes it."""

from pathlib import Path

import pytest

from twostage.inference import runtimes


def test_metadata_of_others_and_of_later_versions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(runtimes.FileError, match=r"metadata lacks names, inputs"):
        runtimes.read_metadata(path, f'{{"format": {runtimes.FORMAT}}}')
    for damaged in ("{oops", "[1]", "3"):
        with pytest.raises(runtimes.FileError, match=r"model\.onnx: its 'twostage-export' metadata is damaged"):
            runtimes.read_metadata(path, damaged)
    for text in (None, ""):
        with pytest.raises(runtimes.FileError, match=r"model\.onnx: was not written by `twostage export`"):
            runtimes.read_metadata(path, text)
    later = f'{{"format": {runtimes.FORMAT + 1}, "version": "9.1"}}'
    with pytest.raises(runtimes.FileError, match=r"in format 2 by twostage 9\.1; this reads format 1"):
        runtimes.read_metadata(path, later)
