"""Large results on the CPU."""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

_LINE = 64  # bytes of a cache line


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for a result that may be large.

    The C library maps blocks above 32 MB anew each time, and filling them page by page costs more than RoIAlign itself.
    Numpy asks the system for huge pages, torch does not: 50 MB are written in a third of the time.
    """
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + _LINE, dtype=np.uint8)
    start = -memory.ctypes.data % _LINE
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(*shape)
