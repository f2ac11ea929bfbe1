"""`twostage lineage`: the R-CNN family trained on one data set and compared, and the page of the comparison."""

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twostage.cli.page import figure, write_page
from twostage.cli.verb import Outcome, verb
from twostage.experiments.options import LineageOptions
from twostage.experiments.papers import MAP, RATIOS


@verb(LineageOptions)
def lineage(options: LineageOptions) -> Outcome:
    """Train R-CNN, SPPnet, Fast R-CNN and Faster R-CNN with one small backbone, and compare them.

    All start from a backbone that is first trained to classify crops of the objects. The page, OUT/index.html, has
    accuracy, training time and seconds per image, and their ratios beside those of the papers.
    """
    from twostage.experiments.run import lineage

    result = lineage(options)
    print("\n".join(_table(result["rows"])))
    page = _write_page(result)
    print(f"\nSaved to {result['out']}: open {page}")
    return Outcome(result)


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as text; times in milliseconds per image at test."""
    width = max(len(row["name"]) for row in rows)
    yield f"{'':{width}}  voc07  AP50    AP  training  proposals   network"
    for row in rows:
        metrics = "".join(f"{row['metrics'][name]:6.3f}" for name in ("voc07", "AP50", "AP"))
        times = f"{row['train_seconds']:8.0f} s{1e3 * row['proposals']:8.1f} ms{1e3 * row['network']:7.1f} ms"
        yield f"{row['name']:{width}} {metrics}{times}"


def _write_page(result: Mapping[str, Any]) -> Path:
    root, rows, settings, backbone = Path(result["out"]), result["rows"], result["settings"], result["backbone"]
    values = {
        **result["images"],
        "detectors": len(rows),
        "backbone": f"{backbone['detail']}, {backbone['train_seconds']:.0f} s",
        "windows": settings["windows"],
        "proposals": f"{result['proposals_an_image']:.0f}",
        "minutes": f"{settings['minutes']:g}",
        "size": settings["size"],
    }
    return write_page(
        root / "index.html",
        "lineage_page.html",
        values,
        rows=map(_row, rows),
        ratios=_ratios({row["key"]: row for row in rows}),
        images=_figures(root, rows),
    )


def _row(row: Mapping[str, Any]) -> str:
    papers = "{:.1f} <small>{}</small>".format(*MAP[row["key"]]) if row["key"] in MAP else ""
    cells = [
        f"{html.escape(row['name'])}<br><small>{html.escape(row['detail'])}</small>",
        f"{100 * row['metrics']['voc07']:.1f}",
        papers,
        f"{100 * row['metrics']['AP50']:.1f}",
        f"{100 * row['metrics']['AP']:.1f}",
        f"{row['train_seconds']:.0f} s",
        f"{1e3 * row['proposals']:.1f} ms",
        f"{1e3 * row['network']:.1f} ms",
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _ratios(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for ratio in RATIOS:
        ours = ratio.ours(rows)
        if ours is not None:
            papers = f"{ratio.papers:g} <small>{ratio.where}</small>"
            yield f"<tr><td>{html.escape(ratio.what)}</td><td>{ours:.1f}</td><td>{papers}</td></tr>"


def _figures(root: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        path = root / "pictures" / f"{row['key']}.jpg"
        if path.exists():
            yield figure(path.read_bytes(), "jpeg", row["name"])
