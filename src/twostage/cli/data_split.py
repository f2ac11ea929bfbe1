"""`twostage data split`: pictures dealt out anew."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from twostage.cli.verb import Outcome, verb
from twostage.data import Kind
from twostage.errors import UsageError
from twostage.options import option, validate


@dataclass(frozen=True)
class SplitOptions:
    """What to deal out, into which parts, and where."""

    data: Path = option(help="Data set in VOC, COCO or YOLO layout; the pictures of all its splits are dealt out.")
    _: KW_ONLY
    parts: tuple[str, ...] = option(("train=0.8", "val=0.2"), "Names of the new splits and their shares.")
    seed: int = option(0, "Another seed deals otherwise.", low=0)
    images: Path | None = option(None, "Folder of the pictures, where a COCO file does not show it.", group="Data")
    voc_offset: Literal["auto", "0", "1"] = option("auto", "The first pixel's number in VOC files.", group="Data")
    to: Kind | None = option(None, "Layout to write (default: that of the data).", group="Output")
    pictures: Literal["copy", "link"] = option("copy", "Copy the pictures, or link to where they are.", group="Output")
    out: Path = option(help="New folder.", group="Output")

    def __post_init__(self) -> None:
        validate(self)
        self.shares()

    def shares(self) -> dict[str, float]:
        """The parts by name. Raises UsageError."""
        shares: dict[str, float] = {}
        for part in (word.strip() for text in self.parts for word in text.split(",")):
            name, _, share = part.partition("=")
            try:
                number = float(share)
            except ValueError:
                raise UsageError(f"parts: {part!r} is no name=share, as train=0.8") from None
            if not name or name in shares or not name.replace("-", "_").isidentifier():
                raise UsageError(f"parts: {name!r} is no name of a split, or is there twice")
            shares[name] = number
        return shares


@verb(SplitOptions)
def split(options: SplitOptions) -> Outcome:
    """Deal a data set's pictures out into new splits: each class in its share, equal pictures on one side.

    The same seed gives the same splits. The source is not changed.
    """
    from twostage.data.split import split

    written = split(
        options.data,
        options.out,
        options.shares(),
        to=options.to,
        seed=options.seed,
        images=options.images,
        voc_offset=options.voc_offset,
        pictures=options.pictures,
    )
    print(written.format())
    return Outcome(written.to_dict())
