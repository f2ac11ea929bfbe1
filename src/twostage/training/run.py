"""A training run from its options to its folder.

1. Open the data, build the model. 2. Make the folder. 3. Train, validate, save, again and again. 4. Draw the results.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twostage.data.augment import Augment
from twostage.data.dataset import Dataset
from twostage.data.loader import Loaded, training_batches
from twostage.data.stuff import Stuff, find_stuff
from twostage.data.workers import default_workers
from twostage.device import choose_device, reproducible
from twostage.distributed import Processes, process_group
from twostage.errors import DataError, UsageError
from twostage.folders import claimed
from twostage.inference.precision import choose_precision
from twostage.models.one_stage import OneStage
from twostage.ops.cpu.memory import retain_freed_memory
from twostage.shell import command
from twostage.training.batch_size import batch_for, fitted, seconds_of_step, steps_in
from twostage.training.ema import EMA
from twostage.training.extra_samples import repeats_of, require_pasting
from twostage.training.folder import RunFolder, naming_resume, require_same_images, resumed_options
from twostage.training.image_size import ENOUGH, log_larger_size, model_size, with_image_size
from twostage.training.inputs import Given, given_proposals, stuff_maps
from twostage.training.optimiser import build_optimizer, freezable_stages, freeze, set_trainable
from twostage.training.options import TrainOptions
from twostage.training.progress import progress_bar
from twostage.training.recipe import RECIPES, epochs_of, recipe_name, resolve
from twostage.training.splits import Splits, open_splits, require_masks, require_parts, with_classes
from twostage.training.start import Start, require_start, starting_model, with_default_weights
from twostage.training.starting_table import log_start
from twostage.training.state import Progress, load_state
from twostage.training.step import Session, stopping_gently, train_until
from twostage.training.validate import Validation, chosen_by_quality, quality, validate
from twostage.weights.file import load_weights
from twostage.weights.fit import load_all

log = logging.getLogger("twostage.training")

SAVE_AFTER = 10  # seconds; shorter epochs share a save, which takes as long as a step of a small model


@dataclass
class Run:
    """Everything that a run holds besides its session."""

    session: Session
    splits: Splits
    folder: RunFolder
    workers: int
    given: Given
    stuff: tuple[Stuff | None, Stuff | None]  # of both splits, for a semantic branch
    resumed_by: Path  # the folder to be given to --resume: that of the whole training, where the run is a part of one
    best: Validation | None = None  # of the best weights
    saved: float = field(default_factory=time.monotonic)


def run(
    options: TrainOptions,
    *,
    splits: Splits | None = None,
    backbone: nn.Module | None = None,
    root: Path | None = None,
    until: float = 1.0,
) -> dict[str, Any]:
    """See `twostage.training.train`.

    `root` is the folder of the training that the run is a part of. It ends after the share `until` of its steps, whose
    learning rates are those of the whole.
    """
    with process_group() as processes, ExitStack() as held:
        # Times differ between processes, and all must compute in one precision.
        bf16 = processes.on_main(lambda: choose_precision(choose_device(options.device), "auto") == "bf16")
        with processes.sync_errors():
            if options.resume is None:
                options = with_default_weights(options, backbone)
                require_start(options)
            else:
                options = resumed_options(options, options.resume)
            held.enter_context(reproducible(options.deterministic))
            splits = with_classes(splits, options.names) if splits else open_splits(options)
            sized = options if options.resume is not None else with_image_size(options, splits.train)
            require_parts(sized, splits.train, splits.val)
            session, start = _session(sized, splits.train, processes, backbone, bf16)
            if session.learns_masks:
                require_masks(splits, options.on_error)
            stuff = stuff_maps(splits, session)
        if session.device.type == "cpu":
            retain_freed_memory()
        own, size = (None, None) if sized is options else (model_size(options), sized.size)
        small_batch = options.batch is None and session.recipe.least_batch < session.recipe.batch
        if _can_time_steps(options, session) and (size != own or small_batch):
            seconds, budget = _seconds_of_step(session, stuff[0]), 60 * (options.minutes or 0)
            batch = options.batch or batch_for(session.recipe, budget, seconds, processes.world)
            if size != own and steps_in(session.recipe, budget, seconds, batch) < ENOUGH:
                log.info("There are small objects, but too little time on this machine for larger images.")
                size = own
                with processes.sync_errors():
                    sized = replace(options, size=own)
                    session, start = _session(sized, splits.train, processes, backbone, bf16)
                seconds = _seconds_of_step(session, stuff[0])
            if small_batch:
                session = fitted(session, seconds, budget)
        if size is not None and size != own:
            log_larger_size(options, size, splits.train)
        options = session.options
        log_start(session, start)
        folder = RunFolder(processes.on_main(lambda: _claimed_folder(options, held)), writes=processes.is_main)
        session.progress.until = until
        with processes.sync_errors():
            _begin_or_go_on(session, folder)
        if root is None:
            held.enter_context(naming_resume(command("twostage", "train", "--resume", folder.path)))
        session.ddp_model = processes.wrap_ddp(session.model)
        with processes.sync_errors():
            given = given_proposals(options, splits, session.model.config)
        one = Run(session, splits, folder, _workers(session), given, stuff, root or folder.path)
        _learn(one)
        return _finish(one)


def _can_time_steps(options: TrainOptions, session: Session) -> bool:
    """Whether this is a new run with a time budget, without proposals from elsewhere."""
    own = isinstance(session.model, OneStage) or session.model.rpn is not None
    return own and options.minutes is not None and options.resume is None and options.proposals is None


def _claimed_folder(options: TrainOptions, held: ExitStack) -> Path:
    folder = RunFolder.create(options) if options.resume is None else RunFolder.existing(options.resume)
    held.enter_context(claimed(folder.state.parent))
    return folder.path


def _begin_or_go_on(session: Session, folder: RunFolder) -> None:
    if session.options.resume is None:
        folder.begin(session.options, session.processes.world)
        folder.save_last(session)  # from here on it can be resumed
    else:
        session.progress, scaler = load_state(folder.state, session.model, session.optimizer, session.ema)
        session.scaler.load_state_dict(scaler)
        require_same_images(session.progress, session.dataset)
        folder.resume(session.progress)


def _workers(session: Session) -> int:
    if session.options.workers is not None:
        return session.options.workers
    return default_workers(on_cpu=session.device.type == "cpu", sharing=session.processes.local_world)


def _seconds_of_step(session: Session, stuff: Stuff | None) -> float:
    return seconds_of_step(session, _batches(session, 0, (None, None), stuff), _workers(session))


def _session(
    options: TrainOptions, train: Dataset, processes: Processes, backbone: nn.Module | None, bf16: bool
) -> tuple[Session, Start]:
    device = processes.device(options.device)
    choose_precision(device, options.precision or "fp32")  # an impossible one is an error before anything is written
    start = starting_model(options, train.names, partial(find_stuff, train), backbone)
    model = start.model
    recipe = resolve(
        options,
        RECIPES[recipe_name(options)],
        freezable=freezable_stages(model, start.loaded),
        bf16=bf16,
        processes=processes.world,
    )
    freeze(model, recipe.freeze)
    set_trainable(model, options.learn)
    require_pasting(options, recipe, model, train)
    if options.proposals is not None and isinstance(model, OneStage):
        raise UsageError(f"proposals: {options.model} has one stage, which takes none: leave them out")
    model = model.to(device).to(memory_format=torch.channels_last)
    if options.resume is None:
        # A resumed run does not read the weights again, which say how much is frozen, and may be on another device, or
        # with other processes that share a batch.
        frozen = recipe.freeze if "backbone" in options.learn else None  # of a backbone that is frozen as a whole
        options = replace(options, freeze=frozen, precision=recipe.precision, batch=recipe.batch)
    session = Session(
        options=options,
        model=model,
        ddp_model=model,
        optimizer=build_optimizer(model, recipe),
        ema=EMA(model, recipe.ema) if recipe.ema else None,
        scaler=torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16"),
        recipe=recipe,
        progress=Progress(images=len(train)),
        dataset=train,
        repeats=repeats_of(train, recipe.repeat_threshold),
        device=device,
        stop=threading.Event(),
        processes=processes,
        licence=start.licence,
    )
    if options.minutes is None:
        epochs = epochs_of(options, recipe, len(train))
        session.progress.total = total = ceil(epochs * session.updates)
        if options.warmup is None:  # short runs would never reach the rate
            session.recipe = replace(recipe, warmup=min(recipe.warmup, total // 10))
    return session, start


def _batches(session: Session, workers: int, given: Given, stuff: Stuff | None) -> Iterator[Loaded]:
    """The batches of the run, from the step on where it stands."""
    image, recipe = session.model.config.image, session.recipe
    return training_batches(
        session.dataset,
        resize=image.resizing,
        augment=Augment(
            flip=recipe.flip,
            vertical_flip=recipe.vertical_flip,
            scale=recipe.scale,
            crop=recipe.crop,
            colour=recipe.colour,
            beyond=image.mean,
        ),
        batch=recipe.batch,
        seed=session.options.seed,
        start=session.progress.step * session.options.accumulate,
        workers=workers,
        divisor=image.divisor,
        rank=session.processes.rank,
        world=session.processes.world,
        pin=session.device.type == "cuda",
        proposals=given[0],
        masks=session.learns_masks,
        stuff=stuff,
        repeats=session.repeats,
        copy_paste=recipe.copy_paste,
    )


def _learn(run: Run) -> None:
    """Epochs until the end, early stopping or Ctrl-C; each ends with a line, some with a validation."""
    session, options, progress = run.session, run.session.options, run.session.progress
    batches = _batches(session, run.workers, run.given, run.stuff[0])
    drawn = run.folder.with_picture(batches, session.dataset.names)
    quiet = options.quiet or not session.processes.is_main
    with stopping_gently(session.stop, session.processes), progress_bar(quiet=quiet) as after_step:
        if _epoch_to_end(session):
            _end_epoch(run)  # the run was stopped within the validation
        while not _over(session):
            epoch_end = ceil((progress.step // session.updates + 1) * session.updates)
            try:
                train_until(session, drawn, epoch_end, after_step)
            except (DataError, SystemExit):  # an image, of this process or another, cannot be read
                _save(run)
                resume = command("twostage", "train", "--resume", run.resumed_by)
                log.warning("Saved. When that is fixed, continue with: %s", resume)
                raise
            if _epoch_to_end(session):
                _end_epoch(run)
            else:
                _save(run)
            if session.processes.any(session.stop.is_set()):
                _save(run)
                log.warning("Stopped and saved.")
                session.processes.end_all(KeyboardInterrupt())


def _epochs(session: Session) -> int:
    """Passes over the data that are complete; at the end of the run also the last one."""
    step, updates = session.progress.step, session.updates
    whole = int(step // updates)
    return max(1, whole if ceil(whole * updates) == step else whole + 1)


def _epoch_to_end(session: Session) -> bool:
    """Whether the last step was the last of an epoch, whose row is not written."""
    progress, updates = session.progress, session.updates
    last = progress.finished or progress.step == ceil(progress.step // updates * updates)
    return last and progress.summed > 0


def _over(session: Session) -> bool:
    progress, patience = session.progress, session.options.patience
    return progress.finished or bool(patience and progress.validations_since_best >= patience)


def _end_epoch(run: Run) -> None:
    """A row of metrics.csv; validation where it is due, and always at the end; now and then the state to go on from."""
    progress = run.session.progress
    row: dict[str, Any] = {
        "epoch": _epochs(run.session),
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
        "lr": progress.lr,
    }
    means = {name: value / max(1, progress.summed) for name, value in progress.losses.items()}
    row["train_loss"] = sum(means.values())
    row |= {f"train_loss_{name}": value for name, value in means.items()}
    validates = run.splits.val is not None and (progress.finished or _due(run.session, row["epoch"]))
    if validates:
        # A validation may take long: what was learned is kept, should it not come to its end.
        _save(run)
        row |= _validate(run)
    progress.losses, progress.summed = {}, 0
    run.folder.add_row(row)
    total = "" if progress.last is None else f" of {progress.last}"
    scores = (
        f", validation loss {row['val_loss']:.3f}, AP {row['AP']:.3f}, AP50 {row['AP50']:.3f}" if "AP" in row else ""
    )
    if "segm_AP" in row:
        scores += f", masks AP {row['segm_AP']:.3f}, AP50 {row['segm_AP50']:.3f}"
    log.info("epoch %d, step %d%s: loss %.3f%s", row["epoch"], progress.step, total, row["train_loss"], scores)
    if validates or progress.finished or time.monotonic() - run.saved > SAVE_AFTER:
        _save(run)


def _save(run: Run) -> None:
    run.folder.save_last(run.session)
    run.saved = time.monotonic()


def _due(session: Session, epoch: int) -> bool:
    """Every `eval_every` epochs; by default so that a run is validated about `recipe.validations` times."""
    if session.options.eval_every is not None:
        return epoch % session.options.eval_every == 0
    total = session.progress.total
    if total is None:
        return False  # the length of the run is not known yet
    return epoch % max(1, round(total / session.updates / session.recipe.validations)) == 0


def _validate(run: Run) -> dict[str, float]:
    """Validation losses and numbers; the weights are kept as best where AP rose, or has no value.

    With masks it is the mean of the boxes' and the masks' AP that must rise.
    """
    session, progress = run.session, run.session.progress
    scored = _score(run)
    metrics, losses = scored.metrics, scored.losses
    if metrics["AP"] < 0:
        log.warning("AP has no value: the validation split has no object that counts. The newest weights are kept.")
    newest = metrics["AP"] < 0 or not chosen_by_quality(session.options)
    if quality(metrics) > progress.best or newest:
        progress.best, progress.validations_since_best = quality(metrics), 0
        run.best = scored
        assert run.splits.val is not None
        run.folder.save_best(session, run.splits.val, metrics, chosen=not newest)
    else:
        progress.validations_since_best += 1
    return {"val_loss": sum(losses.values()), **{f"val_loss_{name}": v for name, v in losses.items()}, **metrics}


def _score(run: Run) -> Validation:
    return validate(run.session, run.splits, workers=run.workers, proposals=run.given[1], stuff=run.stuff[1])


def _finish(run: Run) -> dict[str, Any]:
    """Plots and images of the best weights."""
    progress, folder, val = run.session.progress, run.folder, run.splits.val
    if val is not None and run.best is None:
        # A resumed run whose best weights are from before it stopped.
        load_all(run.session.evaluated, load_weights(folder.best)[1], str(folder.best))
        run.best = _score(run)
    folder.draw(run.splits.train, val, run.best)
    return {
        "out": str(folder.path),
        "weights": str(folder.last if val is None else folder.best),
        "epochs": _epochs(run.session),
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "metrics": run.best.metrics if run.best else {},
    }
