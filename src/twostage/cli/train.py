"""`twostage train`: train a detector on a data set."""

from twostage.cli.together import together
from twostage.cli.verb import Outcome, verb
from twostage.training.options import TrainOptions


@verb(TrainOptions)
def train(options: TrainOptions) -> Outcome:
    """Train a detector on a data set, and leave a run folder: weights, curves, pictures, and the state to go on.

    DATA is a folder or file in VOC, COCO or YOLO layout; which one is found by looking.
    """
    from twostage.training import train

    with together() as processes:
        result = train(options)
        print(f"Saved to {result['out']}")
        return Outcome(result if processes.is_main else None)
