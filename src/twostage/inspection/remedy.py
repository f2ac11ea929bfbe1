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
        """Whether the object is found with these changes."""
        return self.miss is None

    @property
    def needs_training(self) -> bool:
        """Whether it ends at a cause on which no setting acts."""
        return self.miss is not None and not self.miss.changes


def remedy(runner: Runner, trace: Trace, objects: Objects, place: int, miss: Miss, post: PostprocessConfig) -> Remedy:
    """The smallest change of one setting with which a missed object is found, else changes of several settings.

    Every change is tried. Where one does not suffice, the setting that acts on the next cause is changed as well, and
    so on. Where nothing keeps the object: the trial in which a box of it came furthest.
    """
    now, nothing = View(trace, objects, post), Remedy((), miss)
    singles = []
    for change in _possible(runner, nothing):
        one, view = _trial(runner, now, place, nothing, change)
        if one.keeps:
            return one
        singles.append((one, view))
    tried = []
    for one, view in singles:
        tried.append(_followed(runner, view, place, one))
        if tried[-1].keeps:
            return tried[-1]
    return max(tried, key=_progress, default=nothing)


def _possible(runner: Runner, before: Remedy) -> list[Change]:
    """The changes that the cause proposes, of settings that can be tried and were not changed before."""
    fields = {change.field for change in before.changes}
    changes = () if before.miss is None else before.miss.changes
    return [change for change in changes if change.field not in fields and can_rerun(runner, change.field)]


def _followed(runner: Runner, view: View, place: int, tried: Remedy) -> Remedy:
    """With the smallest change for each next cause, until the object is found or no setting is left."""
    while changes := _possible(runner, tried):
        tried, view = _trial(runner, view, place, tried, changes[0])
    return tried


def _trial(runner: Runner, view: View, place: int, before: Remedy, change: Change) -> tuple[Remedy, View]:
    """What becomes of the object with one more change."""
    assert before.miss is not None
    other = _changed(runner, view, change)
    missed = place not in other.owner.tolist()
    after = why(other, place, before.miss.detail["anchor_iou"]) if missed else None
    return Remedy((*before.changes, change), after), other


def _changed(runner: Runner, view: View, change: Change) -> View:
    """The boxes of every step with another value of a setting."""
    if change.field.startswith(TAIL):
        return View(view.trace, view.objects, with_value(view.config, change.field, change.value))
    trace = rerun(cast(PreparedModel, runner), view.trace, {change.field: change.value})
    return View(trace, view.objects, view.config)


def _progress(tried: Remedy) -> int:
    assert tried.miss is not None
    return _FURTHER.index(tried.miss.cause)
