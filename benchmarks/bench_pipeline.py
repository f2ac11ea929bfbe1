"""How long a training waits for its images: the share of each step before the model may begin.

    python benchmarks/bench_pipeline.py --out benchmarks/results/pipeline.md

Files are read, decoded, augmented and stacked as `twostage train` does it, between the steps and by workers beside
them; the tiny net at 320 pixels, batch 8, is the quickest consumer there is. Beside it how many images a second the
input gives when nothing consumes them. Where the model computes on the same two cores, a worker takes from a step what
it saves: the whole step counts, not the waiting alone.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from _pictures import photo_data, small_data, whence
from _timing import finish, hardware, table

from twostage.data.augment import Augment
from twostage.data.dataset import Dataset
from twostage.data.loader import Loaded, training_batches
from twostage.data.resize import Resize
from twostage.data.workers import default_workers
from twostage.models.build import build
from twostage.models.two_stage import PARTS
from twostage.models.zoo import named
from twostage.training.optimiser import train_mode

BATCH = 8


def stream(data: Dataset, workers: int) -> Iterator[Loaded]:
    """Batches as a training gets them."""
    augment = Augment(flip=0.5, scale=(0.75, 1.33))
    return training_batches(
        data, resize=Resize(size=320, max_size=640), augment=augment, batch=BATCH, seed=0, workers=workers
    )


def waiting(data: Dataset, workers: int, precision: torch.dtype, steps: int) -> tuple[float, float]:
    """Milliseconds that a step waits, and that it takes in all."""
    torch.manual_seed(0)
    model = build(named("faster_rcnn_tiny_fpn"), len(data.names)).to(memory_format=torch.channels_last)
    train_mode(model, PARTS, 0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    batches = stream(data, workers)
    waited, begun = 0.0, 0.0
    for turn in range(steps + 5):
        if turn == 5:  # workers have started, memory is there
            waited, begun = 0.0, time.perf_counter()
        start = time.perf_counter()
        loaded = next(batches)
        waited += time.perf_counter() - start
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            losses = model(loaded.batch, loaded.targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    return 1e3 * waited / steps, 1e3 * (time.perf_counter() - begun) / steps


def alone(data: Dataset, workers: int, steps: int) -> float:
    """Images a second without a model."""
    batches = stream(data, workers)
    next(batches)
    begun = time.perf_counter()
    for _ in islice(batches, steps):
        pass
    return BATCH * steps / (time.perf_counter() - begun)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    default = default_workers(on_cpu=True)
    rows = []
    for name, data in (("small pictures", small_data()), ("photos", photo_data())):
        for workers in sorted({0, 1, default}):
            wait, step = waiting(data, workers, torch.bfloat16, given.steps)
            free = alone(data, workers, given.steps)
            said = f"{workers}{' (default)' if workers == default else ''}"
            rows.append([name, said, f"{step:.0f}", f"{wait:.1f}", f"{wait / step:.1%}", f"{free:.0f}"])
    header = ["pictures", "workers", "step, ms", "of it waiting, ms", "share", "images a second, alone"]
    text = "\n\n".join(
        [
            "# How long a training waits for its images",
            f"`python benchmarks/bench_pipeline.py`: faster_rcnn_tiny_fpn in bf16 at 320 px, batch {BATCH}. {whence()}",
            hardware(),
            table(header, rows),
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
