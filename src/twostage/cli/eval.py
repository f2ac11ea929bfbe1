"""`twostage eval`: score a detector, or a file of its results, on a data set."""

import math
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twostage.cli.loading import load_detector
from twostage.cli.together import follows, together
from twostage.cli.verb import Outcome, to_json, verb
from twostage.cli.viewing import ViewOptions
from twostage.errors import ThresholdError, UsageError, nearest
from twostage.folders import new_folder
from twostage.options import option, validate

if TYPE_CHECKING:
    from twostage.data.dataset import Dataset
    from twostage.evaluation.evaluate import Report
    from twostage.evaluation.results import Results

_AP = ("AP", "AP50", "AP75", "AP90", "APs", "APm", "APl", "voc07", "voc12")
_AR = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_METRICS = _AP + _AR + tuple(f"segm_{name}" for name in _AP + _AR)
_COMPUTED = {
    "all": _METRICS,
    "coco": tuple(name for name in _METRICS if "voc" not in name),
    "voc07": ("voc07", "segm_voc07"),
    "voc12": ("voc12", "segm_voc12"),
}


@dataclass(frozen=True)
class EvalOptions(ViewOptions):
    """What to score, on which split, and how good it must be."""

    data: Path = option(help="Data set in VOC, COCO or YOLO layout.")
    _: KW_ONLY
    weights: str | None = option(None, "Weights file, or a name of `twostage weights list`.", group="Model")
    predictions: Path | None = option(
        None, "COCO results file, or folder of VOC results, instead of --weights.", group="Model"
    )
    model_fields: dict[str, Any] = option({}, "Fields of the model, as --set model.FIELD=VALUE.", group="Model")
    proposals: Path | None = option(
        None, "File of `data proposals`, in place of what the detector proposes.", group="Model"
    )
    split: str | None = option(None, "Split to score on (default: val, else valid, else test).", group="Data")
    images: Path | None = option(None, "Folder of the pictures, where a COCO file does not show it.", group="Data")
    voc_offset: Literal["auto", "0", "1"] = option("auto", "The first pixel's number in VOC files.", group="Data")
    on_error: Literal["default", "fail", "skip"] = option(
        "default", "What to do with faulty boxes: take them as they are written, stop, or leave them out.", group="Data"
    )
    size: int | None = option(None, "Shortest side of the image (default: as trained).", group="Images", low=1)
    max_size: int | None = option(None, "Longest side of the image (default: as trained).", group="Images", low=1)
    metric: Literal["all", "coco", "voc07", "voc12"] = option("all", "Which numbers.", group="Validation")
    fail_under: tuple[str, ...] = option(
        (), "Exit with 5 below this, as AP50=0.6 or, of masks, segm_AP=0.4.", group="Validation"
    )
    conf: float | None = option(
        None, "Lowest score a detection keeps (default: the model's).", group="Detections", low=0, high=1
    )
    iou: float | None = option(
        None,
        "IoU above which the final NMS drops a box (soft-NMS: lowers its score).",
        group="Detections",
        low=0,
        high=1,
    )
    max_det: int = option(100, "Detections an image keeps; with --tile, each of its tiles.", group="Detections", low=1)
    batch: int = option(1, "At most so many images at once; only rounding depends on it.", group="Run", low=1)
    workers: int | None = option(None, "Processes that read images (default: by the cores).", group="Run", low=0)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.", group="Run")
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "Arithmetic of the forward pass.", group="Run")
    offline: bool = option(False, "Never reach for the network.", group="Run")
    out: Path | None = option(None, "New folder for the numbers, the plots and the detections.", group="Output")

    def __post_init__(self) -> None:
        validate(self)
        if (self.weights is None) == (self.predictions is None):
            given = "both" if self.weights else "neither"
            raise UsageError(f"{given} of weights and predictions given: give the one that is to be scored")
        of_detector = {
            name: getattr(self, name) for name in ("conf", "iou", "size", "max_size", "model_fields", "proposals")
        }
        said = [name for name, value in of_detector.items() if value not in (None, {})]
        if not self.views.plain:
            said.append("flip, scales or tile")
        if self.predictions is not None and said:
            raise UsageError(f"{said[0]} is for --weights: results are scored as they stand in their file")
        self.thresholds()

    def thresholds(self) -> dict[str, float]:
        """The least values asked for, by metric."""
        found = {}
        for text in self.fail_under:
            name, _, value = text.partition("=")
            # Held against the names here, and not by the report alone: scoring may take hours.
            if name not in _METRICS:
                raise UsageError(f"fail_under: there is no metric {name!r}. {nearest(name, _METRICS)}")
            if name not in _COMPUTED[self.metric]:
                raise UsageError(f"fail_under: {name} is not computed under --metric {self.metric}; leave that out")
            try:
                found[name] = float(value)
            except ValueError:
                found[name] = math.nan
            if not math.isfinite(found[name]):
                raise UsageError(f"fail_under is {text!r}, and must be METRIC=VALUE, as AP50=0.6")
        return found


