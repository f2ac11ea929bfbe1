"""`twostage data check`: what is wrong with a data set, and a copy without it."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twostage.cli.verb import Outcome, verb
from twostage.errors import DataError
from twostage.options import option, validate

if TYPE_CHECKING:
    from twostage.data.check import Report


@dataclass(frozen=True)
class CheckOptions:
    """What to check, and how closely."""

    data: Path = option(help="Data set in VOC, COCO or YOLO layout; all its splits are checked.")
    _: KW_ONLY
    images: Path | None = option(None, "Folder of the pictures, where a COCO file does not show it.", group="Data")
    voc_offset: Literal["auto", "0", "1"] = option("auto", "The first pixel's number in VOC files.", group="Data")
    deep: bool = option(False, "Decode every picture, not only its header and its end.", group="Data")
    size: int = option(800, "Shortest side in training, for how small objects become.", group="Images", low=1)
    max_size: int = option(1333, "Longest side in training.", group="Images", low=1)
    fix: Path | None = option(None, "New folder for a copy without the faults; DATA stays as it is.", group="Output")
    most: int = option(50, "Faults to list; the rest is counted.", group="Output", low=1)

    def __post_init__(self) -> None:
        validate(self)


@verb(CheckOptions)
def check(options: CheckOptions) -> Outcome:
    """Name every fault of a data set by file and object, with its mend. Nothing is changed.

    Exits with 3 when anything is wrong, repairable or not; notes do not count. With --fix, that is judged of the copy.
    """
    from twostage.data.check import check
    from twostage.data.fix import fix_dataset
    from twostage.data.resize import Resize

    resize = Resize(size=options.size, max_size=options.max_size)
    report = check(options.data, images=options.images, voc_offset=options.voc_offset, resize=resize, deep=options.deep)
    print(report.format(most=options.most))
    if options.fix is None or report.ok:
        if options.fix:
            print(f"{options.fix} is not written: there is nothing to mend.")
        return Outcome(report.to_dict(), _failure(options.data, report))
    written = fix_dataset(
        options.data, options.fix, images=options.images, voc_offset=options.voc_offset, deep=options.deep
    )
    mended = check(written.path, resize=resize, deep=options.deep)
    print(f"\nThe mended copy:\n{mended.format(most=options.most)}")
    result = {**report.to_dict(), "fixed": {**mended.to_dict(), **written.to_dict()}}
    return Outcome(result, _failure(written.path, mended))


def _failure(data: Path, report: "Report") -> DataError | None:
    found = f"{data}: {report.counts['error']} errors, {report.counts['repair']} repairable faults"
    return None if report.ok else DataError(found)
