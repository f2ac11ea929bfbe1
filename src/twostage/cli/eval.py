"""`twostage eval`: evaluate a detector, or a file of results, on a data set."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twostage.cli.classes import selected
from twostage.cli.loading import PredictionOptions, load_detector, most_of
from twostage.cli.misses_page import write_misses_page
from twostage.cli.together import follows, together
from twostage.cli.verb import Outcome, verb
from twostage.cli.why import explained, require_stages, tuned_lines
from twostage.common_options import PROPOSALS, WEIGHTS_FOR_DATA, DataOptions, QuietOptions, WorkersOptions
from twostage.errors import ThresholdError, UsageError, nearest
from twostage.folders import new_folder, require_new_file
from twostage.options import option
from twostage.progress import images_bar

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset
    from twostage.detector import Detector
    from twostage.evaluation.evaluate import Report
    from twostage.evaluation.results import Results

_AP = ("AP", "AP50", "AP75", "AP90", "APs", "APm", "APl", "voc07", "voc12")
MAX_DETECTIONS = 100  # that AP counts by COCO's definition: `evaluation.coco`, which is slow to import
_AR = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_METRICS = _AP + _AR + tuple(f"segm_{name}" for name in _AP + _AR)
_COMPUTED = {
    "all": _METRICS,
    "coco": tuple(name for name in _METRICS if "voc" not in name),
    "voc07": ("voc07", "segm_voc07"),
    "voc12": ("voc12", "segm_voc12"),
}


@dataclass(frozen=True, kw_only=True)
class EvalOptions(PredictionOptions, DataOptions, WorkersOptions, QuietOptions):
    weights: str | None = option(None, WEIGHTS_FOR_DATA, group="Model")
    predictions: Path | None = option(
        None, "COCO results file or folder of VOC results, instead of --weights.", group="Model"
    )
    proposals: Path | None = option(None, PROPOSALS, group="Model")
    split: str | None = option(
        None, "Split to evaluate on (default: val, else valid, else test, else the only one).", group="Data"
    )
    on_error: Literal["default", "fail", "skip"] = option(
        "default", "Faulty boxes: take them as written (default), stop (fail), or leave them out (skip).", group="Data"
    )
    metric: Literal["all", "coco", "voc07", "voc12"] = option("all", "Metrics to compute.", group="Validation")
    fail_under: tuple[str, ...] = option(
        (), "Exit with code 5 below this value, as AP50=0.6, or segm_AP=0.4 for masks.", group="Validation"
    )
    why: bool = option(
        False,
        "Say why each missed object was missed (by its box), and what other settings are worth; a page under --out.",
        group="Why",
    )
    tune: Path | None = option(
        None, "New file for a configuration (--config) with the settings that raise AP of boxes here.", group="Why"
    )
    out: Path | None = option(None, "New folder for the numbers, the plots and the detections.", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.weights is None) == (self.predictions is None):
            given = "both" if self.weights else "neither"
            raise UsageError(f"{given} of weights and predictions given: give one of them")
        of_detector = {
            name: getattr(self, name) for name in ("conf", "iou", "size", "max_size", "model_fields", "proposals")
        }
        unused = [name for name, value in of_detector.items() if value not in (None, {})]
        running = ("device", "precision", "batch", "workers", "choose_forms")
        unused += [name for name in running if getattr(self, name) != getattr(EvalOptions, name)]
        if not self.views.plain:
            unused.append("flip, scales or tile")
        if self.predictions is not None and unused:
            raise UsageError(f"{unused[0]} is for --weights: a results file is scored as it is")
        if self.predictions is not None and (self.max_det or MAX_DETECTIONS) < MAX_DETECTIONS:
            raise UsageError(
                f"max_det is {self.max_det}: with a results file it can only raise the {MAX_DETECTIONS} detections "
                "that AP counts"
            )
        if (self.why or self.tune) and (self.weights is None or self.proposals or not self.views.plain):
            given = "a results file" if self.weights is None else "--proposals" if self.proposals else "several views"
            raise UsageError(f"why and tune follow a detector's own prediction through its steps: not with {given}")
        if self.tune is not None:
            require_new_file(self.tune, "--tune")
        self.thresholds()

    def thresholds(self) -> dict[str, float]:
        """The required values by metric."""
        least = {}
        for text in self.fail_under:
            name, _, value = text.partition("=")
            # Checked here, not only by the report: evaluation may take hours.
            if name not in _METRICS:
                raise UsageError(f"fail_under: there is no metric {name!r}. {nearest(name, _METRICS)}")
            if name not in _COMPUTED[self.metric]:
                raise UsageError(f"fail_under: {name} is not computed with --metric {self.metric}; leave --metric out")
            try:
                least[name] = float(value)
            except ValueError:
                least[name] = math.nan
            if not math.isfinite(least[name]):
                raise UsageError(f"fail_under is {text!r}, and must be METRIC=VALUE, as AP50=0.6")
        return least


@verb(EvalOptions)
def eval(options: EvalOptions) -> Outcome:
    """Evaluate a detector, or a file of results, on a data set: COCO and VOC metrics, per class.

    A results file needs neither the images nor the model.
    """
    return _of_file(options) if options.weights is None else _of_detector(options, options.weights)


def _of_file(options: EvalOptions) -> Outcome:
    """Without torch; only the first of torchrun's processes evaluates."""
    from twostage.evaluation.results import Results

    assert options.predictions is not None
    if follows():
        return Outcome(None)
    dataset = _open(options)
    out = _new_folder(options)
    read = Results.from_voc if options.predictions.is_dir() else Results.from_coco
    return _report(options, dataset, read(options.predictions, dataset), None, out)