@verb(EvalOptions)
def eval(options: EvalOptions) -> Outcome:
    """Score a detector, or a file of its results, on a data set: COCO's and VOC's numbers, by class.

    A results file needs neither the pictures nor the model.
    """
    return _of_file(options) if options.weights is None else _of_detector(options, options.weights)


def _of_file(options: EvalOptions) -> Outcome:
    """Without torch; of torchrun's processes the first does it alone."""
    from twostage.evaluation.results import Results

    assert options.predictions is not None
    if follows():
        return Outcome(None)
    dataset = _open(options)
    out = _new_folder(options)
    read = Results.from_voc if options.predictions.is_dir() else Results.from_coco
    return _report(options, dataset, read(options.predictions, dataset), None, out)


def _of_detector(options: EvalOptions, weights: str) -> Outcome:
    """By all processes that torchrun has started. A detector of fewer classes is held against those alone."""
    from twostage.data.dataset import select_classes

    with together() as processes:
        with processes.sync_errors():
            dataset = _open(options)
            detector = load_detector(weights, options, device=str(processes.device(options.device)))
            if dataset.names != detector.names and set(detector.names) <= set(dataset.names):
                print(f"Scored on the detector's classes alone: {', '.join(detector.names)}")
                dataset = select_classes(dataset, detector.names)
        out = processes.on_main(lambda: _new_folder(options))
        found = detector.detect_dataset(
            dataset,
            batch=options.batch,
            workers=options.workers,
            conf=options.conf,
            iou=options.iou,
            max_det=options.max_det,
            processes=processes,
            proposals=options.proposals,
            views=options.views,
        )
        if not processes.is_main:
            return Outcome(None)
        floor = detector.model.config.postprocess.score_threshold if options.conf is None else options.conf
        return _report(options, dataset, found, floor, out)


def _open(options: EvalOptions) -> "Dataset":
    from twostage.data.recognise import evaluation_split, find_layout, open_dataset

    layout = find_layout(options.data)
    split = options.split or evaluation_split(layout)
    print(f"{layout}; scored on {split!r}")
    return open_dataset(
        options.data,
        split=split,
        images=options.images,
        voc_offset=options.voc_offset,
        on_error=options.on_error,
        require_images=options.predictions is None,
        # The official tools take boxes as they are written, over the border and without area too.
        repair=options.on_error == "skip",
    )


def _new_folder(options: EvalOptions) -> Path | None:
    return new_folder(options.out, "--out") if options.out else None


def _report(
    options: EvalOptions, dataset: "Dataset", results: "Results", floor: float | None, out: Path | None
) -> Outcome:
    """`floor` is the score below which the detector dropped others."""
    from twostage.evaluation.evaluate import evaluate

    report = evaluate(dataset, results, metric=options.metric, score_floor=floor)
    print(report.table())
    if out:
        _write(out, report, results)
        print(f"Saved to {out}")
    return Outcome(report.to_dict(), _shortfall(report, options.thresholds()))


def _shortfall(report: "Report", least: dict[str, float]) -> ThresholdError | None:
    try:
        report.require(least)
    except ThresholdError as error:
        return error
    return None


def _write(out: Path, report: "Report", results: "Results") -> None:
    from twostage.atomic import write_text

    write_text(out / "report.json", to_json(report.to_dict()))
    write_text(out / "report.txt", report.table() + "\n")
    write_text(out / "results.json", to_json(results.to_coco(report.dataset)))
    report.write_plots(out)
