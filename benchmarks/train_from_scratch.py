"""The tiny model and its torchvision peer, each trained from scratch in the same minutes on the same machine.

    python benchmarks/train_from_scratch.py scenes scenes-hard blood-cells nuclei --seeds 0 1 2 --out benchmarks/results

Choices were made on blood-cells' train and val splits and on the demo's scenes, none on nuclei and on the scenes made
here. The detector of each seed is scored once on what is reported. Runs take turns: ours, peer, ours.
The peer computes in the precision that ours chooses for the machine: bf16 quickens both. Its NMS is hard; ours is soft,
and is scored both ways.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from _peer import build_peer, detect_peer, train_peer
from _timing import hardware

from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.detector import Detector
from twostage.evaluation.evaluate import evaluate
from twostage.training import TrainOptions, train
from twostage.training.folder import read_options

MODEL = "faster_rcnn_tiny_fpn"


@dataclass(frozen=True)
class Task:
    """What is learned, for how long, and what it is scored on."""

    size: int
    minutes: float
    train: str
    test: str
    batch: int


TASKS = {
    "scenes": Task(192, 2, "train", "val", 8),
    "scenes-hard": Task(256, 2, "train", "val", 8),
    "blood-cells": Task(320, 8, "trainval", "test", 4),
    "nuclei": Task(256, 6, "train", "val", 4),
}


def folder_of(name: str, scratch: Path) -> Path:
    """Where a data set is: scenes are made, real images are in $TWOSTAGE_DATA."""
    if name.startswith("scenes"):
        folder = scratch / name
        return folder if folder.exists() else write_scenes(folder, train=600, val=100, seed=1, hard="hard" in name)
    if "TWOSTAGE_DATA" not in os.environ:
        raise SystemExit(f"{name}: set TWOSTAGE_DATA to the folder that holds data/{name}.")
    return Path(os.environ["TWOSTAGE_DATA"]) / "data" / name


def ours(data: Path, task: Task, minutes: float, seed: int, out: Path) -> tuple[Path, int, str]:
    """Train ours with its recipe's defaults, without validation; the weights, the steps, the precision."""
    done = train(
        TrainOptions(
            data,
            model=MODEL,
            train_split=task.train,
            val_split="none",
            size=task.size,
            minutes=minutes,
            seed=seed,
            out=out,
            quiet=True,
        )
    )
    precision = read_options(out).precision or "fp32"
    return Path(done["weights"]), done["steps"], precision


def run(name: str, seed: int, scratch: Path, minutes: float | None, peers: bool) -> list[dict]:
    """One seed: ours, then the peer."""
    task = TASKS[name]
    minutes = task.minutes if minutes is None else minutes
    data = folder_of(name, scratch)
    started = time.perf_counter()
    weights, steps, precision = ours(data, task, minutes, seed, scratch / f"{name}-{seed}")
    spent = time.perf_counter() - started
    test, rows = open_dataset(data, split=task.test), []
    about = {"task": name, "seed": seed, "precision": precision}
    for who, fields in {"twostage": {}, "twostage, hard NMS": {"soft_nms": "off"}}.items():
        detector = Detector.load(weights, **fields)
        metrics = evaluate(test, detector.detect_dataset(test)).scores.metrics
        rows.append({**about, "who": who, "steps": steps, "seconds": round(spent), **metrics})
    if peers:
        train_set = open_dataset(data, split=task.train)
        resize = detector.model.config.image.resizing
        model = build_peer(len(test.names), task.size, seed)
        started = time.perf_counter()
        steps = train_peer(model, train_set, resize, minutes=minutes, batch=task.batch, seed=seed, precision=precision)
        spent = time.perf_counter() - started
        metrics = evaluate(test, detect_peer(model, test, resize)).scores.metrics
        rows.append({**about, "who": "torchvision", "steps": steps, "seconds": round(spent), **metrics})
    return rows


def table(rows: list[dict]) -> str:
    """Every run, and the mean and spread of each task."""
    shown = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    about = ("task", "who", "seed", "precision", "steps", "seconds")
    lines = ["| " + " | ".join((*about, *shown)) + " |", "|---" * (len(about) + len(shown)) + "|"]
    cells = ([*(str(row[a]) for a in about), *(f"{row[m]:.3f}" for m in shown)] for row in rows)
    lines += [f"| {' | '.join(row)} |" for row in cells]
    lines += ["", "| task | who | seeds | mean AP | smallest | largest | mean AP50 |", "|---|---|---|---|---|---|---|"]
    for task, who in dict.fromkeys((r["task"], r["who"]) for r in rows):
        mine = [r for r in rows if (r["task"], r["who"]) == (task, who)]
        ap = [r["AP"] for r in mine]
        ap50 = statistics.mean(r["AP50"] for r in mine)
        lines.append(
            f"| {task} | {who} | {len(mine)} | {statistics.mean(ap):.3f} | {min(ap):.3f} | {max(ap):.3f} | {ap50:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the tasks and write the table after every seed, so that an interrupted run leaves what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, help="instead of each task's own")
    parser.add_argument("--no-peer", action="store_true", help="ours only")
    parser.add_argument("--out", type=Path, help="folder for train_<task>.md and .json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.tasks:
            rows: list[dict] = []
            for seed in given.seeds:
                rows += run(name, seed, Path(scratch), given.minutes, not given.no_peer)
                text = f"{hardware()}\n\n{table(rows)}\n"
                print(text, flush=True)
                if given.out:
                    command = (
                        f"python benchmarks/train_from_scratch.py {name} --seeds {' '.join(map(str, given.seeds))}"
                    )
                    (given.out / f"train_{name}.md").write_text(f"# {name}, from scratch\n\n`{command}`\n\n{text}")
                    (given.out / f"train_{name}.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
