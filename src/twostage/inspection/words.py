"""Causes and remedies of missed objects as phrases."""

from collections.abc import Sequence
from typing import Any

from twostage.inspection.account import HIT
from twostage.inspection.causes import Cause, Miss
from twostage.inspection.remedy import Remedy

_NO_SETTING = {
    Cause.NO_PROPOSAL: "no setting brings other proposals",
    Cause.REFINED_AWAY: "no setting undoes a refinement",
    Cause.OTHER_OBJECT: "it has no detection of its own",
}


def cause_in_words(miss: Miss, names: Sequence[str]) -> str:
    """The cause of a miss with its numbers."""
    detail = miss.detail
    words = str(miss.cause)
    match miss.cause:
        case Cause.NO_ANCHOR:
            words += f" (the best anchor has IoU {detail['anchor_iou']:.2f})"
        case Cause.BELOW_TOP_K:
            words += f" (rank {detail['rank']} of its level)" if "rank" in detail else ""
        case Cause.BELOW_TOP_N | Cause.BEYOND_MAX_DET:
            words += f" (rank {detail['rank']})"
        case Cause.RPN_NMS | Cause.CLASS_NMS:
            words += f" (by a box of score {detail['by_score']:.2f} at IoU {detail['by_iou']:.2f})"
        case Cause.BACKGROUND | Cause.BELOW_THRESHOLD:
            words += f" (score {detail['score']:.3f})"
        case Cause.OTHER_CLASS:
            words += f" ({names[detail['seen_as']]} {detail['seen_score']:.2f}, itself {detail['score']:.3f})"
        case Cause.REFINED_AWAY:
            words += f" (IoU {detail['iou']:.2f} to {detail['refined_iou']:.2f})"
        case _:
            pass
    return words


def number(value: float) -> str:
    """A value of a setting as it is written on the command line: a rank above a million with all its digits."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def remedy_to_dict(cause: Miss, remedy: Remedy, names: Sequence[str]) -> dict[str, Any]:
    """A dictionary {"changes", "needs_training", "reason"}: the changes that keep a missed object, or why none does."""
    kept = [change._asdict() for change in remedy.changes] if remedy.keeps else []
    reason = None if remedy.keeps else reason_in_words(cause, remedy, names)
    return {"changes": kept, "needs_training": remedy.needs_training, "reason": reason}


def reason_in_words(cause: Miss, remedy: Remedy, names: Sequence[str]) -> str:
    """Why no setting keeps a missed object."""
    assert remedy.miss is not None
    ahead = "no trial keeps it"
    if remedy.needs_training:
        ahead = "needs training"
    elif not remedy.changes:
        ahead = "not tried"
    if remedy.changes:
        values = " and ".join(f"{change.field}={number(change.value)}" for change in remedy.changes)
        return f"{ahead}: with {values} it is {cause_in_words(remedy.miss, names)}"
    return f"{ahead}: {_why_untried(cause)}"


def _why_untried(cause: Miss) -> str:
    if cause.changes:
        return f"an exported file keeps its {cause.changes[0].field}"
    if cause.cause == Cause.NO_ANCHOR:
        far = cause.detail["anchor_iou"] < HIT
        return "no anchor reaches it (see data stats)" if far else "the RPN moves its anchors elsewhere"
    return _NO_SETTING.get(cause.cause, "no setting brings it back")
