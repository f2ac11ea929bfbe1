"""Speed and memory of two versions of twostage, side by side: what a change of the inside costs.

    git worktree add /tmp/before COMMIT
    python benchmarks/compare_versions.py /tmp/before/src --out benchmarks/results/compare_versions.md

Each case runs in a process per version; the two take turns, and the processes are made anew several times, since two
processes of the same code differ by some percent. The random weights and inputs are equal. Memory is the most that a
process has held (VmHWM), so it needs Linux.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SAMPLE = 0.3  # seconds of calls per turn
SETTLE = 0.6  # seconds of calls before: in the other's turn a process has a busy neighbour, to which ours adapts
CASES = {
    "predict faster_rcnn_resnet50_fpn 480": "prediction",
    "predict faster_rcnn_resnet50_fpn 480 bf16": "prediction",
    "predict faster_rcnn_tiny_fpn 320": "prediction",
    "predict faster_rcnn_tiny_fpn 320 bf16": "prediction",
    "predict mask_rcnn_tiny_fpn 320": "prediction",
    "train faster_rcnn_tiny_fpn 192": "training_step",
    "train cascade_rcnn_tiny_fpn 192": "training_step",
}


def main() -> None:
    """Run all cases and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the folder `src` of the version to compare with")
    parser.add_argument("--turns", type=int, default=9, help="of each process")
    parser.add_argument("--processes", type=int, default=5, help="of each case and version")
    parser.add_argument("--cases", default="", help="only those whose name contains this")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    from _timing import finish, hardware, table

    trees = (given.before.resolve(), Path(__file__).resolve().parents[1] / "src")
    rows = [row(case, trees, given.processes, given.turns) for case in CASES if given.cases in case]
    header = ["case", "before, ms", "now, ms", "now / before", "before, MiB", "now, MiB", "now / before"]
    commit = subprocess.run(
        ["git", "-C", given.before, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    options = f"--turns {given.turns} --processes {given.processes}"
    command = f"`python benchmarks/compare_versions.py BEFORE {options}`, BEFORE being {commit}."
    notes = "Times are medians over the processes, ratios the median (lowest to highest) over pairs of processes."
    finish("\n\n".join(["# Two versions", command, hardware(), notes, table(header, rows)]), given.out)


def row(case: str, trees: tuple[Path, Path], processes: int, turns: int) -> list[str]:
    """The row of a case."""
    times: list[tuple[float, float]] = []
    peaks: list[tuple[float, float]] = []
    for _ in range(processes):
        pair = [Worker(tree, case) for tree in trees]
        samples: list[list[float]] = [[], []]
        for turn in range(turns):
            for one in (0, 1) if turn % 2 else (1, 0):
                samples[one].append(pair[one].ask("time"))
        times.append((statistics.median(samples[0]), statistics.median(samples[1])))
        peaks.append((pair[0].ask("memory"), pair[1].ask("memory")))
        for worker in pair:
            worker.close()
    ratios = [now / before for before, now in times]
    before, now = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    low, high = (statistics.median(column) for column in zip(*peaks, strict=True))
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    return [case, f"{before:.1f}", f"{now:.1f}", spread, f"{low:.0f}", f"{high:.0f}", f"{high / low:.3f}"]


class Worker:
    """A process that imports one version and answers a word with a number."""

    def __init__(self, tree: Path, case: str) -> None:
        command = [sys.executable, __file__, "--serve", str(tree), case]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, word: str) -> float:
        """Raises RuntimeError where the process has ended; its traceback is above."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended: {' '.join(map(str, self.process.args))}")  # type: ignore[arg-type]
        return float(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(tree: str, case: str) -> None:
    """Answer `time` with seconds per call, `memory` with the most MiB so far."""
    sys.path.insert(0, tree)
    import twostage

    assert Path(twostage.__file__).is_relative_to(tree), f"{twostage.__file__} is not the version asked for"
    _, model, size, *precision = case.split()
    call = {"prediction": prediction, "training_step": training_step}[CASES[case]](model, int(size), *precision)
    for _ in range(3):
        call()
    for line in sys.stdin:
        if line.strip() == "memory":
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            print(int(status.split("VmHWM:")[1].split()[0]) / 1024, flush=True)
            continue
        _for(SETTLE, call)
        print(_for(SAMPLE, call), flush=True)


def _for(seconds: float, call: Callable[[], object]) -> float:
    """The mean seconds of calls, so many seconds long."""
    begin, calls = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        call()
        calls += 1
    return (time.perf_counter() - begin) / calls


def prediction(model: str, size: int, precision: str = "fp32") -> Callable[[], object]:
    """One prediction of an image of coloured squares, 3 by 4."""
    import numpy as np
    import torch

    from twostage import Detector

    torch.manual_seed(0)
    classes = [str(k) for k in range(80 if "resnet50" in model else 5)]
    detector = Detector.build(model, classes, device="cpu", precision=precision, size=size, max_size=2 * size)
    squares = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    image = np.kron(squares, np.ones((size // 12, size // 12, 1), dtype=np.uint8))
    return lambda: detector.predict(image, conf=0.05)


def training_step(model: str, size: int) -> Callable[[], object]:
    """Forward, backward and SGD on eight images with six objects each."""
    import torch

    from twostage import Detector
    from twostage.data.batch import stack_images, stack_targets

    torch.manual_seed(0)
    net = Detector.build(model, list("abcde"), device="cpu", size=size).model.train()
    batch = stack_images(list(torch.rand(8, 3, size, size)))
    corner = 0.6 * size * torch.rand(8, 6, 2)
    boxes = torch.cat([corner, corner + (0.1 + 0.3 * torch.rand(8, 6, 2)) * size], dim=2)
    targets = stack_targets(list(boxes), list(torch.randint(0, 5, (8, 6))), list(range(8)))
    optimizer = torch.optim.SGD(net.parameters(), 1e-5, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(net(batch, targets).values()).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    serve(*sys.argv[2:]) if sys.argv[1:2] == ["--serve"] else main()
