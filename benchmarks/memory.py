"""Does memory stay where it is? Three long runs, each in its own process, watched from outside.

    python benchmarks/memory.py --out benchmarks/results/memory.md

1. Three epochs over 20000 annotated pictures with 4 worker processes: memory of all processes at the end of each.
2. Training steps with 10 and with 500 objects an image: peak memory.
3. Scoring a detector on 5000 images with 100 detections each: what it needs beyond the model.

Memory is the proportional set size of a process and its children (shared pages counted once), sampled five times a
second.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _timing import finish, hardware, table
from PIL import Image

MODEL = ["--model", "faster_rcnn_tiny_fpn"]
SMALL = [
    *MODEL,
    "--size",
    "64",
    "--max-size",
    "64",
    "--set",
    "model.rpn_keep_train=100",
    "--set",
    "model.rpn_top_train=200",
]
GIB = 2**30


def main() -> int:
    """Run all three, report; 1 where memory grows by a twentieth after the first epoch, or scoring needs over 1 GiB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--scored", type=int, default=5000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        epochs = of_epochs(root, given.images)
        steps = {objects: of_steps(root, objects) for objects in (10, 500)}
        before, peak = of_scoring(root, given.scored)
    text = "\n".join(
        [
            "# Memory",
            "",
            "`python benchmarks/memory.py`: proportional set size of a process and its children, in MiB.",
            "",
            hardware(),
            "",
            f"Training on {given.images} annotated pictures with 4 workers:",
            "",
            table(["epoch", "at its end", "most within it"], [[i + 1, *map(mib, row)] for i, row in enumerate(epochs)]),
            "",
            "Training, 8 images of 320 x 320 a step, by the objects of each image:",
            "",
            table(["objects", "most"], [[objects, mib(most)] for objects, most in steps.items()]),
            "",
            f"Scoring {given.scored} images with 100 detections each:",
            "",
            table(["with the model loaded", "most", "beyond"], [[mib(before), mib(peak), mib(peak - before)]]),
        ]
    )
    finish(text, given.out)
    return int(epochs[-1][1] > 1.05 * epochs[0][1] or peak - before > GIB)


def of_epochs(root: Path, images: int) -> list[tuple[int, int]]:
    """Memory at the end of each of three epochs, and the most within it."""
    data, run = root / "many", root / "run"
    write_pictures(data, {"train": images, "val": 8}, side=64, objects=8)
    words = [
        "train",
        data,
        *SMALL,
        "--epochs",
        "3",
        "--eval-every",
        "3",
        "--workers",
        "4",
        "--batch",
        "16",
        "--out",
        run,
    ]
    ends: list[tuple[int, int]] = []
    most = [0]

    def look(now: int) -> None:
        most[0] = max(most[0], now)
        if rows(run) > len(ends):
            ends.append((now, most[0]))
            most[0] = 0

    watched([sys.executable, "-m", "twostage", *map(str, words), "--quiet"], look)
    return ends


def of_steps(root: Path, objects: int) -> int:
    """The most memory in a few epochs with so many objects an image."""
    data = root / f"with-{objects}"
    write_pictures(data, {"train": 32, "val": 1}, side=320, objects=objects)
    words = ["train", data, *MODEL, "--size", "320", "--max-size", "320", "--epochs", "5", "--eval-every", "5"]
    words += ["--batch", "8", "--workers", "0", "--out", root / f"run-{objects}"]
    most = [0]
    watched(
        [sys.executable, "-m", "twostage", *map(str, words), "--quiet"], lambda now: most.append(max(most.pop(), now))
    )
    return most[0]


SCORING = """
import sys, time
from twostage import Detector
from twostage.data.recognise import open_dataset
from twostage.evaluation.evaluate import evaluate
data, ready = sys.argv[1:]
detector = Detector.build("faster_rcnn_tiny_fpn", names=[str(k) for k in range(80)], size=64, max_size=64)
detector.predict(f"{data}/val/0.jpg")
open(ready, "w").close()
time.sleep(2)
open(ready + ".on", "w").close()
dataset = open_dataset(data, split="val")
results = detector.detect_dataset(dataset, conf=0.0, max_det=100, workers=2)
assert len(results) == 100 * len(dataset), len(results)
evaluate(dataset, results)
"""


def of_scoring(root: Path, images: int) -> tuple[int, int]:
    """Memory with the model loaded and used once, and the most while scoring."""
    data = root / "scored"
    write_pictures(data, {"val": images}, side=64, objects=8)
    ready = root / "ready"
    before, most = [0], [0]

    def look(now: int) -> None:
        seen = most if ready.with_name("ready.on").exists() else before
        if ready.exists():
            seen[0] = max(seen[0], now)

    watched([sys.executable, "-c", SCORING, str(data), str(ready)], look)
    return before[0], most[0]


def watched(command: list[str], look: Callable[[int], None]) -> None:
    """Run a command, and show its memory five times a second. Raises RuntimeError where it fails."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while process.poll() is None:
        now = sum(memory_of(pid) for pid in family(process.pid))
        if now:
            look(now)
        time.sleep(0.2)
    if process.returncode:
        assert process.stderr is not None
        raise RuntimeError(process.stderr.read().decode())


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def memory_of(pid: int) -> int:
    """Bytes; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def write_pictures(root: Path, splits: dict[str, int], *, side: int, objects: int) -> None:
    """A COCO data set of noise with random boxes of 80 classes; only the first hundred pictures differ."""
    draw = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    contents = []
    for _ in range(100):
        path = root / "one.jpg"
        Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
        contents.append(path.read_bytes())
    path.unlink()
    for split, count in splits.items():
        (root / split).mkdir()
        for i in range(count):
            (root / split / f"{i}.jpg").write_bytes(contents[i % 100])
        corner = draw.uniform(0, side * 0.7, (count * objects, 2))
        sides = draw.uniform(side * 0.05, side * 0.3, (count * objects, 2))
        classes = draw.integers(1, 81, count * objects)
        content = {
            "images": [{"id": i + 1, "file_name": f"{i}.jpg", "width": side, "height": side} for i in range(count)],
            "categories": [{"id": k + 1, "name": str(k)} for k in range(80)],
            "annotations": [
                {
                    "id": n + 1,
                    "image_id": n // objects + 1,
                    "category_id": int(classes[n]),
                    "bbox": [*corner[n].tolist(), *sides[n].tolist()],
                    "area": float(sides[n].prod()),
                    "iscrowd": 0,
                }
                for n in range(count * objects)
            ],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def rows(run: Path) -> int:
    """How many epochs have ended."""
    path = run / "metrics.csv"
    if not path.exists():
        return 0
    with path.open(newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def mib(memory: int) -> str:
    """For people."""
    return f"{memory / 2**20:.0f}"


if __name__ == "__main__":
    sys.exit(main())
