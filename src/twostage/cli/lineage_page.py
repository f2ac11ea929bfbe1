"""The page of a lineage run: one HTML file with its images embedded, which does not access the network."""

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twostage.cli import page as pages
from twostage.cli.page import figure
from twostage.experiments.papers import MAP, RATIOS
from twostage.experiments.rows import Row


def write_page(result: Mapping[str, Any]) -> Path:
    """Write `index.html` into the run's folder and return its path."""
    root = Path(result["out"])
    rows = [Row(**row) for row in result["rows"]]
    pages.write_page(
        root / "index.html",
        "lineage_page.html",
        lead=html.escape(_lead(result)),
        rows="\n".join(map(_row, rows)),
        backbone=html.escape(_backbone(result["backbone"])),
        ratios="\n".join(_ratios({row.key: row for row in rows})),
        images="\n".join(_figures(root, rows)),
        bounds=html.escape(_bounds(result)),
    )
    return root / "index.html"


def _lead(result: Mapping[str, Any]) -> str:
    images = result["images"]
    return (
        f"{len(result['rows'])} detectors with one small backbone, trained on {images['train']} images and evaluated "
        f"on {images['val']} others. Each row adds the contribution of the paper it is named after."
    )


def _row(row: Row) -> str:
    papers = f"{MAP[row.key][0]:.1f} <small>{MAP[row.key][1]}</small>" if row.key in MAP else ""
    cells = [
        f"{html.escape(row.name)}<br><small>{html.escape(row.detail)}</small>",
        f"{100 * row.metrics['voc07']:.1f}",
        papers,
        f"{100 * row.metrics['AP50']:.1f}",
        f"{100 * row.metrics['AP']:.1f}",
        f"{row.train_seconds:.0f} s",
        f"{1e3 * row.proposals:.1f} ms",
        f"{1e3 * row.network:.1f} ms",
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _backbone(row: Mapping[str, Any]) -> str:
    return f"The common backbone: {row['detail']}, {row['train_seconds']:.0f} s."


def _ratios(rows: Mapping[str, Row]) -> Iterator[str]:
    for ratio in RATIOS:
        ours = ratio.ours(rows)
        if ours is not None:
            papers = f"{ratio.papers:g} <small>{ratio.where}</small>"
            yield f"<tr><td>{html.escape(ratio.what)}</td><td>{ours:.1f}</td><td>{papers}</td></tr>"


def _figures(root: Path, rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        path = root / "pictures" / f"{row.key}.jpg"
        if path.exists():
            yield figure(path.read_bytes(), "jpeg", row.name)


def _bounds(result: Mapping[str, Any]) -> str:
    settings, images = result["settings"], result["images"]
    return (
        f"The first {settings['windows']} proposals of selective search per image are used, in training and at test "
        f"({result['proposals_an_image']:.0f} on average here, 2000 in the papers). SVMs and box regressors are fitted "
        f"on {images['learned']} images. Each network is fine-tuned for {settings['minutes']:g} min, the two layers of "
        "SPPnet for a third of that, the four steps together for twice as long; training times include training steps "
        "and fitting only. Fast and Faster R-CNN are trained with scale augmentation and an exponential moving average "
        "of the weights, R-CNN and SPPnet with horizontal flips only. Networks that take the whole image resize its "
        f"shortest side to {settings['size']} pixels; R-CNN crops its windows from the image at its original size. "
        "Times are medians on this machine, without reading files. SVM scores are not probabilities; in the images "
        "they are mapped to numbers between 0.5 and 1."
    )
