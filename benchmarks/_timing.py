"""Timing that two libraries can be compared by: interleaved in one process, so that both meet the same machine.

from _timing import arguments, compare, finish, hardware, table
"""

import argparse
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from twostage.environment import cpu_flags
from twostage.inference.timing import Times
from twostage.inference.timing import interleaved as compare
from twostage.ops.cpu.choice import LIMITS

__all__ = ["Times", "arguments", "compare", "finish", "hardware", "limited", "table", "versus"]


def arguments(description: str) -> argparse.Namespace:
    """`--out FILE`, `--repeats N`, `--threads N`; the number of threads is set."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="default: torch's own choice")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    return chosen


def hardware() -> str:
    """One line: date, processor, threads, versions."""
    import torchvision

    return (
        f"{date.today().isoformat()}, {_processor()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
        f"{' '.join(cpu_flags())}{_limit()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"Python {platform.python_version()}"
    )


def limited() -> list[str]:
    """The variables that limit the process to fewer instructions than the processor has, with their values."""
    return [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]


def _limit() -> str:
    given = limited()
    return f", **limited by {' '.join(given)}**" if given else ""


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def versus(name: str, ours: Times, theirs: Times) -> list[str]:
    """A row: name, ours, theirs, and how many times faster ours is by the median and by the minimum."""
    return [name, str(ours), str(theirs), f"{theirs.median / ours.median:.2f} ({theirs.minimum / ours.minimum:.2f})"]


def finish(text: str, out: Path | None) -> None:
    """Print the report and, if asked, write it, beside the file first."""
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_suffix(out.suffix + ".part")
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(out)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
