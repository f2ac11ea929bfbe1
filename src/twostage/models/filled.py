"""How much of a padded axis is computed."""

import torch
from jaxtyping import Bool
from torch import Tensor


def filled(valid: Bool[Tensor, "n d"]) -> int:
    """How many of the first columns some image fills: a processor need not compute the others.

    Elsewhere all: to ask would make the host wait for the device, and an exported program has one shape.
    """
    if valid.device.type != "cpu" or torch.compiler.is_compiling():
        return valid.shape[1]
    columns = valid.any(dim=0).nonzero()
    return int(columns[-1]) + 1 if len(columns) else 0
