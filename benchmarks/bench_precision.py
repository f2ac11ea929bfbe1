"""What bf16 costs in AP: the tiny model, trained on real pictures and on generated ones, evaluated in both precisions.

    python benchmarks/bench_precision.py --out benchmarks/results/precision.md

Blood cells ($TWOSTAGE_DATA/data/blood-cells, test split) after `--minutes` of training, and generated scenes after a
quarter of that. The detections are those of `twostage eval`, of the prepared model; beside them those of the trained
model as it is, in float32.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
from _timing import finish, hardware, table

from twostage import Detector
from twostage.data.dataset import Dataset
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.evaluation.evaluate import evaluate
from twostage.evaluation.results import Results
from twostage.inference.dataset import batches_of, detect_split
from twostage.inference.prepare import PreparedModel
from twostage.training import TrainOptions, train

MODEL = "faster_rcnn_tiny_fpn"


def as_trained(detector: Detector, data: Dataset) -> Results:
    """Detections of the model that was trained, without any preparation."""
    model = PreparedModel(detector.model, torch.float32)
    batches = batches_of(model, data, batch=1, workers=0)
    detect = lambda loaded: model.detect(loaded.batch, model.config.postprocess)  # noqa: E731
    return detect_split(model, data, batches, detect).results()


def row(name: str, folder: Path, split: str, size: int, minutes: float, out: Path) -> list[str]:
    """Train, evaluate three times."""
    train(TrainOptions(folder, model=MODEL, minutes=minutes, size=size, max_size=2 * size, out=out, device="cpu"))
    data = open_dataset(folder, split=split, mend=False)
    weights = out / "weights" / "best.safetensors"
    plain = Detector.load(weights, device="cpu")
    half = Detector.load(weights, device="cpu", precision="bf16")
    results = (as_trained(plain, data), plain.detect_dataset(data), half.detect_dataset(data))
    before, fp32, bf16 = (100 * evaluate(data, found).scores.metrics["AP"] for found in results)
    return [f"{name}, {len(data)} images", f"{before:.2f}", f"{fp32:.2f}", f"{bf16:.2f}", f"{fp32 - bf16:+.2f}"]


def main() -> None:
    """Train both, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        scenes = write_scenes(root / "scenes", train=600, val=100, seed=0)
        rows.append(row("generated scenes, validation split", scenes, "val", 192, given.minutes / 4, root / "a"))
        if "TWOSTAGE_DATA" in os.environ:
            cells = Path(os.environ["TWOSTAGE_DATA"]) / "data" / "blood-cells"
            rows.append(row("blood cells, test split", cells, "test", 320, given.minutes, root / "b"))
        else:
            print("Blood cells are left out: set TWOSTAGE_DATA to the folder that holds data/blood-cells.")
    text = "\n\n".join(
        [
            "# What bf16 costs",
            f"`python benchmarks/bench_precision.py`: {MODEL}, trained {given.minutes / 4:g} and {given.minutes:g} "
            "minutes; AP in points.",
            hardware(),
            table(["pictures", "as trained, float32", "prepared, float32", "prepared, bf16", "lost by bf16"], rows),
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
