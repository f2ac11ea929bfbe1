"""`twostage data split`: new splits of a data set."""

from dataclasses import dataclass

from twostage.cli.verb import Outcome, verb
from twostage.common_options import SEED, DataOptions, NewDataOptions
from twostage.data import Kind
from twostage.errors import UsageError
from twostage.options import option


@dataclass(frozen=True, kw_only=True)
class SplitOptions(DataOptions, NewDataOptions):
    parts: tuple[str, ...] = option(("train=0.8", "val=0.2"), "Names of the new splits and their fractions.")
    seed: int = option(0, SEED, group="Run", low=0)
    to: Kind | None = option(None, "Layout to write (default: that of the data).", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shares()

    def shares(self) -> dict[str, float]:
        """The fraction of each new split. Raises UsageError."""
        shares: dict[str, float] = {}
        for part in (word.strip() for text in self.parts for word in text.split(",")):
            name, _, share = part.partition("=")
            try:
                number = float(share)
            except ValueError:
                raise UsageError(f"parts: {part!r} is not name=fraction, as in train=0.8") from None
            if not name or name in shares or not name.replace("-", "_").isidentifier():
                raise UsageError(f"parts: {name!r} is not a valid name of a split, or is given twice")
            shares[name] = number
        return shares


@verb(SplitOptions)
def split(options: SplitOptions) -> Outcome:
    """Split the images of all splits anew, stratified by class; duplicate images go to the same split.

    The same seed gives the same splits. DATA is not changed.
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
        boxes=options.boxes,
        pictures=options.pictures,
    )
    print(written.format())
    return Outcome(written.to_dict())
