"""`twostage lineage`: the R-CNN family trained on one data set and compared."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from twostage.cli.verb import Outcome, verb
from twostage.experiments.options import LineageOptions


@verb(LineageOptions)
def lineage(options: LineageOptions) -> Outcome:
    """Train R-CNN, SPPnet, Fast R-CNN and Faster R-CNN with one small backbone, and compare them.

    All start from a backbone that is first trained to classify crops of the objects. The page, OUT/index.html, has
    accuracy, training time and seconds per image, and their ratios beside those of the papers.
    """
    from twostage.cli.lineage_page import write_page
    from twostage.experiments.run import lineage

    result = lineage(options)
    print("\n".join(table(result["rows"])))
    page = write_page(result)
    print(f"\nSaved to {result['out']}: open {page}")
    return Outcome(result)


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as text; times in milliseconds per image at test."""
    width = max(len(row["name"]) for row in rows)
    yield f"{'':{width}}  voc07  AP50    AP  training  proposals   network"
    for row in rows:
        metrics = "".join(f"{row['metrics'][name]:6.3f}" for name in ("voc07", "AP50", "AP"))
        times = f"{row['train_seconds']:8.0f} s{1e3 * row['proposals']:8.1f} ms{1e3 * row['network']:7.1f} ms"
        yield f"{row['name']:{width}} {metrics}{times}"
