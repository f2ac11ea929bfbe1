"""An exponential moving average of the weights, which is evaluated and kept (Polyak and Juditsky 1992)."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """A copy of a model that follows it: average = decay * average + (1 - decay) * model, early on with less inertia.

    The decay at update t is at most (1 + t) / (10 + t), so that the random beginning is soon forgotten.
    """

    def __init__(self, model: M, decay: float, updates: int = 0) -> None:
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = updates

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow the model by one step; whole numbers such as batch counters are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        own = list(self.model.state_dict().values())
        new = list(model.state_dict().values())
        floating = [t.is_floating_point() for t in own]
        torch._foreach_lerp_(
            [t for t, f in zip(own, floating, strict=True) if f],
            [t.detach() for t, f in zip(new, floating, strict=True) if f],
            1 - decay,
        )
        for mine, theirs, is_floating in zip(own, new, floating, strict=True):
            if not is_floating:
                mine.copy_(theirs)
