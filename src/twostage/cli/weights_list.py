"""`twostage weights list`: the published weights."""

from itertools import groupby
from typing import Any

from twostage.cli.verb import Outcome, verb
from twostage.options import Options
from twostage.weights.published import PUBLISHED, cached
from twostage.weights.publishers.entry import Published


@verb(Options)
def list(_options: Options) -> Outcome:
    """List the published weights, and which of them are in the cache. Nothing is downloaded."""
    rows = {name: _columns(one) for name, one in PUBLISHED.items()}
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
    for publisher, group in groupby(PUBLISHED.values(), key=lambda one: one.publisher):
        print(f"{publisher.name}: code {publisher.code}; weights {publisher.weights} ({publisher.note})")
        for one in group:
            line = "  ".join(f"{text:{width}}" for text, width in zip(rows[one.name], widths, strict=True))
            print(f"  {line.rstrip()}")
        print()
    print("Numbers and licences are the publishers'; ? where one gives no size. `weights info NAME` shows the address,")
    print("how a download is verified and how far the import was compared; `weights get NAME` downloads it now. A name")
    print("stands in place of a file: twostage predict photo.jpg --weights NAME, twostage train DATA --weights NAME.")
    return Outcome({"weights": [to_dict(one) for one in PUBLISHED.values()]})


def _columns(one: Published) -> tuple[str, ...]:
    size = "?" if one.size is None else one.mib
    return one.name, one.what, one.number, f"{size:>7}", one.licence, "cached" if cached(one).exists() else ""


def to_dict(one: Published) -> dict[str, Any]:
    """All that is known of published weights."""
    return {
        "name": one.name,
        "publisher": one.publisher.name,
        "model": one.model,
        "about": one.about,
        "data": one.data,
        "score": one.score,
        "score_masks": one.masks,
        "url": one.url,
        "size_mib": one.size,
        "verification": one.verification,
        "licence": one.licence,
        "licence_note": one.publisher.note,
        "licence_of_code": one.publisher.code,
        "proof": one.proof,
        "file": str(cached(one)),
        "here": cached(one).exists(),
    }
