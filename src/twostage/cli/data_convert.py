"""`twostage data convert`: a data set in another layout, without loss."""

from dataclasses import dataclass
from typing import Literal

from twostage.cli.verb import Outcome, verb
from twostage.common_options import DataOptions, NewDataOptions
from twostage.data import Kind
from twostage.options import option


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(DataOptions, NewDataOptions):
    to: Kind = option(help="Layout to write.")
    on_error: Literal["default", "fail", "skip"] = option(
        "default", "Faulty boxes: keep them as written (default), stop (fail), or leave them out (skip).", group="Data"
    )


@verb(ConvertOptions)
def convert(options: ConvertOptions) -> Outcome:
    """Write all splits of a data set in another layout. Boxes, ids, difficult, iscrowd, areas and masks are kept.

    Values that the layout cannot hold are written to twostage.json beside it. DATA is not changed.
    """
    from twostage.data.convert import convert

    written = convert(
        options.data,
        options.out,
        options.to,
        images=options.images,
        voc_offset=options.voc_offset,
        boxes=options.boxes,
        on_error=options.on_error,
        pictures=options.pictures,
    )
    print(written.format())
    return Outcome(written.to_dict())
