"""The figures of docs/inspect.md: one photo in the inspector, stage by stage, as a browser shows it.

    python benchmarks/inspector_figures.py photo.jpg runs/bccd/weights/best.safetensors --data BCCD --out docs/inspect

It needs playwright and Chromium.
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from twostage.cli import main as twostage

DESK = {"width": 1240, "height": 900}
VIEW = "#view"
WALK = (  # the file, the stage, what is selected before (kind, number), and the part of the page
    ("features", "features", None, VIEW),
    ("objectness", "objectness", None, VIEW),
    ("top-k", "top", None, VIEW),
    ("rpn-nms", "rpn-nms", None, VIEW),
    ("proposals", "proposals", None, VIEW),
    ("refined", "refined-1", ("pair", 0), None),
    ("class-nms", "class-nms", None, VIEW),
    ("detections", "detections", ("pair", 0), None),
)


def saved(tab: Any, path: Path, clip: str | None = None) -> None:
    """What the page shows, or one element of it, as a JPEG."""
    content = tab.locator(clip).screenshot() if clip else tab.screenshot()
    Image.open(io.BytesIO(content)).convert("RGB").save(path, quality=88)


def main() -> None:
    """Make the page, walk through it, and save the figures."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        page = Path(folder) / "page.html"
        words = ("inspect", given.photo, "--weights", given.weights, "--data", given.data, "--out", page)
        assert twostage([str(word) for word in words]) == 0
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_context(viewport=DESK).new_page()
        tab.goto(page.as_uri())
        tab.evaluate("inspector.ready")
        for name, stage, selected, part in WALK:
            tab.evaluate(
                "([stage, chosen]) => { inspector.act.clear(); if (chosen) inspector.act.select(...chosen);"
                " inspector.act.go(stage); }",
                [stage, selected],
            )
            tab.wait_for_timeout(300)
            saved(tab, given.out / f"{name}.jpg", part)
        missed = tab.evaluate("Object.keys(inspector.data.truth.missed).map(Number)")
        for place in missed[:1]:
            tab.evaluate("(place) => { inspector.act.clear(); inspector.act.select('truth', place); }", place)
            tab.wait_for_timeout(300)
            saved(tab, given.out / "missed.jpg")
        browser.close()


if __name__ == "__main__":
    main()
