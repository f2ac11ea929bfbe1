"""How long a prediction takes, and each stage of it.

Hooks on the model's parts note the time, so that the forward pass of predictions itself is timed. The GPU is
synchronised at the end of each stage, and no CUDA graph is replayed; whole predictions are timed with graphs and
without synchronisation.
"""

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import nn

from twostage.data.images import read_image
from twostage.device import synchronize
from twostage.inference.predictor import resized, to_arrays, with_proposals
from twostage.inference.prepare import PreparedModel
from twostage.models.build import Model
from twostage.models.heads.box import BoxHead
from twostage.models.heads.mask import MaskHead
from twostage.models.heads.semantic import SemanticBranch
from twostage.models.one_stage import OneStage
from twostage.models.stagewise import SVMHead

STAGES = (
    "read",
    "resize",
    "backbone",
    "neck",
    "rpn",
    "proposals",
    "region features",
    "heads",
    "post-processing",
)


WARMUP = 2  # calls


class Times(NamedTuple):
    """Milliseconds, and the number of calls that they were taken from."""

    median: float
    minimum: float
    calls: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.minimum:.2f})"


def times_of(samples: Mapping[str, Sequence[float]], warmup: int = WARMUP) -> dict[str, Times]:
    """The times of each case without its warm-up calls: of fewer calls the last."""
    warm = {name: taken[min(warmup, len(taken) - 1) :] for name, taken in samples.items() if taken}
    return {name: Times(statistics.median(taken), min(taken), len(taken)) for name, taken in warm.items()}


def take_turns(
    cases: Mapping[str, Callable[[], object]],
    samples: dict[str, list[float]],
    *,
    calls: int,
    until: float = math.inf,
) -> Iterator[None]:
    """Call each case in turn until each has so many samples, in milliseconds; yields after each call.

    So all cases meet the same machine. A case without samples is called in any event; otherwise the turns end before a
    call that would end after `until` (of `time.perf_counter`) if it took as long as the one before.
    """
    gc.collect()
    for turn in range(calls):
        for name, call in cases.items():
            taken = samples.setdefault(name, [])
            if len(taken) > turn:
                continue
            start = time.perf_counter()
            if taken and start + taken[-1] / 1e3 > until:
                return
            result = call()
            taken.append(1e3 * (time.perf_counter() - start))
            del result  # releasing large results is not part of the work, and must not fall into the next case
            yield


def interleaved(cases: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = WARMUP) -> dict[str, Times]:
    """The time of each case, by `take_turns`."""
    samples: dict[str, list[float]] = {}
    for _ in take_turns(cases, samples, calls=warmup + repeats):
        pass
    return times_of(samples, warmup)


def stage_times(
    model: PreparedModel, files: Sequence[str | Path | bytes], *, repeats: int, warmup: int = WARMUP
) -> dict[str, Times]:
    """The time of each of `STAGES` for these images together; a backbone without a pyramid has no neck."""
    samples: dict[str, list[float]] = {}
    for _ in range(warmup + repeats):
        time_stages(model, files, samples)
    return times_of(samples, warmup)


def peak_memory(device: torch.device, call: Callable[[], object]) -> int | None:
    """Bytes at the peak of a call: of the GPU's memory, or of the whole process on Linux; else None."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        call()
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    except OSError:  # a sandbox that has no such file, or refuses it
        call()
        return None
    call()
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def time_stages(model: PreparedModel, files: Sequence[str | Path | bytes], samples: dict[str, list[float]]) -> None:
    """Predict these images together once; adds the milliseconds of each of `STAGES` to its samples."""
    device = model.device
    elapsed: dict[str, float] = {}
    last = time.perf_counter()

    def done(stage: str) -> None:
        nonlocal last
        synchronize(device)
        now = time.perf_counter()
        elapsed[stage] = elapsed.get(stage, 0.0) + 1e3 * (now - last)
        last = now

    images = [read_image(file) for file in files]
    done("read")
    batch = resized(images, model.config.image)
    done("resize")
    batch = with_proposals(batch, images, model.config)
    done("proposals")
    for part in model.split(batch):
        with _timed_parts(model.model, done):
            detections = model.stages(part).detections
        to_arrays(detections, part, model.config)
        done("post-processing")
    for stage in STAGES:
        if stage in elapsed:
            samples.setdefault(stage, []).append(elapsed[stage])


@contextmanager
def _timed_parts(model: Model, done: Callable[[str], None]) -> Iterator[None]:
    """Within it `done` is called with the name of each stage when it ends."""
    body = getattr(model.backbone, "body", None)
    ends: dict[nn.Module, str] = {model.backbone: "backbone"}
    if isinstance(model, OneStage):
        ends[model.head] = "heads"
    elif model.rpn is not None:
        ends[model.rpn] = "rpn"
    pools: list[nn.Module] = []
    begins: list[nn.Module] = []
    for part in cast(nn.Module, model.head).modules():
        if isinstance(part, BoxHead | SVMHead):
            ends[part] = "heads"
            pools.append(part.regions)
        elif isinstance(part, MaskHead):
            ends[part.classes] = "heads"
            pools.append(part.regions)
        elif isinstance(part, SemanticBranch):
            begins.append(part.laterals[0])
            ends[part.embedding] = "heads"
    ends |= dict.fromkeys(pools, "region features")
    if isinstance(body, nn.Module):
        ends |= {body: "backbone", model.backbone: "neck"}
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, _output, stage=stage: done(stage))  # type: ignore[misc]
        for module, stage in ends.items()
    ]
    # Up to the first pooling boxes are proposed; between poolings they are refined or suppressed.
    before = iter(["proposals"])
    hooks += [
        module.register_forward_pre_hook(lambda _module, _inputs: done(next(before, "post-processing")))
        for module in (*begins, *pools)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
