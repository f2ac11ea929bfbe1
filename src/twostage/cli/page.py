"""Parts of the HTML pages: one style sheet, and images embedded in the file, so that a page needs no server."""

import base64
import html
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from twostage.atomic import write_text


def write_page(path: Path, template: str, values: Mapping[str, object], **markup: Iterable[str]) -> Path:
    """Write the HTML file `path` and return it: a template of this folder with the style sheet, `values` and `markup`.

    Values are escaped here; the pieces of markup are joined by line ends.
    """
    escaped = {name: html.escape(str(value)) for name, value in values.items()}
    joined = {name: "\n".join(pieces) for name, pieces in markup.items()}
    write_text(path, Template(_text(template)).substitute(escaped | joined, style=_text("page.css")))
    return path


def _text(name: str) -> str:
    return files("twostage.cli").joinpath(name).read_text(encoding="utf-8")


def figure(image: bytes, kind: str, title: str, note: str = "", *, wide: bool = False) -> str:
    """An image ("jpeg", "png") with its caption; texts are escaped here."""
    data = base64.b64encode(image).decode()
    title, note = html.escape(title), html.escape(note)
    return (
        f'<figure class="{"wide" if wide else "half"}">'
        f'<img loading="lazy" alt="{title}" src="data:image/{kind};base64,{data}">'
        f"<figcaption><b>{title}</b> {note}</figcaption></figure>"
    )


def tile(number: object, what: str, *, first: bool = False) -> str:
    """A number in large letters, and its name."""
    kind = "tile first" if first else "tile"
    return f'<div class="{kind}"><b>{number}</b><span>{html.escape(what)}</span></div>'
