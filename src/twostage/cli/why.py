"""Why objects are missed and what settings are worth: computed and printed for `eval --why` and `inspect DATA`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twostage.cli.table import table
from twostage.progress import images_bar

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset
    from twostage.detector import Detector
    from twostage.evaluation.results import Results
    from twostage.evaluation.tide import Tide
    from twostage.inspection.causes import Cause, Change, Miss
    from twostage.inspection.ledger import Ledger
    from twostage.inspection.remedy import Remedy
    from twostage.inspection.settings import Worth
    from twostage.inspection.tune import Tuned
    from twostage.models.heads.postprocess import PostprocessConfig

Costs = Mapping["Cause", Mapping[str, float]]
Rows = tuple[Sequence[object], Sequence[Sequence[object]]]
"""The head of a table, and its rows."""
MOST = 100  # detections that AP counts by COCO's definition


@dataclass(frozen=True)
class Why:
    """The account of a data set, what its causes cost, TIDE's types, and what settings are worth."""

    ledger: "Ledger"
    costs: Costs
    tide: "Tide"
    worth: "Worth"

    def to_dict(self) -> dict[str, Any]:
        """The entry "why" of the JSON."""
        settings = {"settings": self.worth.to_list()}
        return {**self.ledger.to_dict(self.costs), "tide": self.tide.to_dict(), **settings}  # type: ignore[arg-type]

    def lines(self) -> Iterator[str]:
        """The same to be read."""
        yield from ledger_lines(self.ledger, self.costs)
        yield ""
        yield "TIDE's types of error (Bolya et al. 2020), every detection counted:"
        yield from table(*tide_rows(self.tide))
        yield ""
        yield from settings_lines(self.worth)


def explained(
    detector: "Detector",
    dataset: "Dataset",
    results: "Results",
    post: "PostprocessConfig",
    *,
    measured_with: "PostprocessConfig",
    quiet: bool,
) -> Why:
    """The account of a data set of which the detector's `results` are given, and what settings are worth with another
    post-processing: AP needs the weak detections that are not shown."""
    from twostage.evaluation.tide import tide
    from twostage.inspection.ledger import ledger
    from twostage.inspection.settings import candidates, worth

    runner = detector.runner
    with images_bar("missed objects", quiet=quiet) as after_image:
        seen = ledger(runner, dataset, post, after_image)
    with images_bar("settings", quiet=quiet) as after_image:
        measured = worth(runner, dataset, measured_with, list(candidates(runner.config, measured_with)), after_image)
    types = tide(dataset, results, max_detections=max(MOST, post.max_det))
    return Why(seen, seen.costs(results), types, measured)


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
        yield from table(*cause_rows(ledger, costs))
        yield "AP50 lost: points gained if these objects were not asked for. Settings keep: found in a trial with one"
        yield "or two values changed; the others need training."
    yield ""
    yield "Objects with a box of IoU 0.5 at each step, in percent: the ceiling of recall there"
    yield from table(*funnel_rows(ledger))


def cause_rows(ledger: "Ledger", costs: Costs) -> Rows:
    """The missed objects by cause."""
    counted = int(ledger.counted.sum())
    rows = []
    for cause, count in ledger.causes().items():
        kept = sum(one.miss.cause == cause and one.remedy.keeps for one in ledger.missed)
        cost = costs.get(cause, {}).get("AP50")
        rows.append((str(cause), count, f"{count / counted:.3f}", _points(cost), kept))
    return ("cause", "objects", "recall lost", "AP50 lost", "settings keep"), rows


def funnel_rows(ledger: "Ledger") -> Rows:
    """The share of objects that some box hits at each step, by class and size."""
    funnel = ledger.funnel()
    steps = list(funnel["all"])
    shown = [
        (name, *(f"{100 * row[step]:.1f}" for step in steps)) for name, row in funnel.items() if row[steps[0]] >= 0
    ]
    return ("", *steps), shown


def tide_rows(tide: "Tide") -> Rows:
    """TIDE's types of error, with what each costs."""
    rows = [(name.replace("_", " "), tide.counts[name], _points(_defined(tide.dap[name]))) for name in tide.dap]
    return ("type", "errors", "AP50 lost"), rows


def settings_lines(worth: "Worth") -> Iterator[str]:
    """The best other value of each setting, measured."""
    if worth.now.AP < 0:
        yield "No object to find, and so nothing to measure settings on."
        return
    yield f"Settings, each measured on this split (AP of boxes {worth.now.AP:.4f} now); the best other value of each:"
    yield from table(*setting_rows(worth))


def setting_rows(worth: "Worth") -> Rows:
    """The best other value of each setting, the best first."""
    now = worth.now
    best: dict[str, tuple[object, ...]] = {}
    for one in sorted(worth.others, key=lambda one: -one.AP):
        ((field, value),) = one.fields.items()
        row = (field, value, f"{one.AP:.4f}", _points(one.AP - now.AP), f"{one.milliseconds - now.milliseconds:+.1f}")
        best.setdefault(field, row)
    return ("setting", "value", "AP", "points", "ms an image"), list(best.values())


_FLAGS = {
    "postprocess.score_threshold": "--conf",
    "postprocess.nms": "--iou",
    "postprocess.max_det": "--max-det",
}


def flag_of(change: "Change") -> str:
    """A change of a setting as it is written on the command line."""
    if change.field in _FLAGS:
        return f"{_FLAGS[change.field]} {change.value:g}"
    return f"--set model.{change.field}={change.value:g}"


def remedy_in_words(miss: "Miss", remedy: "Remedy", names: Sequence[str]) -> str:
    """What keeps a missed object, or why it needs training."""
    from twostage.inspection.words import reason_in_words

    if not remedy.keeps:
        return f"needs training: {reason_in_words(miss, remedy, names)}"
    flags = " ".join(flag_of(change) for change in remedy.changes)
    return f"{flags} keeps it" if len(remedy.changes) == 1 else f"{flags} together keep it"


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


def _defined(value: float) -> float | None:
    return None if value == -1 else value


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.2f}"
