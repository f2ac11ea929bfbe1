"""The training loop and everything that it writes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.errors import UsageError
from twostage.training.options import TrainOptions

if TYPE_CHECKING:
    from torch import nn

    from twostage.data.dataset import Dataset


def train(
    data: "TrainOptions | Dataset | str | Path | None" = None,
    *,
    val: "Dataset | None" = None,
    backbone: "nn.Module | None" = None,
    **fields: Any,
) -> dict[str, Any]:
    """Train a detector and write a run folder.

    `data` is the path of a data set, an open `Dataset` or one made in memory (then `val` is the data set to validate
    on, or None), or the `TrainOptions` of the run; `fields` are those of `TrainOptions`: `train("my-data", epochs=12)`.
    `backbone` takes the place of the model's own (`models.build`).

    Returns {"out", "weights", "epochs", "steps", "seconds", "metrics"}: the run folder, its best weights, what was
    done, and COCO's and VOC's metrics of the best weights on the validation split. Raises UsageError, DataError or
    MissingError before the first step where anything is wrong; TwostageError when the loss is not finite;
    KeyboardInterrupt on Ctrl-C, after saving.
    """
    # torch comes with it: options alone, and so the command line's help, do without.
    from twostage.data.dataset import Dataset
    from twostage.ops.cpu.memory import release_freed_memory
    from twostage.training.alternating import alternate
    from twostage.training.folder import read_options
    from twostage.training.run import run
    from twostage.training.splits import NONE, given_splits

    splits = None
    if isinstance(data, Dataset):
        splits = given_splits(data, val)
        options = TrainOptions(data.root, **{"val_split": NONE if val is None else val.split, **fields})
    elif val is not None:
        raise UsageError("val is given and data is no Dataset: give --val-split, or both as data sets")
    else:
        options = (
            data if isinstance(data, TrainOptions) else TrainOptions(None if data is None else Path(data), **fields)
        )
    scheme = options.scheme if options.resume is None else read_options(options.resume).scheme
    try:
        learn = alternate if scheme == "alternating" else run
        return learn(options, splits=splits, backbone=backbone)
    finally:
        release_freed_memory()
