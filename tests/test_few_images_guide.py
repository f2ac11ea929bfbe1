"""The commands of docs/few-images.md, on a quarter of its images and with shorter training."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from twostage.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "few-images.md"
SHORTER = {
    "split": "--pictures link --parts train=0.03 rest=0.97",
    "train": "--epochs 1 --size 64 --batch 4 --precision fp32 --workers 0 --quiet",
    "predict": "--quiet",
}


def blocks(language: str) -> list[str]:
    """The page's code of a language, block by block."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all commands of the page were run, except those that reach for a network."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "BCCD_Dataset").mkdir()
    (folder / "BCCD_Dataset" / "BCCD").symlink_to(real_data / "blood-cells")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in "".join(blocks("sh")).splitlines():
            program, *words = shlex.split(line, comments=True)
            if program != "twostage":
                assert program in ("python3", "pip", "git"), line
                continue
            words = shortened(words)
            # `data check` ends with 3 where there is a fault, as the page says.
            assert main(words) == (3 if words[:2] == ["data", "check"] else 0), line
    return folder


def shortened(words: list[str]) -> list[str]:
    """A command with the options of its verb that make it shorter."""
    verb = words[1] if words[0] == "data" else words[0]
    more = shlex.split(SHORTER.get(verb, ""))
    if "--parts" in more:
        place = words.index("--parts")
        words = words[:place] + words[place + 3 :]
    return words + more


@pytest.mark.slow
def test_every_command_ends_well(folder: Path) -> None:
    scores = json.loads((folder / "runs" / "cells" / "cross_validation.json").read_text())
    assert scores["folds"] == len(scores["AP"]) == 3
    assert (
        yaml.safe_load((folder / "runs/cells/all/config.yaml").read_text())["weights"] == "efficientnet_lite0-imagenet"
    )
    assert (folder / "view.html").exists()
    assert len(list((folder / "detected").glob("*.jpg"))) == 364
    assert (folder / "runs" / "curve" / "learning_curve.png").exists()


@pytest.mark.slow
def test_the_lines_of_python_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (code,) = blocks("python")
    exec(code, {})
    assert re.fullmatch(r"(\d+ cells\n)+", capsys.readouterr().out)
