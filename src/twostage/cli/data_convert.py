"""`twostage data convert`: another layout, nothing lost."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from twostage.cli.verb import Outcome, verb
from twostage.data import Kind
from twostage.options import option, validate


@dataclass(frozen=True)
class ConvertOptions:
    """What to write in which layout, and where."""

    data: Path = option(help="Data set in VOC, COCO or YOLO layout; all its splits are converted.")
    _: KW_ONLY
    to: Kind = option(help="Layout to write.")
    images: Path | None = option(None, "Folder of the pictures, where a COCO file does not show it.", group="Data")
    voc_offset: Literal["auto", "0", "1"] = option("auto", "The first pixel's number in VOC files.", group="Data")
    on_error: Literal["default", "fail", "skip"] = option(
        "default", "What to do with faulty boxes: keep them as they are written, stop, or leave them out.", group="Data"
    )
    pictures: Literal["copy", "link"] = option("copy", "Copy the pictures, or link to where they are.", group="Output")
    out: Path = option(help="New folder.", group="Output")

    def __post_init__(self) -> None:
        validate(self)


@verb(ConvertOptions)
def convert(options: ConvertOptions) -> Outcome:
    """Write a data set in another layout. Boxes, ids, difficult, iscrowd, areas and masks are kept.

    What a layout has no place for is kept in a file twostage.json beside it. The source is not changed.
    """
    from twostage.data.convert import convert

    written = convert(
        options.data,
        options.out,
        options.to,
        images=options.images,
        voc_offset=options.voc_offset,
        on_error=options.on_error,
        pictures=options.pictures,
    )
    print(written.format())
    return Outcome(written.to_dict())
