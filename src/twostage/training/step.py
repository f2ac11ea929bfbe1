"""One training step, and many of them in a row."""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from twostage.data.dataset import Dataset
from twostage.data.loader import Loaded
from twostage.data.order import images_per_epoch, steps_per_epoch
from twostage.data.randomness import mix
from twostage.device import arithmetic
from twostage.distributed import Processes
from twostage.errors import DataError, TwostageError
from twostage.models.build import Model
from twostage.ops.cpu.threads import adapt_to_load
from twostage.training.ema import EMA
from twostage.training.optimiser import train_mode
from twostage.training.options import TrainOptions
from twostage.training.recipe import Recipe
from twostage.training.schedule import factor, steps_in
from twostage.training.state import Progress

log = logging.getLogger("twostage.training")

WARMUP_SHARE = 0.1  # of a time budget: a slow machine does not spend it all on warming up
ENOUGH = 30  # steps that the duration of one is measured over
SAVE_EVERY = 600  # seconds, in epochs that last longer


@dataclass
class Session:
    """Everything that a step reads and changes.

    `ddp_model` is the model, or DistributedDataParallel around it; `dataset` is the split that is learned,
    and `repeats` how often its images come in an epoch, where that is not once.
    """

    options: TrainOptions
    model: Model
    ddp_model: nn.Module
    optimizer: Optimizer
    ema: EMA[Model] | None
    scaler: Any
    recipe: Recipe
    progress: Progress
    dataset: Dataset
    repeats: Float64[np.ndarray, " m"] | None
    device: torch.device
    stop: threading.Event
    processes: Processes
    licence: str  # of the weights

    @property
    def evaluated(self) -> Model:
        """The weights that are validated and kept: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.model

    @property
    def learns_masks(self) -> bool:
        """Whether masks are needed: the model has some, and its head is trained."""
        return self.model.has_masks and "head" in self.options.learn

    @property
    def updates(self) -> Fraction:
        """Optimizer steps per epoch; a fraction where accumulated batches reach into the next epoch."""
        images = images_per_epoch(len(self.dataset), self.repeats)
        return Fraction(steps_per_epoch(images, self.recipe.batch), self.options.accumulate)


def train_until(session: Session, batches: Iterator[Loaded], step: int, after_step: Callable[[Progress], None]) -> None:
    """Steps up to `step` or the run's end, or until one of the processes is asked to stop, or it is time to save."""
    progress = session.progress
    begun = time.perf_counter()

    def pause() -> bool:
        return session.stop.is_set() or time.perf_counter() - begun > SAVE_EVERY

    train_mode(session.model, session.options.learn, session.recipe.freeze)
    while progress.step < step and not session.processes.any(pause()):
        if progress.finished:
            return
        start = time.perf_counter()
        losses = train_step(session, batches)
        duration = session.processes.mean_of(time.perf_counter() - start)
        progress.step += 1
        progress.seconds += duration
        progress.summed += 1
        for name, value in losses.items():
            progress.losses[name] = progress.losses.get(name, 0.0) + value
        if session.options.minutes is not None:
            _fit_to_budget(session.recipe, 60 * session.options.minutes, progress, duration)
        after_step(progress)


