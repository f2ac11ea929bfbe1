"""The page of the demo: one HTML file with its images embedded, which needs neither a server nor the network."""

import html
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostage.cli import page as pages
from twostage.cli.page import figure, tile

_IMAGES_NOTE = (
    "Left: ground truth. Right: detections with their scores. The first two are the scenes with the most errors; the "
    "others are the first scenes in order, not a selection."
)


@dataclass(frozen=True)
class Shown:
    """An image on the page, and its caption."""

    path: Path
    title: str
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Page:
    """The contents of the page. Metrics are COCO's, in 0..1; times in seconds; paths lie in `folder`."""

    folder: Path
    weights: Path
    scenes: Path
    minutes: float
    train_images: int
    val_images: int
    steps: int
    parameters: int
    seconds_an_image: float
    metrics: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]]
    images: Sequence[Shown]
    plots: Sequence[Shown]
    environment: Mapping[str, Any]


def write_page(page: Page) -> Path:
    """Write `index.html` into the page's folder and return its path."""
    path = page.folder / "index.html"
    pages.write_page(
        path,
        "demo_page.html",
        ap=f"{page.metrics['AP']:.3f}",
        minutes=f"{page.minutes:.3g}",
        lead=_lead(page),
        tiles="\n".join(tile(number, what, first=what.startswith("AP on")) for number, what in _tiles(page)),
        images_note=_IMAGES_NOTE,
        images="\n".join(map(_figure, page.images)),
        plots="\n".join(map(_figure, page.plots)),
        classes="\n".join(_class_row(name, row) for name, row in page.per_class.items()),
        advice=_advice(),
        command=html.escape(own_command()),
        scenes=html.escape(str(page.scenes)),
        weights=html.escape(str(page.weights)),
        files="\n".join(f"<tr><td><code>{name}</code></td><td>{what}</td></tr>" for name, what in _files(page)),
        footer=_footer(page),
    )
    return path


def own_command() -> str:
    """The command that runs this command line from the current folder: its name, if the shell finds it."""
    called = Path(sys.argv[0])
    if shutil.which("twostage") or called.name != "twostage":
        return "twostage"
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called.absolute())


def _lead(page: Page) -> str:
    return (
        f"Faster R-CNN with {page.parameters / 1e6:.1f} million parameters, trained from random weights on "
        f"{page.train_images} generated scenes for {page.steps} steps, and evaluated on {page.val_images} unseen "
        "scenes, with the weights of the last step. All of it ran on this machine, and nothing was downloaded."
    )


def _tiles(page: Page) -> list[tuple[str, str]]:
    return [
        (f"{page.metrics['AP']:.3f}", "AP on unseen scenes"),
        (f"{page.metrics['AP50']:.3f}", "AP50"),
        (f"{page.metrics['AP75']:.3f}", "AP75"),
        (f"{page.minutes:.3g} min", "of training"),
        (f"{1000 * page.seconds_an_image:.0f} ms", "per prediction"),
    ]


def _figure(shown: Shown) -> str:
    kind = "jpeg" if shown.path.suffix == ".jpg" else shown.path.suffix[1:]
    return figure(shown.path.read_bytes(), kind, shown.title, shown.note, wide=shown.wide)


def _class_row(name: str, row: Mapping[str, float]) -> str:
    bar = f'<i style="width:{100 * max(0.0, row["AP"]):.1f}%"></i>'
    count = f"{row['objects']:.0f}" if "objects" in row else ""
    return (
        f"<tr><td>{html.escape(name)}</td><td>{count}</td><td>{row['AP']:.3f}</td><td>{row['AP50']:.3f}</td>"
        f'<td class="bar">{bar}</td></tr>'
    )


def _advice() -> str:
    return (
        "The tiny model trains from random weights and is fast on a CPU; on a GPU, omit <code>--model</code>, "
        "<code>--size</code> and <code>--minutes</code>. The schedule is fitted to <code>--minutes</code>; Ctrl-C "
        "saves the run, and <code>--resume</code> continues it."
    )


def _files(page: Page) -> list[tuple[str, str]]:
    run = page.weights.parent.parent.name
    return [
        (f"{run}/weights/{page.weights.name}", "the detector: weights, class names, preprocessing, metrics"),
        (f"{run}/metrics.csv", "losses and AP per epoch"),
        (f"{run}/config.yaml", "all options of the run, for <code>--config</code>"),
        ("predictions/", "ground truth and detections of all validation scenes"),
        ("scenes/", "the generated scenes: a COCO data set with boxes and masks"),
    ]


def _footer(page: Page) -> str:
    env = page.environment
    packages = env.get("packages", {})
    return html.escape(
        f"twostage {env.get('twostage')}, torch {packages.get('torch')}, Python {env.get('python')}, "
        f"{env.get('cpu', {}).get('name')}, {env.get('cpu', {}).get('cores')} cores."
    )
