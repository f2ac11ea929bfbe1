"""Settings that pay on a data set, together: the best value of each, taken one after the other as long as AP rises."""

from collections.abc import Callable
from typing import Any, NamedTuple

from twostage.data.dataset import Dataset
from twostage.inference.runner import Runner
from twostage.inspection.settings import Setting, Worth, candidates, worth
from twostage.models.heads.postprocess import PostprocessConfig

LEAST = 0.001  # the gain in AP from which a setting pays: a tenth of a point


class Tuned(NamedTuple):
    """What was measured, one setting at a time, and the settings that pay together, in the order they were taken."""

    singles: Worth
    steps: tuple[Setting, ...]

    @property
    def fields(self) -> dict[str, Any]:
        """The values to take; none where nothing pays."""
        return self.steps[-1].fields if self.steps else {}


def tune(
    runner: Runner,
    dataset: Dataset,
    post: PostprocessConfig,
    after_image: Callable[[int, int], None] = lambda done, all: None,
    singles: Worth | None = None,
) -> Tuned:
    """Greedy: the single setting that gains most, then the best of the others together with it, and so on.

    Of values that gain the same the one nearest to the present is taken: times differ from run to run. `after_image` is
    called with the number of images that are done and that of all, once for every pass over the data. `singles` are the
    single settings where they were measured already.
    """
    singles = singles or worth(runner, dataset, post, list(candidates(runner.config, post)), after_image)
    best: dict[str, Setting] = {}
    for one in sorted(singles.others, key=lambda one: -one.AP):
        (field,) = one.fields
        if one.AP - singles.now.AP >= LEAST:
            best.setdefault(field, one)
    steps: list[Setting] = []
    rest = list(best.values())
    if rest:
        steps.append(rest.pop(0))
    while rest:
        trials = [{**steps[-1].fields, **one.fields} for one in rest]
        found = worth(runner, dataset, post, trials, after_image).others
        place, ahead = max(enumerate(found), key=lambda pair: pair[1].AP)
        if ahead.AP - steps[-1].AP < LEAST:
            break
        steps.append(ahead)
        rest.pop(place)
    return Tuned(singles, tuple(steps))