def train_step(session: Session, batches: Iterator[Loaded]) -> dict[str, float]:
    """One update from `accumulate` batches; returns their mean losses.

    Raises TwostageError when a loss or the gradient is not finite, naming the images; the weights are then as before.
    """
    progress, recipe, processes = session.progress, session.recipe, session.processes
    seed, accumulate = session.options.seed, session.options.accumulate
    rate = recipe.lr * factor(
        progress.step,
        progress.total,
        kind=recipe.schedule,
        warmup=recipe.warmup if progress.warmup is None else progress.warmup,
        milestones=recipe.milestones,
    )
    progress.lr = rate
    for group in session.optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    # Dropout draws from here: a function of the step, so that a resumed run draws the same.
    torch.manual_seed(mix(seed, progress.step, processes.rank))
    session.optimizer.zero_grad(set_to_none=True)
    if session.device.type == "cpu":
        adapt_to_load()
    summed: dict[str, float] = {}
    images: list[int] = []
    for part in range(accumulate):
        loaded, failure = _next(batches)
        # What lies beside an image changes features near its border: as if all processes' images were one batch.
        *canvas, failed = processes.max([*(loaded.batch.images.shape[2:] if loaded else (0, 0)), loaded is None])
        if failed or loaded is None:
            processes.end_all(failure)
        batch, targets = (
            loaded.batch.to(session.device).on_canvas(*canvas),
            loaded.targets.to(session.device).on_canvas(*canvas),
        )
        targets = replace(targets, seeds=targets.seeds ^ mix(seed, progress.step, part))
        with _no_gradient_sync(session.ddp_model) if part + 1 < accumulate else nullcontext():
            with arithmetic(session.device, recipe.precision):
                losses = session.ddp_model(batch, targets, mean=processes.mean, parts=session.options.learn)
                each = torch.stack(list(losses.values()))
            values = dict(zip(losses, processes.mean(each.detach()).tolist(), strict=True))
            images += loaded.indices.tolist()
            _require_finite(values, images, session)
            session.scaler.scale(each.sum() / accumulate).backward()
        for name, value in values.items():
            summed[name] = summed.get(name, 0.0) + value / accumulate
    session.scaler.unscale_(session.optimizer)
    norm = nn.utils.clip_grad_norm_(session.model.parameters(), recipe.clip or math.inf)
    if not session.scaler.is_enabled():  # the scaler skips such a step by itself, and tries a smaller scale
        _require_finite({"gradient": float(norm)}, images, session)
    session.scaler.step(session.optimizer)
    session.scaler.update()
    if session.ema is not None:
        session.ema.update(session.model)
    return summed


@contextmanager
def stopping_gently(stop: threading.Event, processes: Processes) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop`, so that the step in progress ends and can be saved.

    A second Ctrl-C interrupts at once; a second SIGTERM does not, since several programs may send it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        log.warning("Stopping after this step, to save it. Ctrl-C once more stops at once.")
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception:
        if processes.world > 1:  # torchrun ends the others by SIGTERM: the error of this process is printed first
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _next(batches: Iterator[Loaded]) -> tuple[Loaded | None, DataError | None]:
    """The next batch, or why there is none."""
    try:
        return next(batches), None
    except DataError as error:
        return None, error


def _no_gradient_sync(ddp_model: nn.Module) -> AbstractContextManager[object]:
    """Within it gradients accumulate in each process; they are averaged with those of the last batch."""
    return ddp_model.no_sync() if isinstance(ddp_model, DistributedDataParallel) else nullcontext()


def _fit_to_budget(recipe: Recipe, budget: float, progress: Progress, duration: float) -> None:
    """Turn a time budget into a number of steps once warm-up, or its share of it, is over; correct it once, halfway.

    Steps take more or less time as the proposals become better, and other programs come and go.
    """
    if progress.total is None or progress.warmup is None:
        progress.durations.append(duration)
        share = progress.seconds / budget
        if progress.step < recipe.warmup and share < WARMUP_SHARE:
            return
        if progress.step < ENOUGH and share < 2 * WARMUP_SHARE:
            return
        # The first steps allocate and plan: they take longer than the others.
        later = progress.durations[len(progress.durations) // 2 :]
        progress.warmup, progress.warmup_seconds, progress.durations = progress.step, progress.seconds, []
    elif not progress.corrected and progress.step == (progress.warmup + progress.total) // 2:
        progress.corrected = True
        later = [(progress.seconds - progress.warmup_seconds) / (progress.step - progress.warmup)]
    else:
        return
    progress.total = progress.step + steps_in(budget - progress.seconds, later)


def _require_finite(values: dict[str, float], images: list[int], session: Session) -> None:
    wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if not wrong:
        return
    paths = "\n  ".join(str(session.dataset.path(i)) for part in session.processes.gather(images) for i in part)
    session.processes.end_all(
        TwostageError(
            f"Non-finite loss or gradient at step {session.progress.step}: {', '.join(wrong)}. Its images:"
            f"\n  {paths}\nCheck their boxes (`twostage data check`), or lower --lr (now {session.recipe.lr:g}). "
            "Nothing of this step is saved."
        )
    )
