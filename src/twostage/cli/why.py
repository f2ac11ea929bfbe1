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
    from twostage.inspection.settings import Setting, Worth
    from twostage.inspection.tune import Tuned
    from twostage.models.heads.postprocess import PostprocessConfig

Costs = Mapping["Cause", Mapping[str, float]]
Rows = tuple[Sequence[object], Sequence[Sequence[object]]]
"""The head of a table, and its rows."""
MOST = 100  # detections that AP counts by COCO's definition


@dataclass(frozen=True)
class Why:
    """The account of a data set, what its causes cost, TIDE's types, and what settings are worth.

    All is of boxes; TIDE and what settings are worth are of masks as well where data set and detector have them.
    """

    ledger: "Ledger"
    costs: Costs
    tide: "Tide"
    mask_tide: "Tide | None"
    worth: "Worth"

    def to_dict(self) -> dict[str, Any]:
        """The entry "why" of the JSON; what is of masks is under "segm"."""
        tide = self.tide.to_dict() | ({} if self.mask_tide is None else {"segm": self.mask_tide.to_dict()})
        settings = {"settings": self.worth.to_list()}
        return {**self.ledger.to_dict(self.costs), "tide": tide, **settings}  # type: ignore[arg-type]

    def lines(self) -> Iterator[str]:
        """The same to be read."""
        yield from ledger_lines(self.ledger, self.costs)
        yield ""
        yield "TIDE's types of error (Bolya et al. 2020), every detection counted:"
        yield from table(*tide_rows(self.tide, self.mask_tide))
        yield ""
        yield settings_note(self)
        if self.worth.now.AP >= 0:
            yield from table(*setting_rows(self.worth))


def require_stages(detector: "Detector") -> None:
    """Raises UsageError for an exported file that does not show its stages: before the images are predicted."""
    from twostage.inference.exported import ExportedModel

    if isinstance(detector.runner, ExportedModel):
        detector.runner.require_stages()


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
    most = max(MOST, post.max_det)
    masks = dataset.masks is not None and results.masks is not None
    mask_tide = tide(dataset, results, masks=True, max_detections=most) if masks else None
    return Why(seen, seen.costs(results), tide(dataset, results, max_detections=most), mask_tide, measured)


def ledger_lines(ledger: "Ledger", costs: Costs) -> Iterator[str]:
    """The causes with what they cost, and the funnel."""
    missed, counted = len(ledger.missed), int(ledger.counted.sum())
    post = ledger.config
    run = f"score from {post.score_threshold:g}, at most {post.max_det} detections an image, box IoU 0.5"
    if not counted:
        yield "No object to find, and so none that was missed."
        return
    yield f"Missed: {missed} of {counted} objects, recall {ledger.recall:.3f} ({run})."
    if missed:
        yield ""
        yield from table(*cause_rows(ledger, costs))
        yield "AP50 lost: points gained if these objects were not asked for. Settings keep: found in a trial with other"
        yield "values. Need training: no setting acts on the cause at which they end."
    yield ""
    yield "Objects with a box of IoU 0.5 at each step, in percent: the ceiling of recall there"
    yield from table(*funnel_rows(ledger))


def cause_rows(ledger: "Ledger", costs: Costs) -> Rows:
    """The missed objects by cause."""
    counted = int(ledger.counted.sum())
    rows = []
    for cause, count in ledger.causes().items():
        remedies = [one.remedy for one in ledger.missed if one.miss.cause == cause]
        kept, training = sum(one.keeps for one in remedies), sum(one.needs_training for one in remedies)
        cost = costs.get(cause, {}).get("AP50")
        rows.append((str(cause), count, f"{count / counted:.3f}", _points(cost), kept, training))
    return ("cause", "objects", "recall lost", "AP50 lost", "settings keep", "need training"), rows


def funnel_rows(ledger: "Ledger") -> Rows:
    """The share of objects that some box hits at each step, by class and size."""
    funnel = ledger.funnel()
    steps = list(funnel["all"])
    shown = [
        (name, *(f"{100 * row[step]:.1f}" for step in steps)) for name, row in funnel.items() if row[steps[0]] >= 0
    ]
    return ("", *steps), shown


