"""The page of a data set's missed objects: causes, funnel, settings, and the images with the most of them."""

import html
import io
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.cli.page import tile, write_page
from twostage.cli.why import cause_rows, funnel_rows, remedy_in_words, setting_rows, settings_note, tide_rows

if TYPE_CHECKING:
    from twostage.cli.why import Why
    from twostage.evaluation.results import Results
    from twostage.inspection.ledger import Ledger, MissedObject

_LONGEST = 900  # pixels of an image on the page
_SHOWN = 24
_KEY = (
    '<span class="missed"></span>missed, numbered as below <span class="by"></span>the box that came furthest, or that '
    'suppressed it <span class="found"></span>detections'
)


def write_misses_page(path: Path, title: str, why: "Why", results: "Results") -> None:
    """Write the page, one file without any request."""
    seen = why.ledger
    counted, post = int(seen.counted.sum()), seen.config
    run = f"score from {post.score_threshold:g}, at most {post.max_det} detections in an image, box IoU 0.5"
    kept = sum(one.remedy.keeps for one in seen.missed)
    write_page(
        path,
        "misses_page.html",
        {
            "title": title,
            "lead": f"{len(seen.missed)} of {counted} objects are missed ({run}).",
            "settings_note": settings_note(why),
            "tide_note": "" if why.mask_tide is None else "Of boxes, and of masks beside them.",
        },
        tiles=[
            tile(f"{seen.recall:.3f}" if counted else "-", "recall", first=True),
            tile(len(seen.missed), "missed objects"),
            tile(kept, "that settings keep"),
            tile(sum(one.remedy.needs_training for one in seen.missed), "that need training"),
        ],
        causes=_table(*cause_rows(seen, why.costs)),
        funnel=_table(*funnel_rows(seen)),
        settings=_table(*setting_rows(why.worth)) if why.worth.now.AP >= 0 else [],
        types=_table(*tide_rows(why.tide, why.mask_tide)),
        key=[_KEY],
        images=_figures(seen, results),
    )


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{html.escape(str(cell))}</th>" for cell in head) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
    yield "</table>"


def _figures(seen: "Ledger", results: "Results") -> Iterator[str]:
    """The images with the most missed objects, most first."""
    by_image: dict[int, list[MissedObject]] = defaultdict(list)
    for one in seen.missed:
        by_image[one.image].append(one)
    worst = sorted(by_image, key=lambda image: -len(by_image[image]))[:_SHOWN]
    for image in worst:
        yield _figure(seen, image, by_image[image], results)


def _figure(seen: "Ledger", image: int, missed: Sequence["MissedObject"], results: "Results") -> str:
    """An image with its missed objects, numbered, and a line on each."""
    from PIL import Image

    from twostage.inspection.words import cause_in_words

    data = seen.dataset
    picture = Image.fromarray(data.image(image))
    width = picture.width
    picture.thumbnail((_LONGEST, _LONGEST))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    scale = picture.width / width
    post = seen.config
    own = (results.images == image) & (results.scores > post.score_threshold)
    shapes = [_rect(box * scale, "found") for box in results.boxes[own]]
    lines = []
    for number, one in enumerate(missed, 1):
        detail = one.miss.detail
        for name in ("by_box", "refined", "box"):
            if name in detail:
                shapes.append(_rect([x * scale for x in detail[name]], "by"))
                break
        box = data.boxes[one.row] * scale
        shapes += [_rect(box, "missed"), f'<text x="{box[0] + 3:.0f}" y="{max(12, box[1] + 13):.0f}">{number}</text>']
        mend = remedy_in_words(one.miss, one.remedy, data.names)
        label = data.names[int(data.labels[one.row])]
        lines.append(f"<li>{html.escape(f'{label}: {cause_in_words(one.miss, data.names)}; {mend}')}</li>")
    source = f"data:image/jpeg;base64,{b64encode(content.getvalue()).decode()}"
    name = html.escape(data.file_name(image))
    return (
        f'<figure><svg viewBox="0 0 {picture.width} {picture.height}" role="img" aria-label="{name}">'
        f'<image href="{source}" width="{picture.width}" height="{picture.height}"/>{"".join(shapes)}</svg>'
        f"<figcaption><b>{name}</b> {len(missed)} missed<ol>{''.join(lines)}</ol></figcaption></figure>"
    )


def _rect(box: Any, kind: str) -> str:
    x1, y1, x2, y2 = (float(x) for x in box)
    width, height = max(0.0, x2 - x1), max(0.0, y2 - y1)
    return f'<rect class="{kind}" x="{x1:.1f}" y="{y1:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
