"""The data set of a verb with the classes of its detector, and what is printed about them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset


def matched(dataset: "Dataset", names: Sequence[str]) -> "Dataset":
    """The data set with the detector's classes, matched by name; those that it lacks are printed.

    Raises UsageError as `data.dataset.match_classes`.
    """
    from twostage.data.dataset import match_classes

    found = match_classes(dataset, names)
    if lacking := [name for name in names if name not in dataset.names]:
        print(f"Classes of the detector that the data set does not have: {', '.join(lacking)}")
    return found


def selected(dataset: "Dataset", names: Sequence[str]) -> "Dataset":
    """The same for a score; where the data set has all of the detector's classes and more, only those count.

    A data set that lacks some and has others is refused: they may be the same classes under other names.
    """
    from twostage.data.dataset import select_classes

    if set(names) < set(dataset.names):
        print(f"Evaluated on the detector's classes only: {', '.join(names)}")
        dataset = select_classes(dataset, names)
    return matched(dataset, names)
