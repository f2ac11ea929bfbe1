"""`twostage data check`: the faults of a data set, and a repaired copy."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from twostage.cli.verb import Outcome, verb
from twostage.common_options import DataOptions, ResizeOptions
from twostage.errors import DataError, UsageError
from twostage.folders import require_replaceable
from twostage.options import option

if TYPE_CHECKING:
    from twostage.data.check import Report


@dataclass(frozen=True, kw_only=True)
class CheckOptions(DataOptions, ResizeOptions):
    deep: bool = option(False, "Decode every image file, not only its header and end.", group="Data")
    fix: Path | None = option(None, "New folder for a repaired copy; DATA is not changed.", group="Output")
    remove: bool = option(False, "With --fix: leave out objects and images that cannot be used.", group="Output")
    most: int = option(50, "Faults listed; the rest are counted.", group="Output", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remove and self.fix is None:
            raise UsageError("--remove is given without --fix: name the folder of the repaired copy")


@verb(CheckOptions)
def check(options: CheckOptions) -> Outcome:
    """List every fault of a data set by file and object, with its repair, in all splits. DATA is not changed.

    Exit code 3 if there is any fault, repairable or not; notes do not count. With --fix the exit code is the copy's.
    """
    from twostage.data.check import check
    from twostage.data.fix import fix_dataset
    from twostage.data.resize import Resize

    if options.fix is not None:
        require_replaceable(options.fix, "--fix")
    resize = Resize(size=options.size, max_size=options.max_size)
    report = check(
        options.data,
        images=options.images,
        voc_offset=options.voc_offset,
        boxes=options.boxes,
        resize=resize,
        deep=options.deep,
    )
    print(report.format(most=options.most))
    if options.fix is None or report.ok:
        if options.fix:
            print(f"{options.fix} is not written: there is nothing to repair.")
        return Outcome(report.to_dict(), _failure(options.data, report))
    written = fix_dataset(
        options.data,
        options.fix,
        images=options.images,
        voc_offset=options.voc_offset,
        boxes=options.boxes,
        remove=options.remove,
        deep=options.deep,
    )
    repaired = check(written.path, resize=resize, deep=options.deep)
    print(f"\nThe repaired copy:\n{repaired.format(most=options.most)}")
    result = {**report.to_dict(), "fixed": {**repaired.to_dict(), **written.to_dict()}}
    return Outcome(result, _failure(written.path, repaired))


def _failure(data: Path, report: "Report") -> DataError | None:
    message = f"{data}: {report.counts['error']} errors, {report.counts['repair']} repairable faults"
    return None if report.ok else DataError(message)
