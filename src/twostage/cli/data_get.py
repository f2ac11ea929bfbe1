"""`twostage data get`: download the data sets of the papers."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from twostage.cli.verb import Outcome, verb
from twostage.common_options import OfflineOptions
from twostage.data.published import PUBLISHED_DATA, published_data
from twostage.options import option


@dataclass(frozen=True)
class GetDataOptions(OfflineOptions):
    name: str = option(help=f"One of: {', '.join(PUBLISHED_DATA)}.")
    _: KW_ONLY
    splits: tuple[str, ...] = option((), "Download these splits only, as val2017 (default: all).", group="Data")
    out: Path | None = option(None, "New folder (default: the name).", group="Output")


@verb(GetDataOptions)
def get(options: GetDataOptions) -> Outcome:
    """Download a data set of the papers, verify and unpack it; an interrupted download is resumed.

    With --offline, archives that were placed there by hand are unpacked.
    """
    from twostage.data.get import get
    from twostage.data.recognise import find_layout

    one = published_data(options.name)
    archives = one.needed(options.splits)
    print(f"{one.about}. Licence: {one.licence}.")
    for archive in archives:
        print(f"{archive.url}, {archive.size / 2**20:.0f} MiB, SHA-256 {archive.sha256}")
    out = get(one, options.out or Path(one.name), splits=options.splits, offline=options.offline)
    layout = find_layout(out)
    print(f"Here: {layout}")
    return Outcome({"name": one.name, "out": out, "splits": layout.splits, "licence": one.licence})
