"""The training loop and all it writes."""

from typing import Any

from twostage.training.options import TrainOptions


def train(options: TrainOptions) -> dict[str, Any]:
    """Train a detector and leave a run folder.

    Returns {"out", "weights", "epochs", "steps", "seconds", "metrics"}: the run folder, its best weights, what was
    done, and COCO's and VOC's numbers of the best weights on the validation split. Raises UsageError, DataError or
    MissingError before the first step where anything is wrong; TwostageError when the loss is no number any more;
    KeyboardInterrupt on Ctrl-C, after saving.
    """
    # torch comes with it: options alone, and so the command line's help, do without.
    from twostage.ops.cpu.memory import release_freed_memory
    from twostage.training.alternating import alternate
    from twostage.training.folder import read_options
    from twostage.training.run import run

    scheme = options.scheme if options.resume is None else read_options(options.resume).scheme
    try:
        return alternate(options) if scheme == "alternating" else run(options)
    finally:
        release_freed_memory()  # of what the steps kept for each other
