"""How much of a padded axis has to be computed."""

import torch
from jaxtyping import Bool
from torch import Tensor


def filled(valid: Bool[Tensor, "n d"]) -> int:
    """On the CPU the number of leading columns that are valid in some image; the others need not be computed.

    On other devices and in an exported program all columns: reading `valid` would make the host wait for the device,
    and an exported program has one shape.
    """
    if valid.device.type != "cpu" or torch.compiler.is_compiling():
        return valid.shape[1]
    columns = valid.any(dim=0).nonzero()
    return int(columns[-1]) + 1 if len(columns) else 0
