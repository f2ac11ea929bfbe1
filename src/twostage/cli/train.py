"""`twostage train`: train a detector on a data set."""

from pathlib import Path
from typing import Any

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
        print(f"Saved to {result['out']}: {_summary(result)}")
        return Outcome(result if processes.is_main else None)


def _summary(result: dict[str, Any]) -> str:
    """The file with the weights, and their AP where it was measured."""
    weights = Path(result["weights"]).relative_to(result["out"])
    metrics = result.get("metrics", {})
    scores = [f"{name} {metrics[name]:.3f}" for name in ("AP", "AP50") if metrics.get(name, -1) >= 0]
    return ", ".join([str(weights), *scores])
