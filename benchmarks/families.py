"""The family's members on one data set: the same small net, the same budget, and torchvision's Mask R-CNN beside.

    python benchmarks/families.py nuclei --seeds 0 1 2 --minutes 7 --out benchmarks/results
    python benchmarks/families.py nuclei --seeds 0 1 2 --epochs 20 --out benchmarks/results
    python benchmarks/families.py scenes-hard --seeds 0 1 2 --epochs 20 --members hybrid_task_cascade \
        --set semantic_classes=0 --out benchmarks/results

In the same minutes a member pays for what it costs; in the same epochs, as the papers compare, it does not. Each member
is trained from scratch by its recipe's defaults and scored once, on the val split, of which nothing was chosen. The
peer is that of `train_from_scratch.py` with a mask head of our width, fed by our loader, scored by our evaluation, in
our precision. Seed by seed, as many runs side by side as there are cores, each on one of them: two threads do not make
so small a net twice as fast.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from _peer import build_peer, detect_peer, train_peer
from _timing import hardware, table
from train_from_scratch import folder_of

from twostage.data.images import read_image
from twostage.data.recognise import open_dataset
from twostage.detector import Detector
from twostage.evaluation.evaluate import evaluate
from twostage.inference.precision import choose_precision
from twostage.inference.predictor import predict_arrays
from twostage.inference.timing import peak_memory
from twostage.training import TrainOptions, train
from twostage.training.folder import read_options

PEER = "torchvision Mask R-CNN"
MEMBERS = (
    "faster_rcnn",
    "retinanet",
    "mask_rcnn",
    "cascade_rcnn",
    "cascade_mask_rcnn",
    "hybrid_task_cascade",
)
SIZE, BATCH = 256, 4
SHOWN = ("AP", "AP50", "AP75", "AP90", "segm_AP", "segm_AP50", "segm_AP75", "segm_AP90")
CPU = torch.device("cpu")


def run_member(
    member: str, changes: dict[str, Any], data: Path, budget: dict[str, float], seed: int, out: Path
) -> dict[str, Any]:
    """Train, score and time a member, with some fields of its model changed, or another `recipe`."""
    fields = {name: value for name, value in changes.items() if name != "recipe"}
    options = TrainOptions(
        data,
        model=f"{member}_tiny_fpn",
        model_fields=fields,
        recipe=changes.get("recipe"),
        val_split="none",
        size=SIZE,
        seed=seed,
        out=out,
        quiet=True,
        **budget,
    )
    done: dict[str, Any] = {}
    memory = peak_memory(CPU, lambda: done.update(train(options)))
    test = open_dataset(data, split="val")
    detector = Detector.load(done["weights"], device="cpu")
    metrics = evaluate(test, detector.detect_dataset(test)).metrics
    pictures = [read_image(test.path(i)) for i in range(10)]
    taken = []
    for turn in range(4):
        begun = time.perf_counter()
        for picture in pictures:
            predict_arrays(detector.prepared, [picture])
        if turn:
            taken.append((time.perf_counter() - begun) / len(pictures))
    return {
        "precision": read_options(out).precision or "fp32",
        "steps": done["steps"],
        "parameters": sum(p.numel() for p in detector.model.parameters()),
        "milliseconds": 1e3 * statistics.median(taken),
        "training_bytes": memory,
        **metrics,
    }


def run_peer(data: Path, minutes: float, seed: int) -> dict[str, Any]:
    """The same of torchvision's, in the precision that ours chooses for the machine."""
    precision = choose_precision(CPU, "auto")
    learn, test = (open_dataset(data, split=split) for split in ("train", "val"))
    model = build_peer(len(test.names), SIZE, seed, masks=True)
    resize = Detector.build("mask_rcnn_tiny_fpn", test.names, size=SIZE).model.config.image.resizing
    steps: list[int] = []
    memory = peak_memory(
        CPU,
        lambda: steps.append(
            train_peer(model, learn, resize, minutes=minutes, batch=BATCH, seed=seed, precision=precision)
        ),
    )
    metrics = evaluate(test, detect_peer(model, test, resize)).metrics
    tensors = [torch.from_numpy(read_image(test.path(i))).permute(2, 0, 1).float() / 255 for i in range(10)]
    taken = []
    with torch.inference_mode():
        for turn in range(4):
            begun = time.perf_counter()
            for tensor in tensors:
                model([tensor])
            if turn:
                taken.append((time.perf_counter() - begun) / len(tensors))
    return {
        "precision": precision,
        "steps": steps[0],
        "parameters": sum(p.numel() for p in model.parameters()),
        "milliseconds": 1e3 * statistics.median(taken),
        "training_bytes": memory,
        **metrics,
    }


