"""The page of a label audit: suggestions by kind, each with its surroundings."""

import base64
import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from twostage.cli.page import tile, write_page

if TYPE_CHECKING:
    import numpy as np

    from twostage.inspection.audit import Audit
    from twostage.inspection.next_images import NextImage
    from twostage.inspection.suggestion import Kind, Suggestion


class ToLabel(NamedTuple):
    """An image worth labelling with its name, its pixels and the boxes found in it."""

    image: "NextImage"
    name: str
    pixels: "np.ndarray"
    boxes: "np.ndarray"


def write_audit_page(
    path: Path, audit: "Audit", *, title: str, lead: str, most: int, to_label: Sequence[ToLabel] = ()
) -> None:
    """Write the page with at most so many suggestions of each kind, and the images to label next."""
    from twostage.inspection.suggestion import TITLES, Kind

    likely = {kind: number for kind, (_, number) in audit.counts().items()}
    shown = [kind for kind in Kind if audit.of(kind)]
    links = [f'<a href="#{kind}">{html.escape(TITLES[kind])}</a>' for kind in shown]
    write_page(
        path,
        "data_audit_page.html",
        {"title": title, "lead": lead},
        tiles=[
            tile(len(audit.dataset.labels), "labels", first=True),
            *(tile(likely[kind], f"likely: {TITLES[kind].lower()}") for kind in Kind),
        ],
        links=[*links, *(['<a href="#next">Images to label next</a>'] if to_label else [])],
        sections=[*(section for kind in shown for section in _section(audit, kind, most)), *_next(to_label)],
    )


def _section(audit: "Audit", kind: "Kind", most: int) -> Iterator[str]:
    from twostage.inspection.suggestion import TITLES

    every = audit.of(kind)
    yield f'<h2 id="{kind}">{html.escape(TITLES[kind])}</h2>'
    yield f'<p class="soft">The first {min(most, len(every))} of {len(every)}, the most likely first.</p>'
    yield '<div class="crops">'
    for number, one in enumerate(every[:most], 1):
        yield _figure(audit, one, number)
    yield "</div>"


def _figure(audit: "Audit", one: "Suggestion", number: int) -> str:
    from twostage.inspection.crops import crop, jpeg

    data = audit.dataset
    label = None if one.row is None else data.names[int(data.labels[one.row])]
    suggested = None if one.label is None else data.names[one.label]
    if label is None:
        heading = f"add {suggested}"
    elif one.box is None:
        heading = f"{label}: a copy?" if one.other is not None else f"{label}: nothing found"
    else:
        heading = f"{label}: move the box" if suggested == label else f"{label}: {suggested}?"
    note = f"{data.file_name(one.image)}. {one.why}"
    return _captioned(jpeg(crop(data, one)), f"{number}. {heading}", f"{one.value:.2f}", note)


def _next(to_label: Sequence[ToLabel]) -> Iterator[str]:
    from twostage.inspection.crops import jpeg, thumbnail

    if not to_label:
        return
    yield '<h2 id="next">Images to label next</h2>'
    yield '<p class="soft">Those that the detector is least certain about, the most worth labelling first.</p>'
    yield '<div class="crops">'
    for number, one in enumerate(to_label, 1):
        picture = jpeg(thumbnail(one.pixels, list(one.boxes)))
        yield _captioned(picture, f"{number}. {one.name}", f"{one.image.worth:.1f}", one.image.why)
    yield "</div>"


def _captioned(picture: bytes, heading: str, value: str, note: str) -> str:
    """A picture with its caption; texts are escaped here."""
    data = base64.b64encode(picture).decode()
    heading, note = html.escape(heading), html.escape(note)
    return (
        f'<figure><img loading="lazy" alt="{heading}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption><i>{heading}</i> {value}: {note}</figcaption></figure>"
    )
