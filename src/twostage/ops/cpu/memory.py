"""Memory for large results on the CPU, reused for the next one.

The C library maps large blocks anew for each allocation and unmaps them when they are freed. Page faults of fresh pages
cost more than RoIAlign itself and a tenth of a whole prediction, more on virtual machines. Here blocks are cut from
slabs that stay mapped: the smallest gap that fits is taken, and neighbouring gaps are merged.
"""

import ctypes
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LINE = 64  # bytes of a cache line
_SMALL = 1 << 20  # bytes; smaller results use torch's allocator
_KEEP = 1 << 28  # bytes of unused slabs that stay: one prediction, or one training step

# Parameters of mallopt, from glibc's malloc.h. Blocks of up to 32 MiB, the largest allowed value, come from the heap.
# That of the main thread may have 2 GiB free at its end, the largest int, and grows by 16 MiB more than requested.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


@dataclass(eq=False)
class _Slab:
    memory: NDArray
    gaps: list[tuple[int, int]]  # begin and end, in order, never adjacent

    @classmethod
    def of(cls, size: int) -> "_Slab":
        memory = np.empty(size + _LINE, dtype=np.uint8)  # numpy asks the system for huge pages, torch does not
        start = -memory.ctypes.data % _LINE
        return cls(memory[start : start + size], [(0, size)])

    @property
    def unused(self) -> bool:
        return self.gaps == [(0, self.memory.size)]

    def take(self, gap: tuple[int, int], size: int) -> NDArray:
        """Cut a block from the beginning of a gap."""
        place, (begin, end) = self.gaps.index(gap), gap
        self.gaps[place : place + 1] = [(begin + size, end)] if begin + size < end else []
        return self.memory[begin : begin + size]

    def free(self, begin: int, end: int) -> None:
        """Make a gap of a block again, merged with adjacent gaps."""
        place = sum(other < begin for other, _ in self.gaps)
        first, last = place, place
        if first and self.gaps[first - 1][1] == begin:
            first, begin = first - 1, self.gaps[first - 1][0]
        if last < len(self.gaps) and self.gaps[last][0] == end:
            last, end = last + 1, self.gaps[last][1]
        self.gaps[first:last] = [(begin, end)]


# A cache, not state: without a gap that fits the system is asked.
_slabs: list[_Slab] = []
_returned: list[tuple[_Slab, int, int]] = []
_busy = Lock()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for a result that may be large; it is reused as soon as no tensor refers to it."""
    size = prod(shape) * dtype.itemsize
    if size <= _SMALL:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(_taken(size)).view(dtype).view(*shape)


def release_freed_memory() -> None:
    """Return freed memory that glibc retains to the system. Call it after one-time work that takes much memory."""
    _glibc("malloc_trim", 0)


def retain_freed_memory() -> None:
    """Make glibc retain freed memory for the next allocation, for the rest of the process.

    By default glibc returns the pages of a training step to the system, and the next step faults each of them in again:
    a tenth of its time with the small networks.
    """
    for parameter, value in ((_MMAP_THRESHOLD, 1 << 25), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 1 << 24)):
        _glibc("mallopt", parameter, value)


def _glibc(name: str, *given: int) -> None:
    """Call a function of glibc; do nothing with other C libraries."""
    if sys.platform.startswith("linux"):
        function = getattr(ctypes.CDLL(None), name, None)
        if function is not None:
            function(*given)


def _taken(size: int) -> NDArray:
    """An array of so many bytes. They become a gap again when the array is deleted."""
    whole = -(-size // _LINE) * _LINE
    # Never waits: in a process forked while another thread held the lock, it is never released.
    if not _busy.acquire(blocking=False):
        return np.empty(size, dtype=np.uint8)
    try:
        _tidy()
        sizes = [(gap[1] - gap[0], i, gap) for i, slab in enumerate(_slabs) for gap in slab.gaps]
        if fitting := [one for one in sizes if one[0] >= whole]:
            _, i, gap = min(fitting)
            slab = _slabs[i]
        else:
            # Sizes have changed: unused slabs were too small and are replaced by one that is large enough.
            _slabs[:] = [one for one in _slabs if not one.unused]
            slab = _Slab.of(whole)
            _slabs.append(slab)
            gap = slab.gaps[0]
        memory = slab.take(gap, whole)[:size]
        weakref.finalize(memory, _release, slab, gap[0], gap[0] + whole).atexit = False
        return memory
    finally:
        _busy.release()


def _release(slab: _Slab, begin: int, end: int) -> None:
    """Runs when an array is deleted, possibly within `_taken`, which then tidies up itself."""
    _returned.append((slab, begin, end))
    if _busy.acquire(blocking=False):
        try:
            _tidy()
        finally:
            _busy.release()


def _tidy() -> None:
    """Make gaps of returned blocks, and drop unused slabs, the oldest first, if too much is kept."""
    while _returned:
        slab, begin, end = _returned.pop()
        slab.free(begin, end)
    kept = sum(slab.memory.size for slab in _slabs)
    for slab in [one for one in _slabs if one.unused]:
        if kept > _KEEP:
            _slabs.remove(slab)
            kept -= slab.memory.size
