"""A pretrained small network beside a smaller one from nothing, and beside torchvision's detector around the former.

    python benchmarks/few_images.py blood-cells nuclei nuclei-masks --images all 30 60 --seeds 0 1 2 \\
        --out benchmarks/results
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/few_images.py people --out benchmarks/results   # on one core

All with the same images and the same minutes of training, in turn; none is validated meanwhile. Fewer images are drawn
from the training split by the seed. With --processor-time the minutes are those in which the process computed: on one
thread, what they would be without other work on the machine. Our recipe was chosen on train and val of blood-cells,
as were the trained stages and the rate of torchvision's detector, and the image size on parts of nuclei's train
(`results/tried.md`). Torchvision's has the rest of its own fine-tuning: fixed statistics, mirrored images, and neither
a moving average of the weights nor random scales, which ours has.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from _peer import build_peer, detect_peer, train_peer
from _rows import read_rows, write_rows
from _timing import table as markdown
from train_from_scratch import folder_of

from twostage.data.dataset import Dataset, select_classes, select_images
from twostage.data.recognise import open_dataset
from twostage.data.stratified import stratified_order
from twostage.detector import Detector
from twostage.evaluation.evaluate import evaluate
from twostage.inference.precision import choose_precision
from twostage.models.configure import configure
from twostage.models.zoo import named
from twostage.training import train
from twostage.training.folder import read_options
from twostage.training.image_size import with_image_size
from twostage.training.options import TrainOptions
from twostage.training.start import with_default_weights

FEW = 15  # minutes with few images


@dataclass(frozen=True)
class Task:
    """What is learned, for how many minutes with all images, and what it is scored on.

    `size` is that of the images of the network from nothing; the others have the one that `twostage train` chooses.
    Without a split to be scored on (`test`), every third image is taken from those to be learned, by the seed. With
    `names` only these classes are learned.
    """

    data: str
    size: int
    minutes: float
    train: str
    test: str | None
    family: str = "faster_rcnn"
    names: tuple[str, ...] = ()


TASKS = {
    "blood-cells": Task("blood-cells", 320, 8, "trainval", "test"),
    "nuclei": Task("nuclei", 256, 6, "train", "val"),
    "nuclei-masks": Task("nuclei", 256, 6, "train", "val", "mask_rcnn"),
    "people": Task("coco-photos", 320, 15, "instances", None, names=("person",)),
}
PEER_STAGES, PEER_PEAK, PEER_BATCH = 3, 1e-3, 4
TITLE = "From a pretrained network, with many and with few images"
ABOUT = (
    "`python benchmarks/few_images.py`: mean AP of the seeds (smallest to largest), after the same minutes of "
    "training. people: the persons in COCO's photographs, of which two thirds are learned and the others scored. "
    "nuclei-masks: Mask R-CNN. size: pixels of the shorter side. Those of one thread ran two at a time, one on each "
    "core, and at times beside other work: compare their steps. Minutes of processor time were counted by "
    "`--processor-time`."
)
PEERS = "torchvision, the same lite0"
LITE = "lite0, pretrained"
NETS = {LITE: "lite0_fpn", "tiny, from nothing": "tiny_fpn"}


def few(dataset: Dataset, images: str, seed: int) -> Dataset:
    """So many images, with about the same classes for every seed."""
    if images == "all":
        return dataset
    order = stratified_order(dataset, seed)
    if int(images) > len(order):
        raise SystemExit(f"{dataset.root}: {images} images are asked for, and there are {len(order)} to learn from.")
    places = np.linspace(0, len(order), int(images), endpoint=False).astype(int)
    return select_images(dataset, np.sort(order[places]))


def train_ours(what: dict, who: str, scratch: Path) -> dict:
    """The row of a network of ours."""
    task, learn, test = _data(what, scratch)
    out = scratch / "run"
    started = time.perf_counter()
    model = f"{task.family}_{NETS[who]}"
    minutes, seed = what["minutes"], what["seed"]
    done = train(learn, model=model, size=what["size"], minutes=minutes, seed=seed, out=out, quiet=True)
    spent = time.perf_counter() - started
    scores = evaluate(test, Detector.load(done["weights"]).detect_dataset(test)).metrics
    batch, precision = (getattr(read_options(out), field) for field in ("batch", "precision"))
    how = {"batch": batch, "precision": precision, "steps": done["steps"], "seconds": round(spent)}
    return {**what, "who": who, **how, **scores}


def train_torchvisions(what: dict, who: str, scratch: Path) -> dict:
    """The row of torchvision's detector."""
    task, learn, test = _data(what, scratch)
    image = configure(named(f"{task.family}_{NETS[LITE]}"), {"size": what["size"]}).image
    masks, seed, precision = task.family == "mask_rcnn", what["seed"], choose_precision(torch.device("cpu"), "auto")
    peer = build_peer(len(test.names), image.size, seed, masks=masks, pretrained=PEER_STAGES)
    started = time.perf_counter()
    steps = train_peer(
        peer,
        learn,
        image.resizing,
        minutes=what["minutes"],
        batch=PEER_BATCH,
        seed=seed,
        precision=precision,
        peak=PEER_PEAK,
    )
    spent = time.perf_counter() - started
    scores = evaluate(test, detect_peer(peer, test, image.resizing)).metrics
    how = {"batch": PEER_BATCH, "precision": precision, "steps": steps, "seconds": round(spent)}
    return {**what, "who": who, **how, **scores}


