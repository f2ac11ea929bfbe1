"""Memory for large results on the CPU, kept for the next one.

The C library maps blocks above 32 MB anew each time and gives them back when they are freed; filling fresh pages costs
more than RoIAlign itself, the more so on virtual machines. Numpy asks the system for huge pages, torch does not.
"""

import weakref
from collections.abc import Sequence
from math import prod
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LINE = 64  # bytes of a cache line
_SMALL = 1 << 20  # bytes, up to which torch's own memory serves
_KEEP = 1 << 28  # bytes kept while nobody uses them: the results of one training step of two large images

_free: list[NDArray] = []  # a cache, not state: who finds nothing in it asks the system
_taking = Lock()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for a result that may be large; free for the next one as soon as no tensor holds it."""
    size = prod(shape) * dtype.itemsize
    if size <= _SMALL:
        return torch.empty(shape, dtype=dtype)
    block = _taken(size + _LINE)
    start = -block.ctypes.data % _LINE
    memory = block[start : start + size]
    weakref.finalize(memory, _release, block).atexit = False
    return torch.from_numpy(memory).view(dtype).view(*shape)


def _taken(size: int) -> NDArray:
    """The smallest free block of at least so many bytes that is not twice as large, or a new one."""
    # Never waits: in a process forked while another thread was here, the lock stays taken.
    if _taking.acquire(blocking=False):
        try:
            fitting = [i for i, block in enumerate(_free) if size <= block.nbytes <= 2 * size]
            if fitting:
                return _free.pop(min(fitting, key=lambda i: _free[i].nbytes))
            del _free[:1]  # sizes change: the one that waits longest goes
        finally:
            _taking.release()
    return np.empty(size, dtype=np.uint8)


def _release(block: NDArray) -> None:
    """Keep a block, or let it go. May run at any time, even within `_taken`: it only appends."""
    if sum(one.nbytes for one in _free) + block.nbytes <= _KEEP:
        _free.append(block)