def tide_rows(tide: "Tide", mask_tide: "Tide | None") -> Rows:
    """TIDE's types of error, with what each costs; of masks beside those of boxes."""
    both = [tide] if mask_tide is None else [tide, mask_tide]
    rows = [
        (
            name.replace("_", " "),
            *(cell for one in both for cell in (one.counts[name], _points(_defined(one.dap[name])))),
        )
        for name in tide.dap
    ]
    of_masks = () if mask_tide is None else ("mask errors", "mask AP50 lost")
    return ("type", "errors", "AP50 lost", *of_masks), rows


def settings_note(why: Why) -> str:
    """What the table of settings shows."""
    now = why.worth.now
    if now.AP < 0:
        return "No object to find, and so nothing to measure settings on."
    scores, best, alone = f"AP of boxes {now.AP:.4f}", "best other value of each", ""
    if now.segm is not None:
        scores += f", of masks {_share(now.segm.AP)}"
        best = "other value of each with the best AP of boxes"
    elif why.mask_tide is not None:
        alone = ", of boxes alone, as an exported file computes no masks for other settings"
    return f"Settings, each measured on this split{alone} ({scores} now); the {best}:"


def setting_rows(worth: "Worth") -> Rows:
    """The best other value of each setting, by AP of boxes, the best first."""
    best: dict[str, tuple[object, ...]] = {}
    for one in sorted(worth.others, key=lambda one: -one.AP):
        ((field, value),) = one.fields.items()
        best.setdefault(field, (field, value, *_scores(one, worth.now)))
    return ("setting", "value", *_scores_head(worth.now)), list(best.values())


def _scores_head(now: "Setting") -> tuple[str, ...]:
    return ("AP", "points", *(("mask AP", "mask points") if now.segm is not None else ()), "ms an image")


def _scores(one: "Setting", now: "Setting") -> tuple[str, ...]:
    """What a setting reaches, and how far that is from the present ones."""
    masks: tuple[str, ...] = ()
    if one.segm is not None and now.segm is not None:
        gain = one.segm.AP - now.segm.AP if now.segm.AP >= 0 else None
        masks = (_share(one.segm.AP), _points(gain))
    return f"{one.AP:.4f}", _points(one.AP - now.AP), *masks, f"{one.milliseconds - now.milliseconds:+.1f}"


_FLAGS = {
    "postprocess.score_threshold": "--conf",
    "postprocess.nms": "--iou",
    "postprocess.max_det": "--max-det",
}


def flag_of(change: "Change") -> str:
    """A change of a setting as it is written on the command line."""
    from twostage.inspection.words import number

    if change.field in _FLAGS:
        return f"{_FLAGS[change.field]} {number(change.value)}"
    return f"--set model.{change.field}={number(change.value)}"


def remedy_in_words(miss: "Miss", remedy: "Remedy", names: Sequence[str]) -> str:
    """What keeps a missed object, or why nothing does."""
    from twostage.inspection.words import reason_in_words

    if not remedy.keeps:
        return reason_in_words(miss, remedy, names)
    flags = " ".join(flag_of(change) for change in remedy.changes)
    return f"{flags} keeps it" if len(remedy.changes) == 1 else f"{flags} together keep it"


def tuned_lines(tuned: "Tuned") -> Iterator[str]:
    """The settings that pay together, in the order in which they were taken."""
    now = tuned.singles.now
    if not tuned.steps:
        yield "No other setting gains a tenth of a point of AP of boxes here."
        return
    yield f"Settings that pay together{', chosen by AP of boxes' if now.segm is not None else ''}:"
    rows: list[tuple[object, ...]] = []
    before: dict[str, Any] = {}
    for one in tuned.steps:
        new = ", ".join(f"{field}={value}" for field, value in one.fields.items() if field not in before)
        rows.append((new, *_scores(one, now)))
        before = one.fields
    yield from table(("with", *_scores_head(now)), rows)


def _defined(value: float) -> float | None:
    return None if value == -1 else value


def _share(value: float) -> str:
    return "-" if value < 0 else f"{value:.4f}"


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.2f}"
