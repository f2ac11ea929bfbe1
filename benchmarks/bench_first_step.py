"""How long `twostage train DATA` takes from its start to the end of its first step, without a network.

    python benchmarks/bench_first_step.py --out benchmarks/results/first_step.md

A process of its own with the default model, and connections refused: the first one on a machine, with an empty cache
folder, converts the package's weights and chooses the forms of layers; later ones do not.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _timing import finish, hardware, table

from twostage.training.options import TrainOptions

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
    words = [sys.executable, "-c", PROCESS, "train", str(data), "--val-split", "none", "--out", str(out)]
    begun = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "TWOSTAGE_HOME": str(home)})
    return time.perf_counter() - begun


def main() -> None:
    """Time, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["blood-cells", "nuclei"], help="folders of TWOSTAGE_DATA")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for name in given.data:
        data = Path(os.environ["TWOSTAGE_DATA"]) / "data" / name
        first: list[float] = []
        later: list[float] = []
        for number in range(given.repeats):
            with tempfile.TemporaryDirectory() as scratch:
                home = Path(scratch) / "home"
                for which, times in (("first", first), ("later", later)):
                    times.append(seconds_to_first_step(data, home, Path(scratch) / f"{which}-{number}"))
        rows.append([name, *(f"{sorted(t)[len(t) // 2]:.1f} ({min(t):.1f} to {max(t):.1f})" for t in (first, later))])
    text = "\n\n".join(
        [
            "# From `twostage train DATA` to the end of the first step",
            f"`python benchmarks/bench_first_step.py`: `{TrainOptions(data).model}` with its "
            f"defaults, without a network, files in the system's cache; seconds, the median of {given.repeats} "
            f"(smallest to largest). Asked: at most {MOST}.",
            hardware(),
            table(["data", "the first on a machine", "later ones"], rows),
        ]
    )
    finish(text, given.out)


if __name__ == "__main__":
    main()
