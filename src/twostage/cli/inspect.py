"""`twostage inspect`: a page with every stage of one image's prediction, or with the missed objects of a data set."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.cli.inspect_truth import Truth, truth_of
from twostage.cli.loading import load_detector
from twostage.cli.verb import Outcome, verb
from twostage.common_options import WEIGHTS_FOR_DATA, DetectionOptions, DetectorOptions, LayoutOptions, QuietOptions
from twostage.errors import UsageError
from twostage.folders import require_new_file
from twostage.options import option
from twostage.progress import images_bar

if TYPE_CHECKING:
    from twostage.detector import Detector
    from twostage.inspection.causes import Account
    from twostage.inspection.remedy import Remedy
    from twostage.inspection.trace import Trace
    from twostage.models.heads.postprocess import PostprocessConfig

CONF = 0.5  # as predict's


@dataclass(frozen=True)
class InspectOptions(DetectorOptions, DetectionOptions, LayoutOptions, QuietOptions):
    source: Path = option(help="Image file, or a data set, whose missed objects are explained.")
    _: KW_ONLY
    weights: str = option(help=WEIGHTS_FOR_DATA, group="Model")
    conf: float = option(
        CONF, "Lowest score of a detection: what is found, and what is missed.", group="Detections", low=0, high=1
    )
    data: Path | None = option(
        None, "Data set with the image's objects: shows what anchors learn, and why objects are missed.", group="Data"
    )
    split: str | None = option(
        None,
        "Split of --data that has the image (default: any), or of the data set (default: val, else valid, else test, "
        "else the only one).",
        group="Data",
    )
    out: Path = option(help="The page: a new HTML file.", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_new_file(self.out, "--out")
        of_data = ("split", "images", "voc_offset", "boxes")
        idle = [name for name in of_data if getattr(self, name) != getattr(InspectOptions, name)]
        if self.data is None and idle and not self.is_data_set:
            raise UsageError(f"{idle[0]} is for --data: name the data set that has the image's objects")
        if self.data is not None and self.is_data_set:
            raise UsageError(f"{self.source}: is a data set itself: leave --data out, or name one image file")

    @property
    def is_data_set(self) -> bool:
        """Whether the source is a data set, and not one image."""
        return self.source.is_dir() or self.source.suffix.lower() in (".json", ".yaml", ".yml")


@verb(InspectOptions)
def inspect(options: InspectOptions) -> Outcome:
    """Write one HTML page with every stage of the prediction of an image; it opens in any browser without a server.

    Of a data set the page says why its objects are missed, what settings are worth, and shows the worst images.
    """
    detector = load_detector(options.weights, options)
    if options.is_data_set:
        return _of_data_set(options, detector)
    truth = None if options.data is None else truth_of(options, options.data, detector.names)
    trace = _traced(detector, options, truth)
    config = detector.postprocess(_conf(options, detector), options.iou, options.max_det)
    return _write(options, detector, trace, config, truth)


def _conf(options: InspectOptions, detector: "Detector") -> float:
    """The lowest score, as `Detector.predict`: by default no lower than that of an exported file."""
    if detector.is_exported and options.conf == CONF:
        return max(options.conf, detector.config.postprocess.score_threshold)
    return options.conf


def _of_data_set(options: InspectOptions, detector: "Detector") -> Outcome:
    from twostage.cli.classes import selected
    from twostage.cli.misses_page import write_misses_page
    from twostage.cli.why import explained, require_stages
    from twostage.data.recognise import evaluation_split, find_layout, open_dataset

    require_stages(detector)
    layout = find_layout(options.source)
    split = options.split or evaluation_split(layout)
    print(f"{layout}; inspected on {split!r}")
    reading = {"images": options.images, "voc_offset": options.voc_offset, "boxes": options.boxes}
    dataset = selected(open_dataset(options.source, split=split, **reading), detector.names)  # type: ignore[arg-type]
    conf = _conf(options, detector)
    post = detector.postprocess(conf, options.iou, options.max_det)
    results = detector.detect_dataset(dataset, conf=conf, iou=options.iou, max_det=options.max_det)
    # AP is that of all detections, also of those too weak to be shown.
    every = detector.postprocess(None, options.iou, options.max_det)
    why = explained(detector, dataset, results, post, measured_with=every, quiet=options.quiet)
    print("\n".join(["", *why.lines()]))
    write_misses_page(options.out, f"{detector.name} on {options.source.resolve().name}, {split}", why, results)
    print(f"\nOpen {options.out} in a browser.")
    return Outcome({"out": options.out, "split": split, "images": len(dataset), "why": why.to_dict()})


def _traced(detector: "Detector", options: InspectOptions, truth: Truth | None) -> "Trace":
    """The trace; masks are those of the detections under the options, where the model can be run again."""
    from twostage.inspection.rerun import rerun

    trace = detector.trace(options.source, None if truth is None else truth.target)
    given = {"postprocess.nms": options.iou, "postprocess.max_det": options.max_det}
    fields = {name: value for name, value in given.items() if value is not None}
    if fields and not detector.is_exported and trace.stages.detections.masks is not None:
        return rerun(detector.prepared, trace, fields)
    return trace


def _write(
    options: InspectOptions, detector: "Detector", trace: "Trace", config: "PostprocessConfig", truth: Truth | None
) -> Outcome:
    from twostage.atomic import write_text
    from twostage.inspection.account import account
    from twostage.inspection.fates import Fate, pair_fates
    from twostage.inspection.page.html import page
    from twostage.inspection.remedy import Remedy, remedy

    explained = None if truth is None else account(trace, truth.objects, config)
    objects = None if truth is None else truth.objects
    remedies: dict[int, Remedy] = {}
    if objects is not None and explained is not None:
        with images_bar("missed objects", quiet=options.quiet) as after_object:
            for place, miss in explained.misses.items():
                remedies[place] = remedy(detector.runner, trace, objects, place, miss, config)
                after_object(len(remedies), len(explained.misses))
    title = f"{options.source.name}, {detector.name}"
    write_text(options.out, page(trace, config, objects, explained, remedies, title=title))
    count = int((pair_fates(trace.above_threshold(config), config).fate == Fate.KEPT).sum())
    height, width = trace.image.shape[:2]
    print(f"{options.source}  {width} x {height}: {count} detection{'s' * (count != 1)}")
    result: dict[str, Any] = {"out": options.out, "path": str(options.source), "width": width, "height": height}
    result |= {"detections": count, "bytes": options.out.stat().st_size}
    if truth is not None and explained is not None:
        result |= {
            "objects": int(truth.objects.counted.sum()),
            "missed": _missed(truth, explained, remedies, detector.names),
        }
        print(f"{len(explained.misses)} of {result['objects']} objects missed")
        for one in result["missed"]:
            print(f"  {one['label']} at {', '.join(f'{x:.0f}' for x in one['box'])}: {one['words']}")
    print(f"Open {options.out} in a browser.")
    settings = {"precision": detector.precision, "device": str(detector.device), "conf": config.score_threshold}
    return Outcome({**result, "settings": {**settings, "iou": config.nms, "max_det": config.max_det}})


def _missed(
    truth: Truth, explained: "Account", remedies: Mapping[int, "Remedy"], names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The missed objects with their causes and what would have kept them."""
    from twostage.cli.why import remedy_in_words
    from twostage.inspection.words import cause_in_words, remedy_to_dict

    boxes, labels = truth.objects.boxes.tolist(), truth.objects.labels.tolist()
    return [
        {
            "label": names[labels[place]],
            "box": boxes[place],
            "cause": str(miss.cause),
            "words": f"{cause_in_words(miss, names)}; {remedy_in_words(miss, remedies[place], names)}",
            "detail": miss.detail,
            **remedy_to_dict(miss, remedies[place], names),
        }
        for place, miss in explained.misses.items()
    ]
