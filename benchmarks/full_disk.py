"""A disk that is full and folders that cannot be written: is anything lost?

    python benchmarks/full_disk.py --out benchmarks/results/full_disk.md

The system refuses every file beyond a limit of bytes, as a full disk or a quota does, or what the run writes to is a
place where nobody, not even root, may write. A training is begun or resumed under each of these, must end with a
message that names the file and no traceback, and must leave a state from which it ends, the obstacle removed, as a run
that met none: the same losses and weights to the last bit.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml
from _timing import finish, hardware, table
from kill_and_resume import OPTIONS, ending

from twostage.data.scenes import write_scenes

LIMITS = (100, 1000, 3000, 10_000, 30_000, 100_000, 1_000_000, 4_000_000, 8_000_000, 16_000_000)


def main() -> int:
    """All cases, and the table; 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        data = write_scenes(root / "scenes", train=16, val=8, seed=0)
        told = root / "told.yaml"
        told.write_text(yaml.safe_dump({**OPTIONS, "data": str(data), "workers": 0}))
        require(train("--config", told, "--out", root / "whole"))
        expected = ending(root / "whole")
        for limit in LIMITS:
            name = f"files end at {limit} bytes"
            rows.append((name, "begun", *verdict(root, told, expected, within(limit), resumed=False)))
            rows.append((name, "resumed", *verdict(root, told, expected, within(limit), resumed=True)))
        for name in ("weights", "metrics.csv", "predictions"):
            found = verdict(root, told, expected, name, resumed=True)
            rows.append((f"{name} cannot be written", "resumed", *found))
    lost = [row for row in rows if row[-1] != "equal"]
    text = "\n\n".join(
        [
            "# A full disk",
            f"`python benchmarks/full_disk.py`: {len(rows)} cases, {len(lost)} in which something was lost or a "
            "message did not name the file.",
            hardware(),
            table(("obstacle", "run", "exit code", "message", "end without the obstacle"), rows),
        ]
    )
    finish(text, given.out)
    return 1 if lost else 0


def verdict(
    root: Path, told: Path, expected: object, obstacle: Callable[[], None] | str, *, resumed: bool
) -> tuple[int, str, str]:
    """Exit code and message under the obstacle, and how the run ends without it."""
    folder = Path(tempfile.mkdtemp(dir=root)) / "run"
    if resumed:
        require(stopped_early(told, folder))
    words = ("--resume", folder) if resumed else ("--config", told, "--out", folder)
    if callable(obstacle):
        found = train(*words, before=obstacle)
    else:
        place, aside = folder / obstacle, folder.with_name("aside")
        if place.exists():
            place.rename(aside)
        place.symlink_to("/proc")
        found = train(*words)
        place.unlink()
        if aside.exists():
            aside.rename(place)
    message = found.stderr.decode().strip().splitlines()[-1] if found.stderr.strip() else ""
    state = folder / "state" / "state.safetensors"
    if not state.exists():
        folder = folder.with_name("again")
    require(train(*(("--resume", folder) if state.exists() else ("--config", told, "--out", folder))))
    clean = "Traceback" not in found.stderr.decode() and (found.returncode == 0 or str(folder.parent) in message)
    end = "equal" if clean and ending(folder) == expected else "LOST"
    return found.returncode, message.replace(str(folder.parent), "").removeprefix("twostage: ")[:120], end


def within(limit: int) -> Callable[[], None]:
    """To be called in the child: no file grows beyond so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def stopped_early(told: Path, folder: Path) -> "subprocess.CompletedProcess[bytes]":
    """A run whose state is that of its second epoch."""
    code = (
        "import sys; from twostage.training import run\n"
        "after, rows = run._end_epoch, []\n"
        "def end(one):\n"
        "    after(one); rows.append(1)\n"
        "    if len(rows) == 2: one.session.stop.set()\n"
        "run._end_epoch = end\n"
        "from twostage.cli import main\n"
        "sys.exit(main(sys.argv[1:]) != 130)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "train", "--config", str(told), "--out", str(folder), "--quiet"],
        capture_output=True,
        check=False,
    )


def train(*arguments: object, before: Callable[[], None] | None = None) -> "subprocess.CompletedProcess[bytes]":
    """A training in a process of its own."""
    command = [sys.executable, "-m", "twostage", "train", *map(str, arguments), "--quiet"]
    return subprocess.run(command, capture_output=True, check=False, preexec_fn=before)


def require(process: "subprocess.CompletedProcess[bytes]") -> None:
    """Raises RuntimeError with the messages of a process that failed."""
    if process.returncode:
        raise RuntimeError(process.stderr.decode())


if __name__ == "__main__":
    sys.exit(main())
