"""The training loop and everything that it writes."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.errors import UsageError, nearest
from twostage.training.options import TrainOptions

if TYPE_CHECKING:
    from torch import nn

    from twostage.data.dataset import Dataset


def train(
    data: "TrainOptions | Dataset | str | Path | None" = None,
    *,
    val: "Dataset | None" = None,
    backbone: "nn.Module | str | None" = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a detector and write a run folder.

    `data` is the path of a data set, an open `Dataset` or one made in memory (then `val` is the data set to validate
    on, or None), or the `TrainOptions` of the run; `options` are its fields: `train("my-data", epochs=12)`.
    With `folds`, or where a path has few images and no split to validate on, it is cross-validated and then trained on
    all images.
    `backbone` takes the place of the model's own: a module (`models.build`), or a network of timm, "timm:NAME".

    Returns {"out", "weights", "epochs", "steps", "seconds", "metrics"}: the run folder, its best weights, what was
    done, and COCO's and VOC's metrics of the best weights on the validation split. Raises UsageError, DataError or
    MissingError before the first step where anything is wrong; TwostageError when the loss is not finite;
    KeyboardInterrupt on Ctrl-C, after saving.
    """
    # torch comes with it: options alone, and so the command line's help, do without.
    from twostage.data.dataset import Dataset
    from twostage.ops.cpu.memory import release_freed_memory
    from twostage.training.alternating import alternate
    from twostage.training.cross_validation import cross_validate, needs_cross_validation, require_not_part
    from twostage.training.folder import read_options
    from twostage.training.learning_curve import add_learning_curve
    from twostage.training.run import run
    from twostage.training.splits import NONE, given_splits

    known = [field.name for field in fields(TrainOptions)]
    for name in options:
        if name not in known:
            raise UsageError(
                f"train has no option {name!r}. {nearest(name, known)} Values of the model go into model_fields: "
                'model_fields={"rpn_nms": 0.6}.'
            )
    if isinstance(backbone, str):
        options["backbone"], backbone = backbone, None
    splits = None
    if isinstance(data, Dataset):
        if not isinstance(val, Dataset | None):
            raise UsageError(f"val is {type(val).__name__}: data is a Dataset, and val must be one too, or None.")
        if of_files := sorted({"train_split", "val_split", "images", "voc_offset", "boxes"} & set(options)):
            raise UsageError(f"{of_files[0]} chooses from files, and data is a Dataset: leave it out.")
        splits = given_splits(data, val)
        chosen: dict[str, Any] = {"data": data.root, "val_split": NONE if val is None else val.split}
        if (resume := options.get("resume")) is not None:
            if (val is None) != (read_options(Path(resume)).val_split == NONE):
                raise UsageError(
                    "val: a resumed run is validated on the same data set as before, or on none as before."
                )
            chosen = {}
        run_options = TrainOptions(**chosen, **options)
    elif val is not None:
        raise UsageError("val is given and data is not a Dataset: give val_split, or both as data sets.")
    elif isinstance(data, TrainOptions):
        run_options = data
    elif isinstance(data, str | Path | None):
        run_options = TrainOptions(None if data is None else Path(data), **options)
    else:
        raise UsageError(
            f"data is {type(data).__name__}: give a path or a Dataset. Dataset.from_samples makes one of samples."
        )
    if run_options.resume is not None:
        require_not_part(run_options.resume)
    recorded_options = run_options if run_options.resume is None else read_options(run_options.resume)
    several = run_options.resume is None and needs_cross_validation(run_options, splits)
    try:
        learn: Callable[..., dict[str, Any]] = run
        if recorded_options.scheme == "alternating":
            learn = alternate
        elif several or recorded_options.folds is not None:
            learn = cross_validate
        result = learn(run_options, splits=splits, backbone=backbone)
        if recorded_options.curve:
            result = add_learning_curve(run_options, result, splits=splits, backbone=backbone)
        return result
    finally:
        release_freed_memory()
