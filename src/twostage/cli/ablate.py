"""`twostage ablate`: the ablations of the papers on one data set."""

from collections.abc import Iterator, Mapping
from typing import Any

from twostage.cli.verb import Outcome, verb
from twostage.experiments.options import AblateOptions


@verb(AblateOptions)
def ablate(options: AblateOptions) -> Outcome:
    """Run the papers' ablations with a small backbone and several seeds; print the results beside the papers' values.

    Detectors that several studies share are trained once. --resume continues with the unfinished ones.
    """
    from twostage.cli.ablate_page import write_page
    from twostage.experiments.ablate import ablate

    result = ablate(options)
    for study in result["studies"].values():
        print("\n".join(_lines(study)))
    page = write_page(result)
    print(f"\nSaved to {result['out']}: open {page}")
    return Outcome(result)


def _lines(study: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n{study['title']} ({study['unit']}; {study['source']})"
    width = max(len(case["case"]) for case in study["cases"])
    for case in study["cases"]:
        papers = "" if case["papers"] is None else f"{case['papers']:8.1f}"
        spread = f"({case['least']:.1f} to {case['most']:.1f})"
        yield f"  {case['case']:{width}} {case['mean']:7.1f} {spread:>16} {papers:>8}"
