"""Beside another busy process: predictions and training steps of ours and of torchvision, alone and beside it.

    python benchmarks/bench_beside.py --out benchmarks/results/beside.md

Run without OMP_WAIT_POLICY and GOMP_SPINCOUNT, as programs are that import a library. The busy process is a loop of
Python; on two cores it leaves three quarters of the machine to each of the others.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from _pictures import whence
from _timing import arguments, compare, finish, hardware, table
from bench_inference import FASTER, SHAPE, found_by, found_by_peer, ours, peer, photos
from bench_training_step import ours as step_of_ours
from bench_training_step import peer_tiny, tiny_batches


def main() -> None:
    """Print the table."""
    options = arguments(__doc__.splitlines()[0])
    given = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ)
    if given:
        sys.exit(f"{', '.join(given)} is set: leave it out, it decides how threads wait")
    images = photos(SHAPE, 1)
    theirs = peer(FASTER, images)
    detector = ours(FASTER, theirs)
    batches = tiny_batches(Path(tempfile.mkdtemp()))
    cases: dict[str, Mapping[str, Callable[[], object]]] = {
        "prediction, ResNet-50 FPN, 800 x 1066, float32": {
            "twostage": lambda: found_by(detector.prepared, images),
            "torchvision": lambda: found_by_peer(theirs, images),
        },
        "training step, tiny net, 192 px, batch 8, float32": {
            "twostage": step_of_ours("faster_rcnn_tiny_fpn", 5, batches, frozen=0),
            "torchvision": peer_tiny(batches),
        },
    }
    rows = []
    for title, pair in cases.items():
        for name, call in pair.items():
            alone = compare({name: call}, repeats=options.repeats)[name]
            with busy():
                beside = compare({name: call}, repeats=options.repeats)[name]
            rows.append([title, name, str(alone), str(beside), f"{beside.median / alone.median:.1f}"])
    header = ["case", "who", "alone", "beside a busy process", "times as long"]
    title = "# Beside a busy process, milliseconds: median (minimum)"
    finish(
        f"{title}\n\n`python benchmarks/bench_beside.py`. {whence()}\n\n{hardware()}\n\n{table(header, rows)}\n",
        options.out,
    )


@contextmanager
def busy() -> Iterator[None]:
    """Another process computes all the time."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.5)
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
