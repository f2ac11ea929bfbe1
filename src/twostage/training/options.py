"""The options of a training run: the source of `twostage train`'s flags, configuration keys and help.

Importing this module imports no torch, so that the command line's help stays quick.
"""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

from twostage.errors import UsageError, nearest
from twostage.options import option, validate

PARTS = ("backbone", "rpn", "head", "boxes")


@dataclass(frozen=True)
class TrainOptions:
    """The options of `twostage.training.train`. None: the value of the model's recipe, or the default in the help.

    Raises UsageError when a value is out of its range, or when options contradict each other.
    """

    data: Path | None = option(None, "Data set in VOC, COCO or YOLO layout (needed unless --resume is given).")
    _: KW_ONLY

    model: str = option("faster_rcnn_resnet50_fpn", "Model, by its name in the zoo.", group="Model")
    weights: str | None = option(
        None, "Weights to begin with, a detector's or a backbone's: a file, or a name of `weights list`.", group="Model"
    )
    recipe: (
        Literal["finetune", "finetune_dense", "paper", "paper_zf", "paper_fast", "paper_fast_zf", "scratch"] | None
    ) = option(None, "Training recipe, where other options leave it open (default: the model's).", group="Model")
    scheme: Literal["joint", "alternating"] = option(
        "joint",
        "How proposals and detections are learned: together, or in Faster R-CNN's four steps, each of which takes "
        "--epochs, or its share of --minutes.",
        group="Model",
    )
    rounds: int = option(1, "How often the four steps are repeated.", group="Model", low=1)
    learn: tuple[str, ...] = option(
        ("backbone", "rpn", "head"),
        "Parts of the model that learn; the losses of others do not count. boxes is the head's last layer alone.",
        group="Model",
    )
    proposals: Path | None = option(
        None, "File of `data proposals`, in place of what the model proposes or its source computes.", group="Model"
    )
    freeze: int | None = option(None, "Backbone stages kept as they are, counted from the image.", group="Model", low=0)
    names: tuple[str, ...] | None = option(
        None, "Classes to learn, in this order (default: all of the data set's).", group="Model"
    )
    model_fields: dict[str, Any] = option({}, "Fields of the model, as --set model.FIELD=VALUE.", group="Model")

    train_split: str | None = option(None, "Split to learn from (default: train, else trainval).", group="Data")
    val_split: str | None = option(None, "Split to choose by (default: val, else valid, else test).", group="Data")
    images: Path | None = option(None, "Folder of the pictures, where a COCO file does not show it.", group="Data")
    voc_offset: Literal["auto", "0", "1"] = option("auto", "The first pixel's number in VOC files.", group="Data")
    on_error: Literal["default", "fail", "skip"] = option(
        "default", "What to do with faulty objects: mend what can be mended, stop, or leave them out.", group="Data"
    )

    epochs: int | None = option(None, "Passes over the training split.", group="Schedule", low=1)
    minutes: float | None = option(
        None, "Wall time from the first training step to the last, instead of --epochs.", group="Schedule", above=0
    )
    batch: int | None = option(None, "Images in one step.", group="Schedule", low=1)
    accumulate: int = option(1, "Steps whose gradients are added up before one update.", group="Schedule", low=1)
    optimizer: Literal["sgd", "adamw"] | None = option(None, "Optimizer.", group="Schedule")
    lr: float | None = option(
        None, "Learning rate (default: the recipe's, scaled with the batch).", group="Schedule", above=0
    )
    schedule: Literal["multistep", "cosine"] | None = option(None, "How the learning rate falls.", group="Schedule")
    warmup: int | None = option(None, "Steps of linear warm-up.", group="Schedule", low=0)
    momentum: float | None = option(
        None, "Momentum of SGD, or the first beta of AdamW.", group="Schedule", low=0, high=0.9999
    )
    weight_decay: float | None = option(None, "Weight decay.", group="Schedule", low=0)
    clip: float | None = option(None, "Largest norm of the gradient (0: not clipped).", group="Schedule", low=0)
    ema: float | None = option(
        None, "Decay of the averaged weights that are evaluated and kept (0: none).", group="Schedule", low=0, high=1
    )

    size: int | None = option(None, "Shortest side of the image, in pixels.", group="Images", low=1)
    max_size: int | None = option(None, "Longest side of the image, in pixels.", group="Images", low=1)
    flip: float | None = option(None, "Chance to mirror an image.", group="Images", low=0, high=1)
    vertical_flip: float | None = option(None, "Chance to turn it upside down.", group="Images", low=0, high=1)
    colour: float | None = option(
        None, "Strength of random brightness, contrast, saturation and hue.", group="Images", low=0, high=1
    )
    scale: tuple[float, float] | None = option(
        None, "Smallest and largest factor an image is scaled by.", group="Images", above=0
    )
    crop: float | None = option(None, "Chance to crop an image around its objects.", group="Images", low=0, high=1)

    eval_every: int | None = option(None, "Epochs between two validations.", group="Validation", low=1)
    patience: int = option(0, "Validations without a better AP before stopping (0: never).", group="Validation", low=0)
    conf: float | None = option(None, "Lowest score a detection keeps.", group="Validation", low=0, high=1)
    iou: float | None = option(
        None,
        "IoU above which the final NMS drops a box (soft-NMS: lowers its score).",
        group="Validation",
        low=0,
        high=1,
    )
    max_det: int | None = option(None, "Detections an image keeps.", group="Validation", low=1)

    out: Path | None = option(None, "Folder of the run (default: the next free runs/train/NAME-N).", group="Run")
    resume: Path | None = option(None, "Run folder to go on with, exactly as if it had not stopped.", group="Run")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.", group="Run")
    precision: Literal["fp32", "bf16", "fp16"] | None = option(
        None, "Arithmetic of the steps (default: fp32, for small models bf16 where it is quick).", group="Run"
    )
    workers: int | None = option(None, "Processes that read images (default: by the cores).", group="Run", low=0)
    seed: int = option(0, "Everything random follows from it.", group="Run", low=0)
    deterministic: bool = option(
        False, "On CUDA too, operations with equal bits every time where torch has them.", group="Run"
    )
    quiet: bool = option(False, "Warnings and results only.", group="Output")
    offline: bool = option(False, "Never reach for the network.", group="Run")

    def __post_init__(self) -> None:
        validate(self)
        if self.data is None and self.resume is None:
            raise UsageError("no data set given: name its folder or file, as in `twostage train DATA`")
        if self.epochs is not None and self.minutes is not None:
            raise UsageError("epochs and minutes are both given: choose one, the schedule is fitted to it")
        if self.scale is not None and self.scale[0] > self.scale[1]:
            raise UsageError(f"scale is {self.scale[0]:g} to {self.scale[1]:g}: the smaller factor comes first")
        for part in self.learn:
            if part not in PARTS:
                raise UsageError(f"learn: a model has no part {part!r}. {nearest(part, PARTS)}")
        if self.rounds > 1 and self.scheme == "joint":
            raise UsageError("rounds is for --scheme alternating: there are none in joint training")
        if not {"rpn", "head", "boxes"} & set(self.learn):
            raise UsageError("learn: name rpn, head or boxes: without any of them there is no loss")
        if self.proposals is not None and not {"head", "boxes"} & set(self.learn):
            raise UsageError("proposals: nothing reads them where the head does not learn")
        if self.size is not None and self.max_size is not None and self.size > self.max_size:
            raise UsageError(f"size is {self.size} and max_size {self.max_size}: the shortest side comes first")
