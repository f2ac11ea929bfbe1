"""torch's threads beside other programs.

They synchronise at the end of every operation, thousands of times in a prediction. In GNU's OpenMP a waiting thread
busy-waits for a millisecond. That is fastest on an idle machine; beside a busy process, which takes the core of the
thread that is waited for, a prediction takes several times as long. OpenMP waits less where it manages more
threads than there are cores: that is brought about here while other programs take cores, and ended when they do not.
"""

import os
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import torch

_EVERY = 0.25  # seconds from one look at the machine's load to the next
_LOST = 0.5  # cores that other programs take from torch's threads: from there on waiting threads sleep
_TEAMS = 32  # idle ones at most
_PATIENCE = 5.0  # seconds until the teams have computed
_STAT = Path("/proc/stat")


class _Cores:
    """The cores that this process may use, and what other programs leave of them."""

    def __init__(self) -> None:
        self.cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        self.threads = torch.get_num_threads()
        # With a waiting policy of the user's own, or another system's OpenMP, nothing is changed.
        free = not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ)
        # OpenMP must manage more threads than there are cores.
        self.teams = (len(self.cores) - self.threads) // max(1, self.threads - 1) + 1
        self.watched = free and self.threads > 1 and self.teams <= _TEAMS
        self._looked = (0.0, 0.0)
        try:
            self._looked = _load(self.cores)
        except (OSError, ValueError, IndexError):  # another system, or a container that hides the load
            self.watched = False
        self._held: threading.Event | None = None
        self._lock = threading.Lock()

    def adapt(self) -> None:
        """Let waiting threads spin or sleep, by the load since the last look at it."""
        if not self.watched or time.monotonic() - self._looked[0] < _EVERY or not self._lock.acquire(blocking=False):
            return
        try:
            if time.monotonic() - self._looked[0] < _EVERY:  # another thread has looked meanwhile
                return
            before, self._looked = self._looked, _load(self.cores)
            others = (self._looked[1] - before[1]) / (self._looked[0] - before[0])
            if others <= len(self.cores) - self.threads + _LOST:
                self.release()
            elif self._held is None:
                self._held = self._hold_teams()
        except (OSError, ValueError, IndexError):  # no more files may be opened: the load stays unknown
            self.watched = False
            self.release()
        finally:
            self._lock.release()

    def release(self) -> None:
        """End the idle teams, if there are some."""
        held, self._held = self._held, None
        if held is not None:
            held.set()

    def _hold_teams(self) -> threading.Event | None:
        """Idle teams of threads, until the event is set."""
        end, ready = threading.Event(), threading.Barrier(self.teams + 1)
        try:
            for _ in range(self.teams):
                threading.Thread(target=_hold_team, args=(ready, end), name="twostage idle team", daemon=True).start()
            ready.wait(_PATIENCE)
        except (RuntimeError, threading.BrokenBarrierError):  # no more threads are allowed, or one has failed
            self.watched = False
            ready.abort()
            end.set()
            return None
        return end


def _hold_team(ready: threading.Barrier, end: threading.Event) -> None:
    """A thread that has computed with OpenMP keeps its team as long as it lives."""
    torch.ones(1 << 20).add_(1)
    with suppress(threading.BrokenBarrierError):
        ready.wait()
        end.wait()


def _load(cores: Collection[int]) -> tuple[float, float]:
    """The time, and the seconds of these cores that other processes have used."""
    lines = [line.split() for line in _STAT.read_text(encoding="ascii").splitlines() if line.startswith("cpu")]
    # In a container that numbers its cores anew, the sum of all.
    mine = [line for line in lines if line[0] in {f"cpu{core}" for core in cores}] or lines[:1]
    ticks = [[int(value) for value in line[1:9]] for line in mine]
    busy = sum(sum(each) - each[3] - each[4] for each in ticks)  # without idle, and without waiting for a disk
    own = os.times()
    return time.monotonic(), busy / os.sysconf("SC_CLK_TCK") - own.user - own.system


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
    for number, cores in list(_known.items()):
        if number != threads:
            cores.release()
    return _known[threads]
