"""Does the paper's model train at all? `faster_rcnn_vgg16` from random weights learns 20 photos by heart.

    python benchmarks/learn_by_heart.py --out benchmarks/results/learn_by_heart.md

The 20 photos of $TWOSTAGE_DATA/data/coco-photos with the fewest objects among those that have some. Small images, so
smaller anchors; AdamW, since VGG16 without pretraining and without normalisation does not begin to learn by plain SGD.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from _timing import finish, hardware, table

from twostage.data.recognise import open_dataset
from twostage.detector import Detector
from twostage.evaluation.evaluate import evaluate
from twostage.training import TrainOptions, train

PHOTOS = 20


def subset(folder: Path) -> Path:
    """A COCO file of 20 photos beside nothing: the pictures stay where they are."""
    root = Path(os.environ["TWOSTAGE_DATA"]) / "data" / "coco-photos"
    content = json.loads((root / "instances.json").read_text())
    plain = [a for a in content["annotations"] if not a.get("iscrowd")]
    counts = {i["id"]: sum(a["image_id"] == i["id"] for a in plain) for i in content["images"]}
    chosen = sorted((i for i in counts if counts[i]), key=lambda i: (counts[i], i))[:PHOTOS]
    content["images"] = [i for i in content["images"] if i["id"] in chosen]
    content["annotations"] = [a for a in plain if a["image_id"] in chosen]
    used = {a["category_id"] for a in content["annotations"]}
    content["categories"] = [c for c in content["categories"] if c["id"] in used]
    path = folder / "twenty.json"
    path.write_text(json.dumps(content))
    return path


def main() -> None:
    """Train, and score on the same photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", default="fp32", help="bf16 is faster where the processor is built for it")
    given = parser.parse_args()
    images = Path(os.environ["TWOSTAGE_DATA"]) / "data" / "coco-photos" / "images"
    with tempfile.TemporaryDirectory() as scratch:
        data = subset(Path(scratch))
        done = train(
            TrainOptions(
                data,
                model="faster_rcnn_vgg16",
                images=images,
                train_split="twenty",
                val_split="none",
                size=given.size,
                precision=given.precision,
                epochs=given.epochs,
                optimizer="adamw",
                schedule="cosine",
                lr=1e-4,
                warmup=40,
                batch=2,
                flip=0.0,
                model_fields={
                    "anchor_sizes": [[32, 64, 128]],
                    "rpn_min_size": 4.0,
                    "dropout": 0.0,
                    "rpn_top_train": 2000,
                    "rpn_keep_train": 500,
                },
                out=Path(scratch) / "run",
            )
        )
        dataset = open_dataset(data, split="twenty", images=images)
        metrics = evaluate(dataset, Detector.load(done["weights"]).detect_dataset(dataset)).scores.metrics
    rows = [[f"{done['steps']}", f"{done['seconds']:.0f}", *(f"{metrics[m]:.3f}" for m in ("AP", "AP50", "AP75"))]]
    text = "\n\n".join(
        [
            "# faster_rcnn_vgg16 learns 20 photos by heart",
            f"`python benchmarks/learn_by_heart.py --epochs {given.epochs} --size {given.size} "
            f"--precision {given.precision}`: trained and scored on the same photos; no claim of accuracy.",
            hardware(),
            table(["steps", "seconds", "AP", "AP50", "AP75"], rows),
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
