"""Why objects are missed, as text: the part of `eval --why` and `inspect DATA` that is printed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twostage.evaluation.tide import Tide
    from twostage.inspection.causes import Cause
    from twostage.inspection.ledger import Ledger
    from twostage.inspection.settings import Worth
    from twostage.inspection.tune import Tuned

Costs = Mapping["Cause", Mapping[str, float]]


def ledger_lines(ledger: "Ledger", costs: Costs) -> Iterator[str]:
    """The causes with what they cost, and the funnel."""
    missed, counted = len(ledger.missed), int(ledger.counted.sum())
    post = ledger.config
    run = f"score from {post.score_threshold:g}, at most {post.max_det} detections an image, IoU 0.5"
    if not counted:
        yield "No object to find, and so none that was missed."
        return
    yield f"Missed: {missed} of {counted} objects, recall {ledger.recall:.3f} ({run})."
    if missed:
        yield ""
        rows = []
        for cause, count in ledger.causes().items():
            kept = sum(one.miss.cause == cause and one.change is not None for one in ledger.missed)
            cost = costs.get(cause, {}).get("AP50")
            rows.append((str(cause), count, f"{count / counted:.3f}", _points(cost), kept))
        yield from table(("cause", "objects", "recall lost", "AP50 lost", "a setting keeps"), rows)
        yield "AP50 lost: points gained if these objects were not asked for. A setting keeps: tried, one at a time."
    yield ""
    funnel = ledger.funnel()
    yield "Objects with a box of IoU 0.5 at each step, in percent: the ceiling of recall there"
    steps = list(next(iter(funnel.values())))
    shown = [(name, *(_share(row[step]) for step in steps)) for name, row in funnel.items() if row[steps[0]] >= 0]
    yield from table(("", *steps), shown)


def tide_lines(tide: "Tide") -> Iterator[str]:
    """TIDE's types of error, with what each costs."""
    yield "TIDE's types of error (Bolya et al. 2020), every detection counted:"
    rows = [(name.replace("_", " "), tide.counts[name], _points(_defined(tide.dap[name]))) for name in tide.dap]
    yield from table(("type", "errors", "AP50 lost"), rows)


def _defined(value: float) -> float | None:
    return None if value == -1 else value


def settings_lines(worth: "Worth") -> Iterator[str]:
    """The best other value of each setting, measured."""
    now = worth.now
    yield f"Settings, each measured on this split (AP {now.AP:.4f} now); the best other value of each:"
    best: dict[str, tuple[Any, ...]] = {}
    for one in sorted(worth.others, key=lambda one: -one.AP):
        ((field, value),) = one.fields.items()
        row = (field, value, f"{one.AP:.4f}", _points(one.AP - now.AP), f"{one.milliseconds - now.milliseconds:+.1f}")
        best.setdefault(field, row)
    yield from table(("setting", "value", "AP", "points", "ms an image"), list(best.values()))


def tuned_lines(tuned: "Tuned") -> Iterator[str]:
    """The settings that pay together, in the order in which they were taken."""
    now = tuned.singles.now
    if not tuned.steps:
        yield "No other setting gains a tenth of a point of AP here."
        return
    yield "Settings that pay together:"
    rows: list[tuple[object, ...]] = []
    before: dict[str, Any] = {}
    for one in tuned.steps:
        new = ", ".join(f"{field}={value}" for field, value in one.fields.items() if field not in before)
        rows.append((new, f"{one.AP:.4f}", _points(one.AP - now.AP), f"{one.milliseconds - now.milliseconds:+.1f}"))
        before = one.fields
    yield from table(("with", "AP", "points", "ms an image"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Columns, the first to the left and the others to the right."""
    text = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    for first, *others in text:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.2f}"


def _share(value: float) -> str:
    return f"{100 * value:.1f}"
