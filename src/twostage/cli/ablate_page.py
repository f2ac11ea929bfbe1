"""The page of the ablations: one HTML file that does not access the network."""

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twostage.cli import page as pages


def write_page(result: Mapping[str, Any]) -> Path:
    """Write `index.html` into the run's folder and return its path."""
    settings, images = result["settings"], result["images"]
    seeds = f"{settings['seeds']} seeds" if settings["seeds"] > 1 else "one seed"
    minutes = "a minute" if settings["minutes"] == 1 else f"{settings['minutes']:g} minutes"
    lead = (
        f"Trained on {images['train']} images and evaluated on {images['val']} others; the small backbone, {minutes} "
        f"of training each, {seeds}, shortest side {settings['size']} pixels."
    )
    studies = "\n".join(_study(study) for study in result["studies"].values())
    path = Path(result["out"]) / "index.html"
    pages.write_page(path, "ablate_page.html", lead=html.escape(lead), studies=studies)
    return path


def _study(study: Mapping[str, Any]) -> str:
    most = max([1e-9, *(case["mean"] for case in study["cases"])])
    return (
        f"<h2>{html.escape(study['title'])}</h2>\n"
        f'<p class="soft">{html.escape(study["source"])}</p>\n'
        '<div class="scroll"><table>\n'
        f"<tr><th>case</th><th>here, {html.escape(study['unit'])}</th><th>min to max</th><th></th>"
        f"<th>paper</th></tr>\n{chr(10).join(_rows(study, most))}\n</table></div>"
    )


def _rows(study: Mapping[str, Any], most: float) -> Iterator[str]:
    for case in study["cases"]:
        papers = "" if case["papers"] is None else f"{case['papers']:.1f}"
        spread = f"{case['least']:.1f} to {case['most']:.1f}" if len(case["values"]) > 1 else ""
        bar = f'<i style="width:{100 * max(0.0, case["mean"]) / most:.1f}%"></i>'
        yield (
            f"<tr><td>{html.escape(case['case'])}</td><td>{case['mean']:.1f}</td><td>{spread}</td>"
            f'<td class="bar">{bar}</td><td>{papers}</td></tr>'
        )
