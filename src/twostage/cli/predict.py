"""`twostage predict`: find objects in pictures."""

from collections import Counter
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twostage.cli.loading import load_detector
from twostage.cli.verb import Outcome, to_json, verb
from twostage.cli.viewing import ViewOptions
from twostage.errors import DataError, UsageError, nearest
from twostage.folders import new_folder
from twostage.options import option, validate

if TYPE_CHECKING:
    from twostage.detections import Detections

FORMATS = ("json", "coco", "voc")


@dataclass(frozen=True)
class PredictOptions(ViewOptions):
    """What to look at, with which detector, and what to keep."""

    sources: tuple[str, ...] = option(help="Files, folders, globs, or - for paths on standard input.")
    _: KW_ONLY
    weights: str = option(help="Weights file, or a name of `twostage weights list`.", group="Model")
    model_fields: dict[str, Any] = option({}, "Fields of the model, as --set model.FIELD=VALUE.", group="Model")
    size: int | None = option(None, "Shortest side of the image (default: as trained).", group="Images", low=1)
    max_size: int | None = option(None, "Longest side of the image (default: as trained).", group="Images", low=1)
    conf: float = option(0.5, "Lowest score a detection keeps.", group="Detections", low=0, high=1)
    iou: float | None = option(
        None,
        "IoU above which the final NMS drops a box (soft-NMS: lowers its score).",
        group="Detections",
        low=0,
        high=1,
    )
    max_det: int = option(100, "Detections an image keeps; with --tile, each of its tiles.", group="Detections", low=1)
    batch: int = option(1, "At most so many images at once; only rounding depends on it.", group="Run", low=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.", group="Run")
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "Arithmetic of the forward pass.", group="Run")
    offline: bool = option(False, "Never reach for the network.", group="Run")
    save: Path | None = option(None, "New folder for the pictures and the results.", group="Output")
    format: tuple[str, ...] = option(("json",), "Results that --save writes: json, coco, voc.", group="Output")

    def __post_init__(self) -> None:
        validate(self)
        if not self.sources:
            raise UsageError("no source given: name pictures, folders or globs, as in `twostage predict photos/`")
        if not self.formats:
            raise UsageError("format is empty: name one of json, coco and voc")
        for format in self.formats:
            if format not in FORMATS:
                raise UsageError(f"format is {format!r}. {nearest(format, FORMATS)}")
        if self.save is None and self.formats != ("json",):
            raise UsageError("--format says what --save writes: name a new folder, as in `--save found --format coco`")

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats one by one: `json,coco` is as good as `json coco`."""
        return tuple(part.strip() for text in self.format for part in text.split(",") if part.strip())


@verb(PredictOptions)
def predict(options: PredictOptions) -> Outcome:
    """Find objects in pictures: boxes in pixels of each picture as it is shown, upright.

    Without --save nothing is written: each picture's objects are listed, or put out by --json.
    """
    detector = load_detector(options.weights, options)
    found = detector.predict(
        list(options.sources),
        conf=options.conf,
        iou=options.iou,
        max_det=options.max_det,
        batch=options.batch,
        views=options.views,
    )
    keeper = Keeper(new_folder(options.save, "--save"), options.formats) if options.save else None
    images = []
    failure = None
    try:
        for detections in found:
            images.append(keeper.keep(detections) if keeper else detections.to_dict())
            print(_line(detections))
    except DataError as error:
        # Pictures that cannot be read are named at the end: the others are done by then, and are kept.
        failure = error
    if keeper:
        keeper.finish()
        print(f"Saved to {options.save}")
    return Outcome({"images": images}, failure)


class Keeper:
    """Writes pictures as they come, and the files about all of them at the end.

    Pictures of one name from several folders are told apart by a number: `photo.jpg`, `photo-2.jpg`.
    """

    def __init__(self, folder: Path, formats: tuple[str, ...]) -> None:
        self.folder = folder
        self.formats = formats
        self._used: set[str] = set()
        self._twins: Counter[str] = Counter()
        self._images: list[dict[str, Any]] = []
        self._entries: list[dict[str, Any]] = []

    def keep(self, detections: "Detections") -> dict[str, Any]:
        """Draw and save one picture, remember and return its results, which name the drawn one as `picture`."""
        path = Path(detections.path or "image")
        _, _, frame = path.suffix.partition("#")  # of a video: walk.mp4#12
        name = self._free_name(f"{path.stem}-{frame}" if frame else path.stem)
        detections.save(self.folder / f"{name}.jpg")
        if "voc" in self.formats:
            detections.save(self.folder / "voc" / f"{name}.xml")
        self._images.append({**detections.to_dict(), "picture": f"{name}.jpg"})
        image_id = len(self._images)
        # COCO's tools pass over keys they do not know; `eval` finds image and class of any data set by these two.
        self._entries += [
            {**entry, "file_name": detections.path, "category_name": label}
            for entry, label in zip(detections.to_coco(image_id), detections.labels, strict=True)
        ]
        return self._images[-1]

    def finish(self) -> None:
        """Write the results of all pictures."""
        from twostage.atomic import write_text

        if "json" in self.formats:
            write_text(self.folder / "results.json", to_json({"images": self._images}))
        if "coco" in self.formats:
            write_text(self.folder / "coco.json", to_json(self._entries))

    def _free_name(self, stem: str) -> str:
        name = stem
        while name.casefold() in self._used:  # macOS and Windows take Photo.jpg and photo.jpg for one file
            self._twins[stem] += 1
            name = f"{stem}-{self._twins[stem] + 1}"
        self._used.add(name.casefold())
        return name


def _line(detections: "Detections") -> str:
    """`photo.jpg  640 x 480: 3 cat, 1 dog`."""
    height, width = detections.size
    counts = Counter(detections.labels).most_common()
    what = ", ".join(f"{count} {label}" for label, count in counts) or "nothing found"
    return f"{detections.path or 'image'}  {width} x {height}: {what}"
