"""The batch of a run with a time budget: smaller where the machine is too slow for enough steps of the recipe's.

So short a run is without random scales too: what they teach takes longer to learn.
"""

import copy
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from twostage.data.loader import Loaded
from twostage.training.ema import EMA
from twostage.training.optimiser import build_optimizer, train_mode
from twostage.training.options import TrainOptions
from twostage.training.recipe import Recipe
from twostage.training.state import Progress
from twostage.training.step import Session, train_step

log = logging.getLogger("twostage.training")

ENOUGH = 450  # steps; below, half the batch and twice the steps give a higher AP: `benchmarks/results/tried.md`
_TRIED = 4  # steps of the trial, of which the first is for warm-up


def fitted(session: Session, seconds: float, budget: float) -> Session:
    """The session with the batch, and the rate with it, for a budget of seconds; `seconds` are those of a step now."""
    recipe = session.recipe
    batch = batch_for(recipe, budget, seconds, session.processes.world)
    if batch == recipe.batch:
        return session
    log.info(
        "The time is short on this machine: %d images per step instead of %d, at their own scale.", batch, recipe.batch
    )
    recipe = for_short_run(recipe, batch, session.options)
    return replace(session, recipe=recipe, options=replace(session.options, batch=batch, scale=recipe.scale))


def batch_for(recipe: Recipe, budget: float, seconds: float, processes: int = 1) -> int:
    """Images per step where a step of the recipe's batch takes so many seconds; a multiple of the processes.

    The batch is halved until there is time for enough steps, at most to the recipe's least one.
    """
    batch = recipe.batch
    while budget * recipe.batch < ENOUGH * seconds * batch:
        half = -(-max(batch // 2, recipe.least_batch) // processes) * processes
        if half >= batch:
            break
        batch = half
    return batch


def for_short_run(recipe: Recipe, batch: int, options: TrainOptions) -> Recipe:
    """The recipe with this batch, the learning rate in proportion, and no random scale, unless they are given."""
    rate = recipe.lr if options.lr is not None else recipe.lr * batch / recipe.batch
    return replace(recipe, batch=batch, lr=rate, scale=options.scale or (1.0, 1.0))


def steps_in(recipe: Recipe, budget: float, seconds: float, batch: int) -> float:
    """The steps of a batch for which there is time, where one of the recipe's batch takes so many seconds."""
    return budget * recipe.batch / (seconds * batch)


def seconds_of_step(session: Session, batches: Iterator[Loaded], workers: int) -> float:
    """The time of a step, tried a few times on a copy of the model: the session is as before.

    With `workers` images are read beside the steps in the run, and not timed.
    """
    model = copy.deepcopy(session.model)
    tried = replace(
        session,
        model=model,
        ddp_model=model,
        optimizer=build_optimizer(model, session.recipe),
        ema=None if session.ema is None else EMA(model, session.recipe.ema),
        progress=Progress(images=session.progress.images),
        scaler=copy.deepcopy(session.scaler),
    )
    train_mode(model, session.options.learn, session.recipe.freeze)
    if workers:
        with session.processes.sync_errors():
            batches = iter(list(islice(batches, _TRIED * session.options.accumulate)))
    times = []
    for _ in range(_TRIED):
        start = time.perf_counter()
        train_step(tried, batches)
        times.append(session.processes.mean_of(time.perf_counter() - start))
    return min(times[1:])
