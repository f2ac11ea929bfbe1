"""`twostage train`: train a detector on a data set."""

from twostage.cli.together import together
from twostage.cli.verb import Outcome, verb
from twostage.training.options import TrainOptions


@verb(TrainOptions)
def train(options: TrainOptions) -> Outcome:
    """Train a detector on a data set; write a run folder with weights, plots, images, and the state to resume from.

    The layout of DATA (VOC, COCO or YOLO) is detected.
    """
    from twostage.training import train

    with together() as processes:
        result = train(options)
        print(f"Saved to {result['out']}")
        return Outcome(result if processes.is_main else None)
