"""Beside another busy process: predictions and training steps of ours and of torchvision, alone and beside it.

    python benchmarks/bench_beside.py --out benchmarks/results/beside.md

Run without OMP_WAIT_POLICY and GOMP_SPINCOUNT, as programs are that import a library. Each case runs in a process of
its own, alone, beside a loop of Python, and alone again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _pictures import whence
from _timing import compare, finish, hardware, table
from bench_inference import FASTER, SHAPE, found_by, found_by_peer, ours, peer, photos
from bench_training_step import ours as step_of_ours
from bench_training_step import peer_tiny, tiny_batches

from twostage.ops.cpu.threads import adapt_to_load

PREDICTION, STEP = "prediction, ResNet-50 FPN, 800 x 1066, float32", "training step, tiny, 192 px, batch 8, float32"
TWOSTAGE, TORCHVISION = "twostage", "torchvision"


def call_of(case: str, who: str) -> Callable[[], object]:
    """The call that is timed."""
    if case == STEP:
        batches = tiny_batches(Path(tempfile.mkdtemp()))
        if who == TORCHVISION:
            return peer_tiny(batches)
        step = step_of_ours("faster_rcnn_tiny_fpn", 5, batches, frozen=0)
        return lambda: (adapt_to_load(), step())  # as `training.step` does
    images = photos(SHAPE, 1)
    theirs = peer(FASTER, images)
    if who == TORCHVISION:
        return lambda: found_by_peer(theirs, images)
    detector = ours(FASTER, theirs)
    return lambda: found_by(detector.prepared, images)


def times(case: str, who: str, repeats: int) -> list[float]:
    """Milliseconds alone, beside a busy process, and alone again."""
    call = call_of(case, who)
    medians = []
    for busy in (False, True, False):
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        time.sleep(0.5)
        medians.append(compare({who: call}, repeats=repeats)[who].median)
        if other is not None:
            other.kill()
            other.wait()
    return medians


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(times(*given.one, given.repeats)))
        return
    if set_by_hand := {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        sys.exit(f"{', '.join(set_by_hand)} is set: leave it out, it decides how threads wait")
    rows = []
    for case in (PREDICTION, STEP):
        for who in (TWOSTAGE, TORCHVISION):
            words = [sys.executable, __file__, "--repeats", str(given.repeats), "--one", case, who]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            alone, beside, again = json.loads(done.stdout.splitlines()[-1])
            rows.append([case, who, f"{alone:.0f}", f"{beside:.0f}", f"{again:.0f}", f"{beside / alone:.1f}"])
    header = ["case", "who", "alone", "beside a busy process", "alone again", "times as long"]
    title = "# Beside a busy process, milliseconds: medians"
    finish(
        f"{title}\n\n`python benchmarks/bench_beside.py`. {whence()}\n\n{hardware()}\n\n{table(header, rows)}\n",
        given.out,
    )


if __name__ == "__main__":
    main()
