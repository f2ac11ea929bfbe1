"""`twostage weights get`: fetch weights that have a name."""

from dataclasses import KW_ONLY, dataclass

from twostage.cli.verb import Outcome, verb
from twostage.options import option
from twostage.weights.published import LICENCE, published


@dataclass(frozen=True)
class GetOptions:
    """Which."""

    name: str = option(help="A name of `twostage weights list`.")
    _: KW_ONLY
    offline: bool = option(False, "Look in the cache alone.", group="Run")


@verb(GetOptions)
def get(options: GetOptions) -> Outcome:
    """Fetch published weights, verify them, and keep them as safetensors; a fetch that broke off is resumed."""
    from twostage.weights.named import bring

    one = published(options.name)
    print(f"{one.name}: {one.about}\n{one.url}, SHA-256 {one.sha256}...")
    path = bring(one, offline=options.offline)
    print(f"Here: {path}")
    return Outcome({"name": one.name, "file": path, "url": one.url, "licence": LICENCE})
