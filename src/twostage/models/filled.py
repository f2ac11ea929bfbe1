"""How much of a padded axis has to be computed."""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)  # torch before 2.7


def filled(valid: Bool[Tensor, "n d"]) -> int | torch.SymInt:
    """On the CPU the number of leading columns that are valid in some image; the others need not be computed.

    An exported program computes the number too, at least 1: not every runtime has convolutions of no image. On other
    devices all columns: reading `valid` would make the host wait for the device.
    """
    if _is_exporting():
        count = valid.any(dim=0).sum().item()
        torch._check(count >= 0)
        torch._check(count <= valid.shape[1])
        least: int | torch.SymInt = torch.sym_max(count, 1)  # type: ignore[assignment]
        return least
    if valid.device.type != "cpu" or torch.compiler.is_compiling():
        return valid.shape[1]
    columns = valid.any(dim=0).nonzero()
    return int(columns[-1]) + 1 if len(columns) else 0
