"""What tests of the inspector share: one headless browser, a scene, detectors made once, data sets without content."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from inspecting import lively

from twostage import Dataset
from twostage.data.scenes import HARD, Scene, make_scene
from twostage.detector import Detector


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, from this machine.

    Not for the session: while Playwright runs, no other test could call `asyncio.run`.
    """
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


def dataset_of(
    shapes: Sequence[tuple[int, int]], boxes: Sequence[Sequence[Sequence[float]]], labels: Sequence[list[int]] = ()
) -> Dataset:
    """Images of these heights and widths with these boxes, of the classes "a" and "b"; without labels all of "a"."""
    of_image = labels or [[0] * len(own) for own in boxes]
    samples = [
        (np.zeros((*shape, 3), np.uint8), list(own), ids)
        for shape, own, ids in zip(shapes, boxes, of_image, strict=True)
    ]
    return Dataset.from_samples(samples, ["a", "b"])


@pytest.fixture
def make_blank() -> Callable[..., Dataset]:
    """`dataset_of`, for tests."""
    return dataset_of
