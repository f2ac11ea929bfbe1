"""`twostage weights list`: the published weights."""

from twostage.cli.verb import Outcome, verb
from twostage.options import Options
from twostage.weights.published import PUBLISHED, cached


@verb(Options)
def list(_options: Options) -> Outcome:
    """List the published weights, and which of them are in the cache. Nothing is downloaded."""
    width = max(map(len, PUBLISHED))
    for one in PUBLISHED.values():
        print(f"{one.name:{width}}  {one.about}{', cached' if cached(one).exists() else ''}")
    print("\nUse a name in place of a file: twostage train DATA --weights NAME. `weights get NAME` downloads it now.")
    rows = [
        {"name": one.name, "url": one.url, "model": one.model, "sha256": one.sha256, "here": cached(one).exists()}
        for one in PUBLISHED.values()
    ]
    return Outcome({"weights": rows})
