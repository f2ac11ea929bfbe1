"""The page as one HTML file: its parts from this folder, and the data between them."""

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import torch

from twostage.data.batch import Targets
from twostage.inspection.account import Objects
from twostage.inspection.account import account as account_of
from twostage.inspection.causes import Account
from twostage.inspection.page.data import page_data
from twostage.inspection.remedy import Remedy
from twostage.inspection.trace import Trace
from twostage.models.heads.postprocess import PostprocessConfig

SCRIPTS = ("tail", "data", "stages", "chain", "scene", "paint", "details", "controls", "pointer", "inspect")
"""The scripts in their order; they share one function."""
_UNSAFE = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def page(
    trace: Trace,
    config: PostprocessConfig | None = None,
    objects: Objects | None = None,
    account: Account | None = None,
    remedies: Mapping[int, Remedy] | None = None,
    *,
    title: str = "",
) -> str:
    """The page of a trace, without any reference to another file. As `data.page_data`; `config` is by default the
    model's, `objects` and their `account` those of the trace's targets."""
    config = config or trace.config.postprocess
    if objects is None and trace.targets is not None:
        objects = _objects_of(trace, trace.targets)
        account = account_of(trace, objects, config)
    title = title or (Path(trace.detections.path).name if trace.detections.path else "image")
    return assembled(page_data(trace, config, objects, account, remedies, title=title))


def _objects_of(trace: Trace, targets: Targets) -> Objects:
    boxes, labels = targets.boxes[0][targets.valid[0]], targets.labels[0][targets.valid[0]]
    return Objects(trace.to_image(boxes), labels, torch.ones_like(labels, dtype=torch.bool))


def assembled(data: Mapping[str, Any]) -> str:
    """The page around its data."""
    script = "\n".join(text(f"{name}.js") for name in SCRIPTS)
    return Template(text("inspect.html")).substitute(
        title=html.escape(str(data["title"])), style=text("inspect.css"), script=script, data=in_script(data)
    )


def in_script(data: Mapping[str, Any]) -> str:
    """JSON that is safe within a script element: it holds no `<`, `&` or line separator."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_UNSAFE)


def text(name: str) -> str:
    """A file of this folder."""
    return files("twostage.inspection.page").joinpath(name).read_text(encoding="utf-8")


def inline(page: str, *, height: int = 860) -> str:
    """The page within a notebook: a frame of its own, which may run its script and offer downloads."""
    return (
        f'<iframe title="Inspector" style="width:100%;height:{height}px;border:0" '
        f'sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(page)}"></iframe>'
    )