def _of_detector(options: EvalOptions, weights: str) -> Outcome:
    """In all processes of torchrun."""
    from twostage.inference.precision import choose_precision

    with together() as processes:
        with processes.sync_errors():
            device = processes.device(options.device)
        precision = processes.on_main(lambda: choose_precision(device, options.precision))
        with processes.sync_errors():
            dataset = _open(options)
            detector = load_detector(weights, options, device=str(device), precision=precision)
            if options.why or options.tune:
                require_stages(detector)
            dataset = selected(dataset, detector.names)
        out = processes.on_main(lambda: _new_folder(options))
        results = detector.detect_dataset(
            dataset,
            batch=options.batch,
            workers=options.workers,
            conf=options.conf,
            iou=options.iou,
            max_det=most_of(detector, options.max_det),
            processes=processes,
            proposals=options.proposals,
            views=options.views,
        )
        if not processes.is_main:
            return Outcome(None)
        outcome = _report(options, dataset, results, detector, out)
    if options.why or options.tune:
        outcome.result.update(_why(options, dataset, results, detector, out))  # type: ignore[union-attr]
    return outcome


def _why(
    options: EvalOptions, dataset: "Dataset", results: "Results", detector: "Detector", out: Path | None
) -> dict[str, Any]:
    """Print the account of the missed objects and what settings are worth, and write those that pay; for the JSON."""
    post = detector.postprocess(options.conf, options.iou, most_of(detector, options.max_det))
    found: dict[str, Any] = {}
    measured = None
    if options.why:
        why = explained(detector, dataset, results, post, measured_with=post, quiet=options.quiet)
        print("\n".join(["", *why.lines()]))
        found, measured = {"why": why.to_dict()}, why.worth
        if out is not None:
            title = f"{detector.name} on {options.data.resolve().name}, {dataset.split}"
            write_misses_page(out / "why.html", title, why, results)
            print(f"\nThe images with the most missed objects: {out / 'why.html'}")
    if options.tune is not None:
        from twostage.cli.tuned import write_tuned
        from twostage.inspection.tune import tune

        with images_bar("settings", quiet=options.quiet) as after_image:
            tuned = tune(detector.runner, dataset, post, after_image, measured)
        write_tuned(options.tune, tuned, f"{options.data} ({dataset.split})", str(options.weights))
        print("\n".join(["", *tuned_lines(tuned), f"Written: {options.tune}"]))
        found["tuned"] = [one.to_dict() for one in tuned.steps]
    return found


def _open(options: EvalOptions) -> "Dataset":
    from twostage.data.recognise import evaluation_split, find_layout, open_dataset

    layout = find_layout(options.data)
    split = options.split or evaluation_split(layout)
    print(f"{layout}; evaluated on {split!r}")
    return open_dataset(
        options.data,
        split=split,
        images=options.images,
        voc_offset=options.voc_offset,
        boxes=options.boxes,
        on_error=options.on_error,
        require_images=options.predictions is None,
        # The official tools take boxes as written, also those beyond the border or without area.
        repair=options.on_error == "skip",
    )


def _new_folder(options: EvalOptions) -> Path | None:
    return new_folder(options.out, "--out") if options.out else None


def _report(
    options: EvalOptions, dataset: "Dataset", results: "Results", detector: "Detector | None", out: Path | None
) -> Outcome:
    """`detector` is the source of the results; None if it is unknown."""
    from twostage.evaluation.evaluate import evaluate

    floor, precision = None, None
    if detector is not None:
        precision = detector.precision
        floor = detector.config.postprocess.score_threshold if options.conf is None else options.conf
    report = evaluate(
        dataset, results, metric=options.metric, score_floor=floor, precision=precision, max_detections=options.max_det
    )
    print(report.table())
    if out:
        report.save(out, results)
        print(f"Saved to {out}")
    return Outcome(report.to_dict(), _shortfall(report, options.thresholds()))


def _shortfall(report: "Report", least: dict[str, float]) -> ThresholdError | None:
    try:
        report.require(least)
    except ThresholdError as error:
        return error
    return None
