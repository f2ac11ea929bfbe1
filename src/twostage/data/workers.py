"""How many processes read images."""

import os


def default_workers(*, on_cpu: bool, sharing: int = 1) -> int:
    """One for every two cores this process may use, at least one and at most eight; `on_cpu` the model computes there.

    Then one for every four, from none on: on two cores a process beside the model takes from a training step more
    than reading in between does (0.73 s a step of the tiny model against 0.61 s). `sharing` is how many such processes
    there are on the machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // sharing)
    return min(8, cores // 4) if on_cpu else max(1, min(8, cores // 2))
