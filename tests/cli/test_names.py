"""File names whose bytes are no text, as archives from elsewhere leave them."""

import io
import os
from pathlib import Path

import pytest
import torch

from twostage.data.convert import convert


@pytest.fixture(scope="module")
def latin(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes in YOLO's layout, in a folder and with first images whose names are in Latin-1."""
    folder = tmp_path_factory.mktemp("names") / os.fsdecode("jardin bot\xe9".encode("latin-1"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("the names of this file system are text")
    convert(scenes, folder / "yolo", "yolo")
    for file in [*folder.rglob("000000.*")]:
        file.rename(file.with_name(os.fsdecode("fl\xe9".encode("latin-1")) + file.suffix))
    return folder / "yolo"


@pytest.mark.parametrize(
    ("verb", "out"),
    [
        (["eval", "--why"], "numbers"),
        (["inspect"], "page.html"),
        (["data", "audit"], "audit"),
        (["data", "view"], "page.html"),
        (["data", "proposals", "--source", "sliding_window"], "proposals"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_data_with_such_names(shell, latin: Path, weights: Path, tmp_path: Path, verb: list[str], out: str) -> None:
    words = verb[: 2 if verb[0] == "data" else 1]
    judge = [] if words in (["data", "view"], ["data", "proposals"]) else ["--weights", weights]
    answer = shell(*words, latin, *verb[len(words) :], *judge, "--out", tmp_path / out, "--json")
    assert answer.code == 0, answer.messages
    for page in tmp_path.rglob("*.html"):
        assert r"\udce9" in page.read_text(encoding="utf-8")


def test_an_image_of_such_a_name(shell, latin: Path, weights: Path, tmp_path: Path) -> None:
    (image,) = (latin / "images" / "val").glob("fl*")
    answer = shell("inspect", image, "--weights", weights, "--data", latin, "--out", tmp_path / "page.html", "--json")
    assert answer.code == 0, answer.messages


def test_such_names_on_standard_input(shell, latin: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (image,) = (latin / "images" / "val").glob("fl*")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(f"{image}\n")), encoding="utf-8"))
    answer = shell("predict", "-", "--weights", weights, "--json")
    assert answer.code == 0, answer.messages
    assert [one["path"] for one in answer.json["images"]] == [str(image)]


def test_an_image_on_standard_input_is_no_list_of_names(shell, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(jpeg), encoding="utf-8"))
    answer = shell("predict", "-", "--weights", weights)
    assert answer.code == 3
    assert "Standard input holds no paths" in answer.messages


def test_weights_and_proposals_of_such_a_name(shell, scenes: Path, weights: Path, tmp_path: Path) -> None:
    """Training writes them; safetensors and torch open only names in UTF-8."""
    folder = tmp_path / os.fsdecode(b"mod\xe8les")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("the names of this file system are text")
    (folder / "own.safetensors").write_bytes(weights.read_bytes())
    answer = shell("weights", "info", folder / "own.safetensors", "--json")
    assert answer.code == 0, answer.messages
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "net.pth")
    (tmp_path / "net.pth").rename(folder / "net.pth")
    answer = shell("weights", "convert", folder / "net.pth", "--out", folder / "net.safetensors", "--json")
    assert answer.code == 0, answer.messages
    answer = shell("data", "proposals", scenes, "--source", "sliding_window", "--out", folder / "found")
    assert answer.code == 0, answer.messages
    answer = shell("data", "proposals", scenes, "--source", folder / "found" / "sliding_window.safetensors", "--json")
    assert answer.code == 0, answer.messages
