"""`twostage weights get`: download published weights."""

from dataclasses import dataclass

from twostage.cli.verb import Outcome, verb
from twostage.common_options import OfflineOptions
from twostage.options import option
from twostage.weights.published import published


@dataclass(frozen=True)
class GetOptions(OfflineOptions):
    name: str = option(help="Name from `twostage weights list`.")


@verb(GetOptions)
def get(options: GetOptions) -> Outcome:
    """Download published weights into the cache, verified, as safetensors; an interrupted download is resumed."""
    from twostage.weights.named import bring

    one = published(options.name)
    print(f"{one.name}: {one.about}\n{one.url}, {one.verification}")
    path = bring(one, offline=options.offline)
    print(f"Here: {path}")
    return Outcome({"name": one.name, "file": path, "url": one.url, "licence": one.licence})
