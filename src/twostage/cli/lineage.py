"""`twostage lineage`: the history of the R-CNN family on one data set."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from twostage.cli.verb import Outcome, verb
from twostage.experiments.options import LineageOptions


@verb(LineageOptions)
def lineage(options: LineageOptions) -> Outcome:
    """Train R-CNN, SPPnet, Fast R-CNN and Faster R-CNN with one small backbone; show what each step of history gained.

    All begin from a network that is first trained as a classifier of the objects' crops. The page, OUT/index.html, has
    accuracy, training time and the seconds of an image, and the papers' ratios beside ours.
    """
    from twostage.cli.lineage_page import write_page
    from twostage.experiments.run import lineage

    result = lineage(options)
    print("\n".join(table(result["rows"])))
    page = write_page(result)
    print(f"\nSaved to {result['out']}: open {page}")
    return Outcome(result)


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as text; milliseconds of an image at test."""
    width = max(len(row["name"]) for row in rows)
    yield f"{'':{width}}  voc07  AP50    AP  training  proposals   network"
    for row in rows:
        metrics = "".join(f"{row['metrics'][name]:6.3f}" for name in ("voc07", "AP50", "AP"))
        times = f"{row['train_seconds']:8.0f} s{1e3 * row['proposals']:8.1f} ms{1e3 * row['network']:7.1f} ms"
        yield f"{row['name']:{width}} {metrics}{times}"
