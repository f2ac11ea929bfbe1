"""What the page of a photo costs: seconds to make it, its size, and a change of the stage in a browser.

    python benchmarks/inspector.py --out benchmarks/results/inspector.md

A photo of 800 x 1066 pixels, random weights, a thousand proposals, 80 classes, twenty objects. The page is made after
the forward pass, the account of the objects included; a change of stage is timed in headless Chromium, from the call to
the drawn picture, the largest of all stages after each was shown once. It needs playwright and Chromium.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _pictures import photos, whence
from _timing import finish, hardware, table

from twostage import Detector
from twostage.inspection.account import Objects, account
from twostage.inspection.page.html import page

MODELS = (
    "faster_rcnn_resnet50_fpn",
    "mask_rcnn_resnet50_fpn",
    "cascade_mask_rcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
)
SHAPE = (800, 1066)
NAMES = [f"class {k}" for k in range(80)]


def made(detector: Detector, image: np.ndarray, repeats: int) -> tuple[str, list[float]]:
    """The page, and the seconds that it took each time, after the forward pass."""
    generator = np.random.default_rng(0)
    corner = generator.random((20, 2)) * 600
    objects = Objects.of(np.concatenate([corner, corner + 20 + generator.random((20, 2)) * 150], axis=1), np.arange(20))
    post, seconds, text = detector.config.postprocess, [], ""
    for _ in range(repeats):
        trace = detector.trace(image)
        begun = time.perf_counter()
        text = page(trace, post, objects, account(trace, objects, post))
        seconds.append(time.perf_counter() - begun)
    return text, seconds


def slowest_change(browser: Any, text: str) -> float:
    """Milliseconds of the slowest change of stage."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(text, encoding="utf-8")
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(file.as_uri())
        tab.evaluate("inspector.ready")
        count = tab.evaluate("inspector.stages.length")
        slowest = 0.0
        for time_round in range(4):
            for stage in range(count):
                taken = tab.evaluate("(stage) => { inspector.act.go(stage); return inspector.lastChange; }", stage)
                tab.wait_for_timeout(30)
                slowest = max(slowest, taken) if time_round else 0.0
        tab.close()
    return slowest


def main() -> None:
    """Measure and write the table."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    (pixels,) = photos(SHAPE, 1)
    image = (pixels.permute(1, 2, 0) * 255).byte().numpy()
    rows = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in MODELS:
            text, seconds = made(Detector.build(name, NAMES, device="cpu"), image, given.repeats)
            change = slowest_change(browser, text)
            size = len(text.encode()) / 1e6
            rows.append(
                [name, f"{statistics.median(seconds):.2f} ({min(seconds):.2f})", f"{size:.1f}", f"{change:.0f}"]
            )
        browser.close()
    columns = ["model", "seconds to make the page", "MB", "slowest stage change, ms"]
    about = __doc__.split("\n\n", 2)[2].strip().replace("\n", " ")
    finish("\n\n".join(["# The inspector", about, f"{hardware()}. {whence()}", table(columns, rows)]), given.out)


if __name__ == "__main__":
    main()
