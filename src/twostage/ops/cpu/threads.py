"""torch's threads beside other programs.

They meet at the end of every operation, thousands of times in a prediction. GNU's OpenMP lets those that wait spin for
a millisecond. That is fastest on an idle machine; beside a busy process, which takes the core of the thread they wait
for, a prediction takes four to nine times as long. OpenMP spins briefly where it manages more threads than there are
cores: that is brought about here while other programs take cores, and ended when they do not.
"""

import os
import threading
import time
from pathlib import Path

import torch

_EVERY = 0.25  # seconds from one look at the machine's load to the next
_LOST = 0.5  # cores that other programs take from torch's threads: from there on waiting threads sleep
_STAT = Path("/proc/stat")


class _Cores:
    """The cores of the machine, and what other programs leave of them."""

    def __init__(self) -> None:
        self.count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = torch.get_num_threads()
        # With a waiting policy of the user's own, or another system's OpenMP, nothing is changed.
        free = not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ)
        self.watched = free and self.threads > 1
        self._looked = (0.0, 0.0)
        try:
            self._looked = _load()
        except (OSError, ValueError, IndexError):  # another system, or a container that hides the load
            self.watched = False
        self._held: threading.Event | None = None
        self._lock = threading.Lock()

    def adapt(self) -> None:
        """Let waiting threads spin or sleep, by the load since the last look at it."""
        if not self.watched or time.monotonic() - self._looked[0] < _EVERY or not self._lock.acquire(blocking=False):
            return
        try:
            before, self._looked = self._looked, _load()
            others = (self._looked[1] - before[1]) / (self._looked[0] - before[0])
            crowded = others > (os.cpu_count() or 1) - self.threads + _LOST
            if crowded and self._held is None:
                self._held = self._hold_teams()
            elif not crowded and self._held is not None:
                self._held.set()
                self._held = None
        finally:
            self._lock.release()

    def _hold_teams(self) -> threading.Event:
        """Idle teams of threads, until the event is set: enough for more threads than cores."""
        end = threading.Event()
        teams = (self.count - self.threads) // (self.threads - 1) + 1
        ready = threading.Barrier(teams + 1)
        for _ in range(teams):
            threading.Thread(target=_hold_team, args=(ready, end), name="twostage idle team", daemon=True).start()
        ready.wait()
        return end


def _hold_team(ready: threading.Barrier, end: threading.Event) -> None:
    """A thread that has computed with OpenMP keeps its team as long as it lives."""
    torch.ones(1 << 20).add_(1)
    ready.wait()
    end.wait()


def _load() -> tuple[float, float]:
    """The time, and the seconds of all cores that other processes have used."""
    ticks = [int(value) for value in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    own = os.times()
    return time.monotonic(), (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def adapt_to_load() -> None:
    """Let torch's waiting threads sleep while other programs take cores from them, and spin while none do.

    Call it often: it looks at the load a few times a second.
    """
    _cores().adapt()


_known: dict[int, _Cores] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_known.clear)  # the child has none of the teams


def _cores() -> _Cores:
    threads = torch.get_num_threads()
    if threads not in _known:
        _known.setdefault(threads, _Cores())
    return _known[threads]
