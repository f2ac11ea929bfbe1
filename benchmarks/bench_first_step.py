"""How long `twostage train DATA` takes from its start to the end of its first step, without a network.

    python benchmarks/bench_first_step.py --out benchmarks/results/first_step.md

A process of its own with the default model, and connections refused. The first one on a machine, with an empty cache
folder, converts the package's weights and chooses the forms of layers; later ones do not.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from _timing import arguments, finish, hardware, table

DATA = ("blood-cells", "nuclei")
MOST = 15  # seconds
PROCESS = """
import os, socket, sys
from twostage.cli import main
from twostage.training import step

def refused(*arguments):
    raise OSError("no network")

socket.socket.connect = socket.create_connection = refused
train_step = step.train_step

def once(*arguments):
    train_step(*arguments)
    os._exit(0)

step.train_step = once
sys.exit(main(sys.argv[1:]) or 1)
"""


def seconds_to_first_step(data: Path, home: Path, out: Path) -> float:
    """Wall time of the process. Raises CalledProcessError, with its messages, where it ends before the step."""
    words = [sys.executable, "-c", PROCESS, "train", str(data), "--val-split", "none", "--out", str(out), "--quiet"]
    begun = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "TWOSTAGE_HOME": str(home)})
    return time.perf_counter() - begun


def main() -> None:
    """Time, print and write the table."""
    given = arguments(__doc__)
    rows = []
    for name in DATA:
        data = Path(os.environ["TWOSTAGE_DATA"]) / "data" / name
        times: dict[str, list[float]] = {"first": [], "later": []}
        for _ in range(given.repeats):
            with tempfile.TemporaryDirectory() as scratch:
                home = Path(scratch) / "home"
                for which in times:
                    times[which].append(seconds_to_first_step(data, home, Path(scratch) / which))
        rows.append([name, *(f"{median(t):.1f} ({min(t):.1f} to {max(t):.1f})" for t in times.values())])
    text = "\n\n".join(
        [
            "# From `twostage train DATA` to the end of the first step",
            "`python benchmarks/bench_first_step.py`: the default model, not validated, without network, files in the "
            f"system's cache; seconds, the median of {given.repeats} (smallest to largest). Asked: at most {MOST}.",
            hardware(),
            table(["data", "the first on a machine", "later ones"], rows),
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