def report(rows: list[dict[str, Any]]) -> str:
    """The mean of each member over its seeds, with the smallest and the largest, and what it takes."""
    lines = []
    for who in dict.fromkeys(row["who"] for row in rows):
        mine = [row for row in rows if row["who"] == who]
        cells = []
        for name in SHOWN:
            values = [100 * row[name] for row in mine if name in row]
            spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        steps = statistics.mean(row["steps"] for row in mine)
        memory = max(row["training_bytes"] or 0 for row in mine) / 2**20
        milliseconds = statistics.median(row["milliseconds"] for row in mine)
        lines.append(
            [
                who,
                len(mine),
                *cells,
                f"{steps:.0f}",
                f"{milliseconds:.1f}",
                f"{memory:.0f}",
                f"{mine[0]['parameters'] / 1e6:.2f}",
            ]
        )
    header = ("member", "seeds", *SHOWN, "steps", "ms an image", "MiB in training", "million parameters")
    return table(header, lines)


def run(who: str, fields: dict[str, Any], data: Path, budget: dict[str, float], seed: int, free: Any) -> dict[str, Any]:
    """One row, on a core that no other run has."""
    core = free.get()
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as scratch:
            if who == PEER:
                found = run_peer(data, budget["minutes"], seed)
            else:
                found = run_member(who, fields, data, budget, seed, Path(scratch))
    finally:
        free.put(core)
    return {"who": named(who, fields), "seed": seed, "budget": budget, "machine": hardware(), **found}


def named(who: str, fields: dict[str, Any]) -> str:
    """What the table calls a run."""
    return ", ".join([who, *(f"{name}={json.dumps(value)}" for name, value in fields.items())])


def field(text: str) -> tuple[str, Any]:
    """`name=value`, the value as JSON has it."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def main() -> None:
    """Write the table after every run, so that an interrupted one leaves what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("nuclei", "scenes-hard"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--members", nargs="+", choices=[*MEMBERS, PEER], default=[*MEMBERS, PEER])
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="of training, on one core")
    budget.add_argument("--epochs", type=int, help="of training; torchvision's is left out")
    parser.add_argument("--set", nargs="+", type=field, default=[], metavar="FIELD=VALUE", help="fields of the members")
    parser.add_argument("--recipe", help="of the members, in place of their own")
    parser.add_argument("--out", type=Path, help="folder for families_<task>.md and .json; rows there are kept")
    given = parser.parse_args()
    kept = given.out / f"families_{given.task}.json" if given.out else None
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept is not None and kept.exists() else []
    spent = {"minutes": given.minutes} if given.minutes else {"epochs": given.epochs}
    fields = {**dict(given.set), **({"recipe": given.recipe} if given.recipe else {})}
    if fields and given.minutes and PEER in given.members:
        parser.error(f"--set and --recipe are for our members: leave {PEER!r} out of --members")
    done = [(row["who"], row["seed"], row["budget"]) for row in rows]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, spawn.Manager() as shared:
        data = folder_of(given.task, Path(scratch))
        free = shared.Queue()
        for core in cores:
            free.put(core)
        # A process a run: what one leaves in memory is not counted as another's.
        with ProcessPoolExecutor(len(cores), mp_context=spawn, max_tasks_per_child=1) as pool:
            running = [
                pool.submit(run, who, fields, data, spent, seed, free)
                for seed in given.seeds
                for who in given.members
                if (named(who, fields), seed, spent) not in done and (who != PEER or given.minutes)
            ]
            failed = []
            for one in as_completed(running):
                if one.exception():
                    failed.append(one.exception())
                    continue
                rows.append(one.result())
                write(rows, given.task, given.out)
    if failed:
        raise SystemExit("\n".join(map(repr, failed)))


def write(rows: list[dict[str, Any]], task: str, out: Path | None) -> None:
    """Print the tables, one a budget, and keep them with their rows in `out`."""
    order = [*MEMBERS, PEER]
    rows = sorted(rows, key=lambda row: (order.index(row["who"].split(",")[0]), row["who"], row["seed"]))
    parts = [f"# The family on {task}"]
    for unit, number in sorted({pair for row in rows for pair in row["budget"].items()}, reverse=True):
        mine = [row for row in rows if row["budget"] == {unit: number}]
        parts += [
            f"## {number:g} {unit} each",
            f"`python benchmarks/families.py {task} --{unit} {number:g} --seeds ... --members ... [--set ...]`",
            *sorted({row["machine"] for row in mine}),
            "Percent, mean (smallest to largest); every run on a core of its own.",
            report(mine),
        ]
    text = "\n\n".join(parts)
    print(text, flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"families_{task}.md").write_text(f"{text}\n")
        (out / f"families_{task}.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
