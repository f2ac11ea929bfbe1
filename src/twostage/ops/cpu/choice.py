"""The fastest of several forms of a layer, found by trying each on this machine once.

A layout that is fast on one CPU is slow on another, and it depends on the shape: no table of thresholds is right. A
decision holds for all layers of equal geometry and maps of about the same size, in this process and, by a file in the
cache folder, in later ones: two runs on one machine compute the same. The file is of one CPU, its instruction set, the
number of threads and the version of torch. A decision names the forms it was made among.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor

from twostage import __version__
from twostage.atomic import write_json
from twostage.environment import cpu_flags, cpu_name
from twostage.errors import TwostageError
from twostage.folders import cache_folder

_ROUNDS = 8  # timed calls of each form at most; the fastest counts
_STEADY = 1.1  # the two fastest calls of a form differ by less, or something else runs beside
_DROP = 1.5  # a form that took so many times the fastest one is not called again
_GAIN = 0.9  # of the first form's time; noise does not replace the form that serves without a trial
_AGREE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest output
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
_OLD_LIMIT = "DNNL_MAX_CPU_ISA"  # which oneDNN still reads

Call = Callable[[], Tensor]
# The CPU time of a thread leaves out other programs, which may take its core for longer than a call lasts. Other
# systems count it in steps that are too coarse.
clock = time.thread_time if sys.platform == "linux" else time.perf_counter


class Choices:
    """Decisions by layer, kept in a file. A file that is broken or of another machine counts as empty."""

    def __init__(self, path: Path, machine: Mapping[str, str]) -> None:
        self.path = path
        self.machine = dict(machine)
        self.made = self._stored()
        self._new: dict[str, str] = {}
        self._lock = RLock()

    def choose(
        self, layer: str, names: Collection[str], forms: Callable[[], Mapping[str, Call]], *, lasting: bool = False
    ) -> str:
        """The name of the fastest form for this layer, one of `names`; `forms` makes them for a trial.

        A decision that other work on the machine has disturbed holds for this process only, unless it is `lasting`.
        """
        key = f"{layer}: {', '.join(names)}"
        with self._lock:  # one trial at a time: two would disturb each other
            if self.made.get(key) not in names:
                self.made |= self._stored()  # of a process that was faster
            if self.made.get(key) not in names:
                self.made[key], steady = fastest(forms())
                if steady or lasting:
                    self._new[key] = self.made[key]
            if lasting:
                self.save()
            return self.made[key]

    def save(self) -> None:
        """Write new decisions; those that another process has stored meanwhile stay, and hold here too. A full or
        closed folder is no error: the next process decides again."""
        with self._lock:
            if not self._new:
                return
            made = {**self._new, **self._stored()}
            self._new = {}
            self.made |= made
            with suppress(TwostageError):
                write_json(self.path, {"machine": self.machine, "choices": made})

    def _stored(self) -> dict[str, str]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict) or content.get("machine") != self.machine:
            return {}
        choices = content.get("choices")
        if not isinstance(choices, dict) or not all(isinstance(name, str) for name in choices.values()):
            return {}
        return {key: name for key, name in choices.items() if name in key.rpartition(": ")[2].split(", ")}


def state() -> tuple[int, str]:
    """What a program may change while it runs, and decisions depend on: threads, and torch's matrix products."""
    return torch.get_num_threads(), torch.get_float32_matmul_precision()


def choices() -> Choices:
    """The decisions for this machine in its present `state`."""
    try:
        folder = cache_folder("forms")
    except TwostageError:  # no home folder: nothing is kept
        folder = Path(os.devnull)
    return _choices(*state(), folder)


@cache
def _choices(threads: int, precision: str, folder: Path) -> Choices:
    machine = {
        "twostage": __version__,
        "cpu": f"{cpu_name()} {' '.join(cpu_flags())}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "limits": " ".join(f"{name}={os.environ[name]}" for name in (*LIMITS, _OLD_LIMIT) if name in os.environ),
        "threads": str(threads),
        "matrix products": precision,
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    return Choices(folder / f"{digest}.json", machine)


def fastest(forms: Mapping[str, Call]) -> tuple[str, bool]:
    """The name of the form that takes the least time and whose result agrees with that of the first one.

    And whether the times were steady: each form that counts was as fast twice.
    """
    results: dict[str, Tensor] = {}
    for name, call in forms.items():
        with suppress(RuntimeError):  # the form does not serve on this machine
            results[name] = call()
    if not results:
        return next(iter(forms)), False  # its call for real says why
    first, expected = next(iter(results.items()))
    scale = float(expected.abs().max())
    times: dict[str, list[float]] = {name: [] for name, y in results.items() if _agrees(y, expected, scale)}
    if not times:  # the first is not finite
        return first, False
    racing = set(times)
    for _ in range(_ROUNDS):
        for name in times:
            if name in racing:
                times[name] = sorted([*times[name], _seconds(forms[name])])
        best = min(taken[0] for taken in times.values())
        slow = {name for name, taken in times.items() if taken[0] > _DROP * best}
        racing = {name for name in set(times) - slow if not _is_steady(times[name])}
        if not racing:
            break
    fast = min(times, key=lambda name: times[name][0])
    return (fast if times[fast][0] < _GAIN * times[first][0] else first), not racing


def _is_steady(times: list[float]) -> bool:
    return len(times) > 1 and times[1] < _STEADY * times[0]


def _agrees(result: Tensor, expected: Tensor, scale: float) -> bool:
    error = float((result - expected).abs().max()) if result.shape == expected.shape else float("inf")
    return error <= _AGREE.get(expected.dtype, 1e-6) * scale


def _seconds(call: Call) -> float:
    start = clock()
    call()
    return clock() - start