def size_of(what: dict, who: str) -> int:
    """The size of the images that a detector learns from; torchvision's has ours."""
    with tempfile.TemporaryDirectory() as scratch:
        task, learn, _ = _data(what, Path(scratch))
        if who not in (LITE, PEERS):
            return task.size
        options = TrainOptions(learn.root, model=f"{task.family}_{NETS[LITE]}")
        return with_image_size(with_default_weights(options), learn).size


def _data(what: dict, scratch: Path) -> tuple[Task, Dataset, Dataset]:
    """What is learned and what it is scored on."""
    task = TASKS[what["task"]]
    folder = folder_of(task.data, scratch)
    learn = open_dataset(folder, split=task.train)
    if task.names:
        learn = select_classes(learn, task.names)
    if task.test is None:
        order = stratified_order(learn, what["seed"])
        learn, test = (select_images(learn, np.sort(some)) for some in (np.delete(order, np.s_[::3]), order[::3]))
    else:
        test = open_dataset(folder, split=task.test)
    return task, few(learn, what["images"], what["seed"]), test


def table(rows: list[dict]) -> str:
    """Mean AP of the seeds (smallest to largest), of boxes and masks."""
    lines = []
    for setting in dict.fromkeys(_setting(row) for row in rows):
        own = [row for row in rows if _setting(row) == setting]
        task, images, minutes, threads, clock = setting
        spent = f"{minutes:g} of {threads} thread{'s' * (threads > 1)}{clock}"
        for who, as_tiny in sorted({(row["who"], row["size"] == TASKS[task].size) for row in own}):
            some = [row for row in own if (row["who"], row["size"] == TASKS[task].size) == (who, as_tiny)]
            sizes, batches = (" or ".join(map(str, sorted({row[f] for row in some}))) for f in ("size", "batch"))
            steps = round(statistics.mean(row["steps"] for row in some))
            cells = [spread([row[m] for row in some]) if m in some[0] else "" for m in ("AP", "AP50", "segm_AP")]
            lines.append([task, images, spent, who, sizes, f"{steps} of {batches}", *cells, str(len(some))])
    heads = ["task", "images", "minutes", "detector", "size", "steps", "AP", "AP50", "mask AP", "seeds"]
    return markdown(heads, lines)


def _setting(row: dict) -> tuple[str, str, float, int, str]:
    return row["task"], row["images"], row["minutes"], row["threads"], row.get("clock", "")


def spread(values: list[float]) -> str:
    """The mean (smallest to largest)."""
    around = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{around}"


def main() -> None:
    """Seed by seed; the table is written after every training, and goes on from what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--images", nargs="+", default=["all"], help="numbers of training images, or all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, help=f"instead of the task's own, or {FEW} with few images")
    parser.add_argument("--no-peer", action="store_true", help="ours only")
    parser.add_argument("--processor-time", action="store_true", help="count the minutes that the process computes")
    parser.add_argument("--out", type=Path, help="folder for few_images.md and .json; what it has is not run again")
    given = parser.parse_args()
    if given.processor_time:
        time.perf_counter = time.process_time
    rows = read_rows(given.out, "few_images")
    detectors = {**dict.fromkeys(NETS, train_ours), **({} if given.no_peer else {PEERS: train_torchvisions})}
    for seed, name, images, who in product(given.seeds, given.tasks, given.images, detectors):
        minutes = given.minutes or (TASKS[name].minutes if images == "all" else FEW)
        what = {"task": name, "images": images, "minutes": minutes, "threads": torch.get_num_threads(), "seed": seed}
        what |= {"clock": ", processor time"} if given.processor_time else {}
        what |= {"size": size_of(what, who)}
        if any(row.items() >= {**what, "who": who}.items() for row in rows):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(detectors[who](what, who, Path(scratch)))
        print(json.dumps(rows[-1]), flush=True)
        if given.out:
            write_rows(given.out, "few_images", rows, TITLE, ABOUT, table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
