"""`twostage ablate`: the ablations of the papers on one data set, and their page."""

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twostage.cli.page import write_page
from twostage.cli.verb import Outcome, verb
from twostage.experiments.options import AblateOptions


@verb(AblateOptions)
def ablate(options: AblateOptions) -> Outcome:
    """Run the papers' ablations with a small backbone and several seeds; print the results beside the papers' values.

    Detectors that several studies share are trained once. --resume continues with the unfinished ones.
    """
    from twostage.experiments.ablate import ablate

    result = ablate(options)
    for study in result["studies"].values():
        print("\n".join(_lines(study)))
    page = _write_page(result)
    print(f"\nSaved to {result['out']}: open {page}")
    return Outcome(result)


def _lines(study: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n{study['title']} ({study['unit']}; {study['source']}; {_seeds(len(study['cases'][0]['values']))})"
    width = max(len(case["case"]) for case in study["cases"])
    for case in study["cases"]:
        papers = "" if case["papers"] is None else f"{case['papers']:8.1f}"
        spread = f"({case['least']:.1f} to {case['most']:.1f})" if len(case["values"]) > 1 else ""
        yield f"  {case['case']:{width}} {case['mean']:7.1f} {spread:>16} {papers:>8}"


def _write_page(result: Mapping[str, Any]) -> Path:
    settings = result["settings"]
    values = {
        **result["images"],
        "minutes": "a minute" if settings["minutes"] == 1 else f"{settings['minutes']:g} minutes",
        "size": settings["size"],
    }
    studies = map(_study, result["studies"].values())
    return write_page(Path(result["out"]) / "index.html", "ablate_page.html", values, studies=studies)


def _study(study: Mapping[str, Any]) -> str:
    most = max([1e-9, *(case["mean"] for case in study["cases"])])
    return (
        f"<h2>{html.escape(study['title'])}</h2>\n"
        f'<p class="soft">{html.escape(study["source"])}; {_seeds(len(study["cases"][0]["values"]))}</p>\n'
        '<div class="scroll"><table>\n'
        f"<tr><th>case</th><th>here, {html.escape(study['unit'])}</th><th>min to max</th><th></th>"
        f"<th>paper</th></tr>\n{chr(10).join(_rows(study, most))}\n</table></div>"
    )


def _seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "one seed"


def _rows(study: Mapping[str, Any], most: float) -> Iterator[str]:
    for case in study["cases"]:
        papers = "" if case["papers"] is None else f"{case['papers']:.1f}"
        spread = f"{case['least']:.1f} to {case['most']:.1f}" if len(case["values"]) > 1 else ""
        bar = f'<i style="width:{100 * max(0.0, case["mean"]) / most:.1f}%"></i>'
        yield (
            f"<tr><td>{html.escape(case['case'])}</td><td>{case['mean']:.1f}</td><td>{spread}</td>"
            f'<td class="bar">{bar}</td><td>{papers}</td></tr>'
        )
