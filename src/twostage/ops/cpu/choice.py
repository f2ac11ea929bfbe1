"""The fastest of several forms of a layer, found by trying each on this machine once.

A layout that is fast on one CPU is slow on another, and it depends on the shape: no table of thresholds is right. A
decision holds for all layers of equal geometry and maps of about the same size, in this process and, by a file in the
cache folder, in later ones: two runs on one machine compute the same. The file is of one CPU, its instruction set, the
number of threads and the version of torch.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from twostage.atomic import write_json
from twostage.environment import cpu_name
from twostage.errors import TwostageError
from twostage.folders import cache_folder

_ROUNDS = 3  # timed calls of each form; the fastest counts
_DROP = 1.5  # a form that took so many times the fastest one is not called again
_GAIN = 0.95  # of the first form's time; noise does not replace the form that serves without a trial
_AGREE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest output
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")

Call = Callable[[], Tensor]


class Choices:
    """Decisions by layer, kept in a file. A file that is broken or of another machine counts as empty."""

    def __init__(self, path: Path | None, machine: Mapping[str, str]) -> None:
        self.path = path
        self.machine = dict(machine)
        self.made = self._stored()
        self._saved = len(self.made)
        self._lock = Lock()

    def choose(self, layer: str, forms: Mapping[str, Call]) -> str:
        """The name of the fastest form for this layer; the first is the one whose result is right."""
        with self._lock:  # one trial at a time: another would take its processors
            if self.made.get(layer) not in forms:
                self.made[layer] = fastest(forms)
            return self.made[layer]

    def save(self) -> None:
        """Write new decisions; those that another process has stored meanwhile stay. A full or closed folder is no
        error: the next process decides again."""
        if self.path is None or len(self.made) == self._saved:
            return
        with self._lock:
            self.made = {**self.made, **self._stored()}
            self._saved = len(self.made)
            try:
                write_json(self.path, {"machine": self.machine, "choices": self.made})
            except TwostageError:
                return

    def _stored(self) -> dict[str, str]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8")) if self.path else {}
        except (OSError, ValueError):
            return {}
        if not isinstance(content, dict) or content.get("machine") != self.machine:
            return {}
        choices = content.get("choices")
        if not isinstance(choices, dict) or not all(isinstance(name, str) for name in choices.values()):
            return {}
        return choices


def choices() -> Choices:
    """The decisions for this machine and the present number of threads."""
    return _choices(torch.get_num_threads(), cache_folder("forms"))


@cache
def _choices(threads: int, folder: Path) -> Choices:
    machine = {
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "limits": " ".join(os.environ.get(name, "") for name in _LIMITS).strip(),
        "threads": str(threads),
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    return Choices(folder / f"{digest}.json", machine)


def fastest(forms: Mapping[str, Call]) -> str:
    """The name of the form that takes the least time and whose result agrees with that of the first one."""
    names = iter(forms)
    first = next(names)
    expected = forms[first]()
    scale = float(expected.abs().max())
    agree = [name for name in names if _agrees(forms[name], expected, scale)]
    times = dict.fromkeys([first, *agree], float("inf"))
    for _ in range(_ROUNDS):
        best = min(times.values())
        for name, taken in times.items():
            if taken <= _DROP * best:
                times[name] = min(taken, _seconds(forms[name]))
    name = min(times, key=times.__getitem__)
    return name if times[name] < _GAIN * times[first] else first


def _agrees(call: Call, expected: Tensor, scale: float) -> bool:
    try:
        result = call()
    except RuntimeError:  # the form does not serve on this machine
        return False
    error = float((result - expected).abs().max()) if result.shape == expected.shape else float("inf")
    return error <= _AGREE[expected.dtype] * scale


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bucket(sizes: Iterable[int]) -> str:
    """Sizes as a decision distinguishes them: small ones exactly, others by their power of two."""
    return "x".join(str(size) if size < 16 else f"{1 << (size.bit_length() - 1)}+" for size in sizes)
