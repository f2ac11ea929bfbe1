"""Options that several verbs share, each with its help written once; a verb's dataclass inherits those it takes."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

from twostage.box_notations import order_and_unit
from twostage.errors import UsageError
from twostage.options import Options, option

Precision = Literal["auto", "fp32", "bf16", "fp16"]

MAX_DET = "Maximum number of detections per image."
SEED = "Seed of all random choices."
PRECISION = "Arithmetic of the forward pass; auto: bf16 where a short trial is faster in it, else fp32."
WEIGHTS = "Weights file, or a name from `twostage weights list`."
WEIGHTS_FOR_DATA = f"{WEIGHTS} Its classes and those of the data set are matched by name."
BOXES = (
    "How boxes are written: auto (as the format has them; an error if together they look otherwise), format (the same, "
    "unchecked), or xywh, xyxy, cxcywh, yxyx, yxhw, xxyy, each also with -fractions, -percent, -thousandths."
)
PROPOSALS = "File of `twostage data proposals`, used instead of the model's own proposals."


@dataclass(frozen=True, kw_only=True)
class LayoutOptions(Options):
    """How the files of a data set are read."""

    images: Path | None = option(
        None,
        "Folder of the images, if they are not found from the annotations; in YOLO layout with one folder per split.",
        group="Data",
    )
    voc_offset: Literal["auto", "0", "1"] = option("auto", "Coordinate of the first pixel in VOC files.", group="Data")
    boxes: str = option("auto", BOXES, group="Data")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boxes not in ("auto", "format"):
            order_and_unit(self.boxes)


@dataclass(frozen=True)
class DataOptions(LayoutOptions):
    """The data set."""

    data: Path = option(help="Data set in VOC, COCO, YOLO, labelme or VIA layout.")


@dataclass(frozen=True)
class TrainDataOptions(LayoutOptions):
    """The data set of a training run, or the run to resume."""

    data: Path | None = option(None, "Data set in VOC, COCO, YOLO, labelme or VIA layout (required without --resume).")
    _: KW_ONLY
    train_split: str | None = option(
        None, "Training split (default: train, else trainval, else the only one).", group="Data"
    )
    val_split: str | None = option(
        None, "Validation split, or none (default: val, else valid, else test).", group="Data"
    )
    resume: Path | None = option(None, "Run folder to resume exactly where it stopped.", group="Run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is None and self.resume is None:
            raise UsageError("no data set given: name its folder or file, as in `twostage train DATA`")


@dataclass(frozen=True, kw_only=True)
class NewDataOptions(Options):
    """Where a data set is written."""

    pictures: Literal["copy", "link"] = option("copy", "Copy the image files, or link to them.", group="Output")
    out: Path = option(help="New folder.", group="Output")


@dataclass(frozen=True, kw_only=True)
class ResizeOptions(Options):
    """The image size that sizes of objects are computed for; by default that of the default model."""

    size: int = option(320, "Shortest side of the images to check boxes at, in pixels.", group="Images", low=1)
    max_size: int = option(640, "Longest side of the images to check boxes at, in pixels.", group="Images", low=1)


@dataclass(frozen=True, kw_only=True)
class FieldsOptions(Options):
    """Fields of the model's configuration."""

    model_fields: dict[str, Any] = option({}, "Fields of the model, as --set model.FIELD=VALUE.", group="Model")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(FieldsOptions):
    """Fields of the model's configuration; the image size has flags of its own."""

    size: int | None = option(
        None, "Shortest side of the image, in pixels (default: the model's).", group="Images", low=1
    )
    max_size: int | None = option(
        None, "Longest side of the image, in pixels (default: the model's).", group="Images", low=1
    )

    @property
    def given_fields(self) -> dict[str, Any]:
        """The fields that are given, the image size included."""
        sizes = {"size": self.size, "max_size": self.max_size}
        return self.model_fields | {name: value for name, value in sizes.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrainModelOptions(ModelOptions):
    """Those of a model that is to be trained."""

    size: int | None = option(
        None,
        "Shortest side of the image, in pixels (default: the model's; small pretrained networks take up to 640, for "
        "small objects).",
        group="Images",
        low=1,
    )


@dataclass(frozen=True, kw_only=True)
class DetectionOptions(Options):
    """Which detections are kept."""

    conf: float | None = option(
        None, "Lowest score of a detection (default: the model's).", group="Detections", low=0, high=1
    )
    iou: float | None = option(
        None,
        "IoU above which the final NMS removes a box (soft-NMS: lowers its score).",
        group="Detections",
        low=0,
        high=1,
    )
    max_det: int | None = option(None, MAX_DET, group="Detections", low=1)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Where the computation runs."""

    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.", group="Run")


@dataclass(frozen=True, kw_only=True)
class WorkersOptions(Options):
    """How images are read."""

    workers: int | None = option(
        None, "Processes that read images (default: by the number of cores).", group="Run", low=0
    )


@dataclass(frozen=True, kw_only=True)
class OfflineOptions(Options):
    """Whether weights and data may be downloaded."""

    offline: bool = option(False, "Never access the network.", group="Run")


@dataclass(frozen=True, kw_only=True)
class QuietOptions(Options):
    """How much is printed."""

    quiet: bool = option(False, "Print warnings and results only.", group="Output")


@dataclass(frozen=True, kw_only=True)
class RunOptions(DeviceOptions, QuietOptions):
    """A run with random numbers and a progress bar."""

    seed: int = option(0, SEED, group="Run", low=0)


@dataclass(frozen=True, kw_only=True)
class DetectorOptions(ModelOptions, DeviceOptions, OfflineOptions):
    """How a detector is loaded."""

    precision: Precision = option("fp32", PRECISION, group="Run")
    choose_forms: bool = option(
        True, "On a CPU try several forms of each layer, once per machine, and keep the fastest.", group="Run"
    )
