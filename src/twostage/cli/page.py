"""What our pages share: one style, and pictures inside the file, so that a page opens anywhere without a server."""

import base64
import html
from importlib.resources import files


def style() -> str:
    """The style sheet, for a page's <style>."""
    return files("twostage.cli").joinpath("page.css").read_text(encoding="utf-8")


def figure(picture: bytes, kind: str, title: str, note: str = "", *, wide: bool = False) -> str:
    """A picture ("jpeg", "png") with the line below it; texts are escaped here."""
    data = base64.b64encode(picture).decode()
    title, note = html.escape(title), html.escape(note)
    return (
        f'<figure class="{"wide" if wide else "half"}">'
        f'<img loading="lazy" alt="{title}" src="data:image/{kind};base64,{data}">'
        f"<figcaption><b>{title}</b> {note}</figcaption></figure>"
    )


def tile(number: str, what: str, *, first: bool = False) -> str:
    """A number in large letters, and what it is."""
    kind = "tile first" if first else "tile"
    return f'<div class="{kind}"><b>{html.escape(number)}</b><span>{html.escape(what)}</span></div>'
