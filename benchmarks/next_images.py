"""The images that `data audit --next` chooses to be labelled, beside images at random and two simpler choices.

    OMP_NUM_THREADS=1 python benchmarks/next_images.py --seeds 0 1 2 --processor-time --work WORK \\
        --out benchmarks/results

Of blood-cells' train split a detector learns some images, drawn by the seed, and chooses as many more from the rest, of
which it sees no labels. Then a detector learns both together, from the pretrained network, in the same minutes
whatever was chosen, and is scored on val. With --processor-time the minutes are those in which the process computed.
WORK keeps the detectors that choose: what is there is not trained again.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import numpy as np
from _rows import keep_rows, read_rows, write_section
from _timing import table as markdown
from audit import TITLE
from few_images import few, spread
from jaxtyping import Float
from train_from_scratch import folder_of

from twostage.data.dataset import Dataset, select_images
from twostage.data.randomness import generator
from twostage.data.recognise import open_dataset
from twostage.detector import Detector
from twostage.evaluation.evaluate import evaluate
from twostage.inspection.evidence import Evidence, LabelBoxes, evidence, require_stages
from twostage.inspection.next_images import SEEN, next_images
from twostage.training import train
from twostage.training.folder import RunFolder

DATA, SIZE = "blood-cells", 320
FIRST, MORE = 40, 40  # images
NONE = "none"
NEXT = "data audit --next"
HEADING = "Which images to label next"

Choice = Callable[[Mapping[int, Evidence], int, Dataset, int], list[int]]


def by_next(seen: Mapping[int, Evidence], count: int, known: Dataset, seed: int) -> list[int]:
    """The choice of `twostage data audit --next`."""
    return [one.image for one in next_images(seen, count)]


def by_chance(seen: Mapping[int, Evidence], count: int, known: Dataset, seed: int) -> list[int]:
    """Images at random."""
    return generator(seed, len(seen)).permutation(sorted(seen))[:count].tolist()


def by_mean_entropy(seen: Mapping[int, Evidence], count: int, known: Dataset, seed: int) -> list[int]:
    """The images of the largest entropy of class and background in the mean of their candidates."""

    def entropy(one: Evidence) -> float:
        scores = (one.scores + one.mirrored) / 2
        scores = scores[scores.max(axis=1, initial=0.0) >= SEEN]
        every = np.concatenate([scores, 1 - scores.sum(axis=1, keepdims=True)], axis=1).clip(1e-6, 1)
        return float(-(every * np.log(every)).sum(axis=1).mean()) if len(every) else 0.0

    return sorted(seen, key=lambda image: -entropy(seen[image]))[:count]


def by_classes(seen: Mapping[int, Evidence], count: int, known: Dataset, seed: int) -> list[int]:
    """One by one the image that adds most to the sum of the logarithms of the expected objects of each class."""
    left = sorted(seen)
    expected = np.stack([_expected(seen[image]) for image in left])
    have = np.bincount(known.labels, minlength=len(known.names)) + 1.0
    chosen: list[int] = []
    for _ in range(count):
        gains = np.log1p(expected / have).sum(axis=1)
        best = int(np.where(np.isin(left, chosen), -np.inf, gains).argmax())
        chosen.append(left[best])
        have = have + expected[best]
    return chosen


def _expected(one: Evidence) -> Float[np.ndarray, " k"]:
    return ((one.scores + one.mirrored) / 2).sum(axis=0)


CHOICES: dict[str, Choice] = {
    "random": by_chance,
    NEXT: by_next,
    "mean entropy": by_mean_entropy,
    "class balance": by_classes,
}


def look_at(detector: Detector, data: Dataset, images: np.ndarray) -> dict[int, Evidence]:
    """The evidence about images without their labels."""
    runner = require_stages(detector.runner)
    none = LabelBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    return {image: evidence(runner, data.image(image), none) for image in images.tolist()}


def scored(data: Dataset, test: Dataset, seed: int, minutes: float, out: Path) -> dict:
    """Train the default model on the images, and score it on the others."""
    shutil.rmtree(out, ignore_errors=True)  # of a training that was stopped
    done = train(data, size=SIZE, minutes=minutes, seed=seed, workers=0, out=out, quiet=True)
    metrics = evaluate(test, Detector.load(RunFolder(out).last).detect_dataset(test)).metrics
    return {"images": len(data), "objects": len(data.labels), "steps": done["steps"], **metrics}


def table(rows: list[dict]) -> str:
    """AP by choice, seed by seed, the mean with its spread, and the mean difference to images at random."""
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    of = {(row["who"], row["seed"]): row for row in rows}
    lines = []
    for who in dict.fromkeys(row["who"] for row in rows):
        some = [of[who, seed] for seed in seeds if (who, seed) in of]
        pairs = [(row["AP"], of["random", row["seed"]]["AP"]) for row in some if ("random", row["seed"]) in of]
        beyond = spread([own - other for own, other in pairs]) if pairs and who != "random" else ""
        objects, steps = (round(statistics.mean(row[name] for row in some)) for name in ("objects", "steps"))
        cells = [f"{row['AP']:.3f}" for row in some] + [""] * (len(seeds) - len(some))
        lines.append([who, some[0]["images"], objects, steps, *cells, spread([row["AP"] for row in some]), beyond])
    header = ["chosen by", "images", "objects", "steps", *(f"AP, seed {seed}" for seed in seeds), "mean AP"]
    return markdown([*header, "beyond random"], lines)


def main() -> None:
    """Seed by seed; the table is written after every training, and goes on from what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=2.0, help="of each training")
    parser.add_argument("--processor-time", action="store_true", help="count the minutes that the process computes")
    parser.add_argument("--work", type=Path, required=True, help="folder for the detectors that choose, kept")
    parser.add_argument("--out", type=Path, help="folder of audit.md, and next_images.json: it is not run again")
    given = parser.parse_args()
    if given.processor_time:
        time.perf_counter = time.process_time
    folder = folder_of(DATA, given.work)
    every, test = (open_dataset(folder, split=split) for split in ("train", "val"))
    rows = read_rows(given.out, "next_images")
    for seed, who in product(given.seeds, (NONE, *CHOICES)):
        if any((row["seed"], row["who"]) == (seed, who) for row in rows):
            continue
        known = few(every, str(FIRST), seed)
        names = {known.file_name(image) for image in range(len(known))}
        first = [image for image in range(len(every)) if every.file_name(image) in names]
        more: list[int] = []
        if who != NONE:
            before = Detector.load(RunFolder(given.work / f"s{seed}-{NONE}").last)
            more = CHOICES[who](look_at(before, every, np.setdiff1d(np.arange(len(every)), first)), MORE, known, seed)
        both = select_images(every, np.sort([*first, *more]))
        out = given.work / f"s{seed}-{who.replace(' ', '-')}"
        rows.append({"seed": seed, "who": who, **scored(both, test, seed, given.minutes, out)})
        print(json.dumps(rows[-1]), flush=True)
        if given.out:
            keep_rows(given.out, "next_images", rows)
            write_section(given.out / "audit.md", TITLE, HEADING, about(every, test, given), table(rows))
    print(table(rows))


def about(every: Dataset, test: Dataset, given: argparse.Namespace) -> str:
    """What was done, for the page of results."""
    clock = "of processor time" if given.processor_time else "of wall time"
    return (
        f"`python benchmarks/next_images.py`: of the {len(every)} images of {every.split} of blood-cells {FIRST} are "
        f"drawn by the seed, and the detector that learned them chooses {MORE} more from the rest. Then the default "
        f"model at {SIZE} px learns both together, {given.minutes:g} minutes {clock} on one thread each time, and is "
        f"scored on {test.split}, {len(test)} images. Mean entropy: the images of the largest entropy of class and "
        "background, in the mean of an image's candidates. Class balance: one by one the image that adds most to the "
        "sum of the logarithms of the expected objects of each class. Means are followed by smallest and largest; "
        "objects are the labels of all images."
    )


if __name__ == "__main__":
    main()
