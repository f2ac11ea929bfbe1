"""What tests of the inspector share: one headless browser, and traces of detectors whose scores differ."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from detectors import fields_of
from torch import nn

from twostage.data.scenes import HARD, NAMES, Scene, make_scene
from twostage.detector import Detector

SMALL = {"size": 128, "max_size": 192, "rpn_top_test": 100, "rpn_keep_test": 40, "keep_test": 30, "max_det": 20}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window, from this machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((path for name in names if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(names)} is in PATH")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def scene() -> Scene:
    """An image with its objects."""
    return make_scene(0, 0, 1, style=HARD)


def lively(name: str, **fields: object) -> Detector:
    """A detector whose scores and boxes differ from each other, with few proposals; it lacks some of the fields."""
    torch.manual_seed(0)
    detector = Detector.build(name, NAMES, device="cpu", choose_forms=False, **fields_of(name, **(SMALL | fields)))
    generator = torch.Generator().manual_seed(1)
    parts = [part for part in (getattr(detector.model, "rpn", None), detector.model.head) if part is not None]
    with torch.no_grad():
        for part in parts:
            for place, module in part.named_modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.weight.normal_(std=(2 / module.weight[0].numel()) ** 0.5, generator=generator)
                if place.endswith("classes") and isinstance(module, nn.Linear):
                    module.weight.sub_(module.weight.mean(dim=1, keepdim=True))
                if place.endswith(("deltas", "ridges")):  # boxes stay near their anchors
                    module.weight.mul_(0.3)
    return detector


@pytest.fixture(scope="session")
def detectors() -> Callable[..., Detector]:
    """Such detectors, each made once."""
    known: dict[str, Detector] = {}

    def made(name: str, **fields: object) -> Detector:
        key = f"{name} {fields}"
        if key not in known:
            known[key] = lively(name, **fields)
        return known[key]

    return made


def target_of(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The objects of a scene as a target."""
    return np.asarray(scene.boxes, dtype=np.float32), np.asarray(scene.labels, dtype=np.int64)
