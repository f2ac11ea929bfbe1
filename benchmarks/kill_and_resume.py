"""Does a killed run end as an unbroken one? SIGKILL at random moments, resumed, compared to the last bit.

    python benchmarks/kill_and_resume.py --kills 100 --out benchmarks/results/kill_and_resume.md

A small training with worker processes, weight averaging, accumulated gradients and bf16 runs once whole. Then it is
begun again and again, each time killed at a moment drawn evenly over its whole duration, start-up and writing included,
resumed until it ends (every third is killed a second time), and its losses and weights are held against the whole one.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from _timing import finish, hardware, table
from safetensors.torch import load_file

from twostage.data.scenes import write_scenes

OPTIONS = {
    "model": "faster_rcnn_tiny_fpn",
    "model_fields": {"rpn_top_train": 200, "rpn_keep_train": 100, "rpn_top_test": 200, "rpn_keep_test": 100},
    "size": 96,
    "batch": 2,
    "accumulate": 2,
    "precision": "bf16",
    "epochs": 6,
    "eval_every": 1,
    "workers": 2,
}


def main() -> int:
    """Kill, resume, compare, report; 1 where an end differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    moments = random.Random(given.seed)
    counts = dict.fromkeys(("before anything was kept", "within training", "after its end", "killed twice"), 0)
    different = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        data = write_scenes(root / "scenes", train=16, val=8, seed=0)
        told = root / "told.yaml"
        told.write_text(yaml.safe_dump({**OPTIONS, "data": str(data)}))
        started = time.monotonic()
        require_success(begin("--config", told, "--out", root / "whole"))
        whole = time.monotonic() - started
        expected = ending(root / "whole")
        for number in range(given.kills):
            folder = root / f"run-{number}"
            process = begin("--config", told, "--out", folder)
            ended = killed_at(process, moments.uniform(0, whole))
            counts["after its end"] += ended
            if (folder / "state" / "state.safetensors").exists():
                if number % 3 == 0 and not ended:
                    counts["killed twice"] += not killed_at(begin("--resume", folder), moments.uniform(0, whole))
                require_success(begin("--resume", folder))
                counts["within training"] += not ended
            else:
                counts["before anything was kept"] += 1
                folder = root / f"run-{number}-again"
                require_success(begin("--config", told, "--out", folder))
            if ending(folder) != expected:
                different.append(folder.name)
            print(f"{number + 1} of {given.kills}: {len(different)} different", file=sys.stderr, flush=True)
    rows = [(what, count) for what, count in counts.items()]
    equal = given.kills - len(different)
    text = "\n\n".join(
        [
            "# Killed and resumed",
            f"`python benchmarks/kill_and_resume.py --kills {given.kills}`: {equal} of {given.kills} runs, killed by "
            f"SIGKILL at random moments of the {whole:.0f} s that a whole one takes (start-up included), ended with "
            "the losses of every epoch and the weights (best and last) of an unbroken run, to the last bit.",
            hardware(),
            table(("killed", "runs"), rows),
        ]
    )
    finish(text, given.out)
    return 1 if different else 0


def begin(*arguments: object) -> "subprocess.Popen[bytes]":
    """A training in a process of its own."""
    command = [sys.executable, "-m", "twostage", "train", *map(str, arguments), "--quiet"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)


def killed_at(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Kill it with all its workers after so long; whether it had ended before."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    return True


def require_success(process: "subprocess.Popen[bytes]") -> None:
    """Raises RuntimeError with the messages of a process that failed."""
    _, messages = process.communicate()
    if process.returncode:
        raise RuntimeError(messages.decode())


def ending(folder: Path) -> tuple[object, ...]:
    """Losses and metrics of every epoch, and the weights, as values to compare."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [tuple((k, v) for k, v in row.items() if k != "seconds") for row in csv.DictReader(file)]
    weights = [
        (file, name, tensor.numpy().tobytes())
        for file in ("best", "last")
        for name, tensor in sorted(load_file(folder / "weights" / f"{file}.safetensors").items())
    ]
    return tuple(rows), tuple(weights)


if __name__ == "__main__":
    sys.exit(main())
