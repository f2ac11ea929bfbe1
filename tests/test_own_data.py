"""The functions of docs/own-data.md read what they are written for."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twostage import Dataset

PAGE = Path(__file__).parents[1] / "docs" / "own-data.md"


@pytest.fixture(scope="module")
def functions() -> dict[str, Callable[..., Any]]:
    """The functions that the page defines, without the lines that use them."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found: dict[str, Any] = {}
    exec("import json\nfrom pathlib import Path", found)
    for block in blocks:
        for function in re.findall(r"^def from_.*?(?=^\S|\Z)", block, re.DOTALL | re.MULTILINE):
            exec(function, found)
    return found


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path)


def test_a_manifest_of_sagemaker(functions: dict[str, Callable[..., Any]], tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    boxes = [{"class_id": 3, "left": 10, "top": 5, "width": 20, "height": 20}]
    record = {
        "source-ref": "s3://bucket/images/a.png",
        "job": {"annotations": boxes, "image_size": [{"width": 60, "height": 40, "depth": 3}]},
        "job-metadata": {"class-map": {"3": "cat", "0": "dog"}, "type": "groundtruth/object-detection"},
    }
    (tmp_path / "output.manifest").write_text(json.dumps(record) + "\n")
    names, samples = functions["from_manifest"](tmp_path / "output.manifest", "job", tmp_path)
    dataset = Dataset.from_samples(samples, names)
    assert dataset.names == ("dog", "cat")
    assert dataset.labels.tolist() == [1]
    assert dataset.boxes.tolist() == [[10, 5, 30, 25]]


def test_regions_of_custom_vision(functions: dict[str, Callable[..., Any]], tmp_path: Path) -> None:
    image(tmp_path / "x1.jpg")
    region = {"tagName": "cat", "left": 0.25, "top": 0.5, "width": 0.5, "height": 0.25}
    (tmp_path / "t.json").write_text(json.dumps([{"id": "x1", "width": 60, "height": 40, "regions": [region]}]))
    names, samples = functions["from_custom_vision"](tmp_path / "t.json", tmp_path)
    dataset = Dataset.from_samples(samples, names)
    assert dataset.boxes.tolist() == [[15, 20, 45, 30]]
