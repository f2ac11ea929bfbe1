"""Short trainings of the tiny model: the batch that ours chooses, and its torchvision peer in the same minutes.

    python benchmarks/budgets.py scenes-hard nuclei blood-cells --worth 100 400 --seeds 0 1 2 --out benchmarks/results

A budget is the time of so many of our steps with 8 images, measured first: little on a slow machine, in which ours
takes smaller batches (`training.batch_size`). The peer takes 4 images a step. The splits are those of
train_from_scratch.py; the rule was chosen on the train and val splits of the same data, with one seed.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from _peer import build_peer, detect_peer, train_peer
from _rows import read_rows, write_rows
from _timing import table as markdown
from train_from_scratch import MODEL, TASKS, folder_of, ours

from twostage.data.recognise import open_dataset
from twostage.detector import Detector
from twostage.evaluation.evaluate import evaluate
from twostage.training import TrainOptions, train
from twostage.training.folder import read_options

PEER_BATCH = 4
TITLE = "Short trainings"
ABOUT = (
    "`python benchmarks/budgets.py`: mean AP of the seeds (smallest to largest). A budget is the time of so many of "
    "our steps with 8 images; ours halves its batch until there is time for 450 (`training.batch_size`)."
)


def seconds_of_step(name: str, data: Path, scratch: Path) -> float:
    """Of ours with 8 images, in a run of its own."""
    task = TASKS[name]
    options = TrainOptions(
        data,
        model=MODEL,
        train_split=task.train,
        val_split="none",
        size=task.size,
        batch=8,
        minutes=0.3,
        out=scratch / f"{name}-timed",
        quiet=True,
    )
    return 60 * 0.3 / train(options)["steps"]


def run(name: str, data: Path, seconds: float, worth: int, seed: int, scratch: Path) -> list[dict]:
    """Ours, then the peer, in the time of so many steps."""
    task = TASKS[name]
    minutes = worth * seconds / 60
    out = scratch / f"{name}-{worth}-{seed}"
    started = time.perf_counter()
    weights, steps, precision = ours(data, task, minutes, seed, out)
    spent = time.perf_counter() - started
    about = {"task": name, "worth": worth, "minutes": round(minutes, 2), "seed": seed, "precision": precision}
    test = open_dataset(data, split=task.test)
    detector = Detector.load(weights)
    scores = evaluate(test, detector.detect_dataset(test)).scores.metrics
    mine = {"who": "twostage", "batch": read_options(out).batch or 8, "steps": steps, "seconds": round(spent)}
    resize = detector.model.config.image.resizing
    peer = build_peer(len(test.names), task.size, seed)
    started = time.perf_counter()
    train_set = open_dataset(data, split=task.train)
    steps = train_peer(peer, train_set, resize, minutes=minutes, batch=PEER_BATCH, seed=seed, precision=precision)
    spent = time.perf_counter() - started
    peer_scores = evaluate(test, detect_peer(peer, test, resize)).scores.metrics
    theirs = {"who": "torchvision", "batch": PEER_BATCH, "steps": steps, "seconds": round(spent)}
    return [{**about, **mine, **scores}, {**about, **theirs, **peer_scores}]


def table(rows: list[dict]) -> str:
    """One line per task and budget: the mean AP of the seeds, and the smallest and largest."""
    lines = []
    for task, worth in dict.fromkeys((row["task"], row["worth"]) for row in rows):
        cells = [task, str(worth), ""]
        for who in ("twostage", "torchvision"):
            some = [row for row in rows if (row["task"], row["worth"], row["who"]) == (task, worth, who)]
            ap = [row["AP"] for row in some]
            steps = round(sum(row["steps"] for row in some) / len(some))
            cells[2] = f"{some[0]['minutes']:.1f}"
            cells += [f"{steps} of {some[0]['batch']}", f"{sum(ap) / len(ap):.3f} ({min(ap):.3f} to {max(ap):.3f})"]
        lines.append([*cells, str(len(ap))])
    head = ["task", "steps of 8 in the time", "minutes", "steps", "AP", "torchvision, steps", "its AP", "seeds"]
    return markdown(head, lines)


def main() -> None:
    """Seed by seed; the table is written after every run, so that an interrupted one leaves what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--worth", nargs="+", type=int, default=[100, 400])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, help="folder for budgets.md and .json; what it has is not run again")
    given = parser.parse_args()
    rows = read_rows(given.out, "budgets")
    done = {(row["task"], row["worth"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = {name: folder_of(name, scratch) for name in given.tasks}
        # The same budgets as before, where there are any.
        seconds = {row["task"]: 60 * row["minutes"] / row["worth"] for row in rows}
        for name in given.tasks:
            if name not in seconds:
                seconds[name] = seconds_of_step(name, data[name], scratch)
        for seed in given.seeds:
            for name in given.tasks:
                for worth in given.worth:
                    if (name, worth, seed) in done:
                        continue
                    rows += run(name, data[name], seconds[name], worth, seed, scratch)
                    print(json.dumps(rows[-2:]), flush=True)
                    if given.out:
                        write_rows(given.out, "budgets", rows, TITLE, ABOUT, table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
