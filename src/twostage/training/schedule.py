"""How the learning rate moves: warm-up (Goyal et al. 2017), then steps or a cosine (Loshchilov and Hutter 2017)."""

import math
from collections.abc import Sequence


def factor(
    step: int, total: int | None, *, kind: str, warmup: int, milestones: Sequence[float] = (), start: float = 1e-3
) -> float:
    """What the learning rate is multiplied with at this step, counted from 0.

    `total` may be unknown (None) while warming up. Milestones are fractions of the whole run.
    """
    if step < warmup:
        return start + (1 - start) * (step + 1) / warmup
    if total is None:
        return 1.0
    if kind == "cosine":
        progress = (step - warmup) / max(1, total - warmup)
        return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
    return 0.1 ** sum(step >= milestone * total for milestone in milestones)


def steps_in(seconds: float, durations: Sequence[float]) -> int:
    """How many steps fit into so many seconds, judged by the mean of some durations; none where there are none."""
    return max(0, int(seconds * len(durations) / sum(durations)))
