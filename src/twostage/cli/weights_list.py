"""`twostage weights list`: the weights that have a name."""

from dataclasses import dataclass

from twostage.cli.verb import Outcome, verb
from twostage.weights.published import PUBLISHED, cached


@dataclass(frozen=True)
class ListOptions:
    """There is nothing to choose."""


@verb(ListOptions)
def list(_options: ListOptions) -> Outcome:
    """Name the published weights, what they are, and which are here already. Nothing is fetched."""
    width = max(map(len, PUBLISHED))
    for one in PUBLISHED.values():
        print(f"{one.name:{width}}  {one.about}{', here' if cached(one).exists() else ''}")
    print("\nA name stands for a file: twostage train DATA --weights NAME. `weights get NAME` fetches it beforehand.")
    rows = [
        {"name": one.name, "url": one.url, "model": one.model, "sha256": one.sha256, "here": cached(one).exists()}
        for one in PUBLISHED.values()
    ]
    return Outcome({"weights": rows})
