"""Settings in Python are read, not run."""

from pathlib import Path

import pytest

from twostage.errors import DataError
from twostage.weights.importers.python_config import parse_python_config, read_python_config

BASE = "style = 'caffe'\nmodel = dict(backbone=dict(style=style, depth=50), test_cfg=dict(max_per_img=7))\n"


def read(tmp_path: Path, text: str) -> dict:
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "own.py").write_text(f"_base_ = ['base.py']\n{text}")
    return read_python_config(tmp_path / "own.py")


@pytest.mark.parametrize("value", ["'py' + 'torch'", "open('x')", "other.style", "[1][0]", "f'{1}'"])
def test_what_only_running_gives_leaves_the_value_of_the_base(tmp_path: Path, value: str) -> None:
    read_model = read(tmp_path, f"model = dict(backbone=dict(style={value}))\n")["model"]
    assert read_model["backbone"] == {"style": "caffe", "depth": 50}
    assert read_model["test_cfg"] == {"max_per_img": 7}


def test_a_file_of_windows_editor_begins_with_a_mark(tmp_path: Path) -> None:
    assert read(tmp_path, "x = 1")["x"] == 1
    (tmp_path / "own.py").write_text("x = 2", encoding="utf-8-sig")
    assert read_python_config(tmp_path / "own.py") == {"x": 2}


def test_dictionaries_within_dictionaries(tmp_path: Path) -> None:
    text = "more = dict(depth=101)\nmodel = dict(backbone=dict(**more, groups=2), neck={**more, 'n': -1 / 2})\n"
    model = read(tmp_path, text)["model"]
    assert model["backbone"] == {"style": "caffe", "depth": 101, "groups": 2}
    assert model["neck"] == {"depth": 101, "n": -0.5}
    whole = read(tmp_path, "model = dict(backbone=dict(_delete_=True, groups=2))\n")["model"]
    assert whole["backbone"] == {"groups": 2}


@pytest.mark.parametrize(
    "text",
    ["model['x'] = 1", "model.update(x=1)", "for k in range(2):\n    model[k] = 1", "del model", "a = (", "{[1]: 2}"],
)
def test_what_changes_a_setting_otherwise_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"own\.py: cannot be read as a configuration in Python"):
        read(tmp_path, f"x = {text}\n" if text.startswith("{") else f"{text}\n")


@pytest.mark.parametrize("text", ["_base_ = 5", "x = {[1]: 2}", "x = " + "-" * 5000 + "1", "model = ("])
def test_broken_text_in_a_checkpoint(text: str) -> None:
    with pytest.raises(DataError, match="the configuration beside the weights cannot be read"):
        parse_python_config(text)
