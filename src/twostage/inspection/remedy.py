"""What would have kept a missed object: settings, tried on the same feature maps, or training."""

from typing import NamedTuple, cast

from twostage.inference.prepare import PreparedModel
from twostage.inference.runner import Runner
from twostage.inspection.account import Objects, View
from twostage.inspection.causes import Cause, Change, Miss
from twostage.inspection.rerun import TAIL, can_rerun, rerun, with_value
from twostage.inspection.trace import Trace
from twostage.inspection.why import why
from twostage.models.heads.postprocess import PostprocessConfig

_FURTHER = list(Cause)


class Remedy(NamedTuple):
    """Changes of settings that were tried together, and why the object is missed with them: None where it is found.

    Without any changes none could be tried: no setting acts on the cause, or an exported file does not have it.
    """

    changes: tuple[Change, ...]
    miss: Miss | None

    @property
    def keeps(self) -> bool:
        """Whether the object is found with these changes; otherwise it needs training."""
        return self.miss is None


def remedy(runner: Runner, trace: Trace, objects: Objects, place: int, miss: Miss, post: PostprocessConfig) -> Remedy:
    """The smallest change of one setting with which a missed object is found, else changes of two settings.

    Every change is tried. Where none keeps the object: the trial in which a box of it came furthest.
    """
    now = View(trace, objects, post)
    singles = _trials(runner, now, place, Remedy((), miss))
    for one, _ in singles:
        if one.keeps:
            return one
    pairs = [pair for one, view in singles for pair, _ in _trials(runner, view, place, one, most=1)]
    for pair in pairs:
        if pair.keeps:
            return pair
    tried = [*(one for one, _ in singles), *pairs]
    return max(tried, key=_progress, default=Remedy((), miss))


def _trials(
    runner: Runner, view: View, place: int, before: Remedy, most: int | None = None
) -> list[tuple[Remedy, View]]:
    """The changes that the cause proposes, each tried on top of those before: up to the first that keeps the object."""
    found: list[tuple[Remedy, View]] = []
    assert before.miss is not None
    fields = [change.field for change in before.changes]
    for change in before.miss.changes[:most]:
        if change.field in fields or not can_rerun(runner, change.field):
            continue
        other = _changed(runner, view, change)
        missed = place not in other.owner.tolist()
        after = why(other, place, before.miss.detail["anchor_iou"]) if missed else None
        found.append((Remedy((*before.changes, change), after), other))
        if not missed:
            break
    return found


def _changed(runner: Runner, view: View, change: Change) -> View:
    """The boxes of every step with another value of a setting."""
    if change.field.startswith(TAIL):
        return View(view.trace, view.objects, with_value(view.config, change.field, change.value))
    trace = rerun(cast(PreparedModel, runner), view.trace, {change.field: change.value})
    return View(trace, view.objects, view.config)


def _progress(tried: Remedy) -> int:
    assert tried.miss is not None
    return _FURTHER.index(tried.miss.cause)
