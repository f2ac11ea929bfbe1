"""`twostage predict`: detect objects in images."""

from collections import Counter
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from twostage.cli.loading import PredictionOptions, load_detector, most_of
from twostage.cli.verb import Outcome, verb
from twostage.common_options import PRECISION, WEIGHTS, Precision
from twostage.errors import DataError, UsageError
from twostage.folders import new_folder
from twostage.inference.results import ResultsWriter, check_formats
from twostage.options import option
from twostage.shell import command

if TYPE_CHECKING:
    from twostage.detections import Detections


@dataclass(frozen=True)
class PredictOptions(PredictionOptions):
    sources: tuple[str, ...] = option(help="Files, folders, globs, or - for paths on standard input.")
    _: KW_ONLY
    weights: str | None = option(None, WEIGHTS, group="Model")
    conf: float = option(0.5, "Lowest score of a detection.", group="Detections", low=0, high=1)
    precision: Precision = option("auto", PRECISION, group="Run")
    save: Path | None = option(None, "New folder for the drawn images and the results.", group="Output")
    format: tuple[str, ...] = option(("json",), "Formats of the results under --save: json, coco, voc.", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise UsageError("no source given: name image files, folders or globs, as in `twostage predict photos/`")
        if not self.weights:
            raise UsageError(_with_weights(self.sources))
        if not self.formats:
            raise UsageError("format is empty: name one of json, coco and voc")
        check_formats(self.formats)
        if self.save is None and self.formats != ("json",):
            raise UsageError("--format needs --save: name a new folder, as in `--save found --format coco`")

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats as a tuple: `json,coco` and `json coco` are the same."""
        return tuple(part.strip() for text in self.format for part in text.split(",") if part.strip())


@verb(PredictOptions)
def predict(options: PredictOptions) -> Outcome:
    """Detect objects in images. Boxes are in pixels of the upright image.

    Without --save nothing is written: the objects of each image are printed, as JSON with --json.
    """
    assert options.weights is not None
    detector = load_detector(options.weights, options)
    predictions = detector.predict(
        list(options.sources),
        conf=options.conf,
        iou=options.iou,
        max_det=most_of(detector, options.max_det),
        batch=options.batch,
        views=options.views,
    )
    settings = {"precision": detector.precision, "device": str(detector.device)}
    writer = ResultsWriter(new_folder(options.save, "--save"), options.formats, settings) if options.save else None
    images = []
    failure = None
    try:
        for detections in predictions:
            images.append(writer.add(detections) if writer else detections.to_dict())
            print(_line(detections))
    except DataError as error:
        # Raised at the end, with all unreadable images: the results of the others are complete.
        failure = error
    finally:
        if writer:  # also of the images before Ctrl-C
            writer.close()
    print(f"{len(images)} image{'s' * (len(images) != 1)} in {detector.precision} on {detector.device}")
    if writer:
        print(f"Saved to {options.save}")
    return Outcome({"images": images, "settings": settings}, failure)


def _with_weights(sources: tuple[str, ...]) -> str:
    """What to do without weights of one's own. None are taken unasked: they would be fetched, and have a licence."""
    from twostage.weights.published import ACCURATE, PUBLISHED, SMALL

    again = command("twostage", "predict", *sources[:3], *(["..."] if sources[3:] else []), "--weights")
    accurate, small = PUBLISHED[ACCURATE], PUBLISHED[SMALL]
    return (
        "no weights given: --weights takes a file, or the name of published weights, which are fetched once.\n"
        f"Of COCO's 80 classes ({accurate.number}, {accurate.mib}, {accurate.licence}): {again} {accurate.name}\n"
        f"Small, for a laptop ({small.number}, {small.mib}): {again} {small.name}\n"
        "All of them: twostage weights list"
    )


def _line(detections: "Detections") -> str:
    """`photo.jpg  640 x 480: 3 cat, 1 dog`."""
    height, width = detections.size
    counts = Counter(detections.labels).most_common()
    what = ", ".join(f"{count} {label}" for label, count in counts) or "no detections"
    return f"{detections.path or 'image'}  {width} x {height}: {what}"
