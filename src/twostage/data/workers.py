"""How many processes read images."""

import os


def default_workers() -> int:
    """One for every two cores this process may use, at least one and at most eight: the model needs the others."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // 2))
