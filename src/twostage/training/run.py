"""A training run from its options to its folder.

1. Open the data, build the model. 2. Make the folder. 3. Train, validate, save, again and again. 4. Draw the results.
"""

import logging
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch

from twostage.data.augment import Augment
from twostage.data.dataset import Dataset
from twostage.data.loader import PrecomputedProposals, training_batches
from twostage.data.order import steps_per_epoch
from twostage.data.proposals import read_proposals, require_distinct_splits
from twostage.data.stuff import Stuff, find_stuff
from twostage.data.workers import default_workers
from twostage.device import has_bf16, reproducible, require_precision
from twostage.distributed import Processes, joined
from twostage.errors import DataError, UsageError
from twostage.evaluation.evaluate import Report
from twostage.evaluation.results import Results
from twostage.folders import claimed
from twostage.models.fields import Fields
from twostage.models.proposals.given import of_split
from twostage.models.two_stage import TwoStage
from twostage.ops.cpu.memory import keep_freed
from twostage.progress import images_bar
from twostage.training.average import Average
from twostage.training.folder import RunFolder
from twostage.training.optimiser import build_optimizer, freeze, only, whole_stages
from twostage.training.options import TrainOptions
from twostage.training.progress import progress_bar
from twostage.training.recipe import RECIPES, Recipe, resolve
from twostage.training.resume import require_same_images, resumed
from twostage.training.splits import Splits, open_splits, require_masks
from twostage.training.start import require_start, starting_model
from twostage.training.state import Progress, load_state
from twostage.training.step import Session, stopping_gently, train_until
from twostage.training.validate import validate
from twostage.weights.file import load_weights
from twostage.weights.fit import load_all

log = logging.getLogger("twostage.training")


@dataclass
class Run:
    """What a run holds besides the session that learns."""

    options: TrainOptions
    splits: Splits
    session: Session
    folder: RunFolder
    workers: int
    given: tuple[PrecomputedProposals | None, PrecomputedProposals | None] = (
        None,
        None,
    )  # proposals of both splits that are not the model's own
    stuff: tuple[Stuff | None, Stuff | None] = (None, None)  # of both splits, where a semantic branch learns them
    metrics: dict[str, float] | None = None  # of the best weights
    report: Report | None = None  # the same at length, in the process that leads
    results: Results | None = None

    @property
    def updates(self) -> Fraction:
        """Optimizer steps an epoch."""
        return _updates(self.splits.train, self.session.recipe, self.options)


def run(options: TrainOptions) -> dict[str, Any]:
    """See `twostage.training.train`."""
    with joined() as processes, ExitStack() as held:
        with processes.one_voice():
            if options.resume is None:
                require_start(options)
            else:
                options = resumed(options, options.resume)
            held.enter_context(reproducible(options.deterministic))
            splits = open_splits(options)
            session = _session(options, splits.train, processes)
            if session.model.knows_masks:
                require_masks(splits, options.on_error)
            stuff = _stuff(splits, session.model)
            if options.resume is None:
                # A resumed run does not read the weights again, which say how much is frozen, and may be on another
                # device, or with other processes that share a batch.
                recipe = session.recipe
                options = replace(options, freeze=recipe.freeze, precision=recipe.precision, batch=recipe.batch)
        folder = RunFolder(processes.led(lambda: _claimed_folder(options, held)), writes=processes.leads)
        with processes.one_voice():
            _begin_or_go_on(options, splits, session, folder)
        session.learner = processes.learner(session.model)
        with processes.one_voice():
            given = _given(options, splits, session.model.fields)
        one = Run(options, splits, session, folder, _workers(session, options), given, stuff)
        if session.device.type == "cpu":
            keep_freed()
        _learn(one)
        return _finish(one)


def _claimed_folder(options: TrainOptions, held: ExitStack) -> Path:
    folder = RunFolder.create(options) if options.resume is None else RunFolder.existing(options.resume)
    held.enter_context(claimed(folder.state.parent))
    return folder.path


def _begin_or_go_on(options: TrainOptions, splits: Splits, session: Session, folder: RunFolder) -> None:
    if options.resume is None:
        folder.begin(options, session.processes.world)
        folder.save_last(options.model, session, splits.train.names)  # from here on it can be resumed
    else:
        session.progress, scaler = load_state(folder.state, session.model, session.optimizer, session.average)
        session.scaler.load_state_dict(scaler)
        require_same_images(session.progress, splits.train)
        folder.go_on(session.progress)


def _given(
    options: TrainOptions, splits: Splits, fields: Fields
) -> tuple[PrecomputedProposals | None, PrecomputedProposals | None]:
    """Proposals of the training and of the validation split, from a file or computed; None where the model proposes."""
    if not {"head", "boxes"} & set(options.learn):
        return None, None
    read = None if options.proposals is None else partial(read_proposals, options.proposals)
    if options.proposals is not None and splits.val is not None:
        require_distinct_splits(options.proposals, splits.train, splits.val)
    found: list[PrecomputedProposals | None] = []
    for split, keep in ((splits.train, fields.rpn_keep_train), (splits.val, fields.rpn_keep_test)):
        if split is None:
            found.append(None)
            continue
        with images_bar(f"proposals, {split.split}", quiet=options.quiet) as after_image:
            found.append(of_split(split, fields, read, count=keep, after_image=after_image))
    return found[0], found[1]


def _stuff(splits: Splits, model: TwoStage) -> tuple[Stuff | None, Stuff | None]:
    """The maps of stuff of both splits. Raises DataError where a model that learns them has none."""
    fields = model.fields
    if "head" not in model.learns or not isinstance(fields.semantic_classes, int) or not fields.semantic_classes:
        return None, None
    found = [None if split is None else find_stuff(split) for split in (splits.train, splits.val)]
    for split, stuff in zip(splits, found, strict=False):
        if split is not None and stuff is not None and stuff.classes > fields.semantic_classes:
            raise DataError(
                f"{split.root}: the maps of stuff tell {stuff.classes} classes apart, the model "
                f"{fields.semantic_classes}. Leave semantic_classes out, and the data says how many."
            )
        if split is not None and stuff is None:
            raise DataError(
                f"{split.root}: the split {split.split!r} has no maps of stuff, which this model's semantic branch "
                "learns. Bring them, or leave the branch out by --set model.semantic_classes=0."
            )
    return found[0], found[1]


def _workers(session: Session, options: TrainOptions) -> int:
    if options.workers is not None:
        return options.workers
    return default_workers(on_cpu=session.device.type == "cpu", sharing=session.processes.local_world)


def _updates(train: Dataset, recipe: Recipe, options: TrainOptions) -> Fraction:
    """Optimizer steps an epoch; no whole number where accumulated batches reach into the next one."""
    return Fraction(steps_per_epoch(len(train), recipe.batch), options.accumulate)


def _session(options: TrainOptions, train: Dataset, processes: Processes) -> Session:
    device = processes.device(options.device)
    require_precision(device, options.precision or "fp32")  # an impossible one is said before anything is written
    model, loaded = starting_model(options, train.names, partial(find_stuff, train))
    recipe = resolve(
        options,
        RECIPES[model.fields.recipe],
        pretrained=whole_stages(model, loaded),
        bf16=has_bf16(device),
        processes=processes.world,
    )
    total = None if options.minutes else ceil(recipe.epochs * _updates(train, recipe, options))
    if total is not None and options.warmup is None:
        recipe = replace(recipe, warmup=min(recipe.warmup, total // 10))  # short runs would never reach the rate
    freeze(model, recipe.freeze)
    only(model, options.learn)
    if options.proposals is not None and not model.second.has_losses:
        raise UsageError(f"proposals: {options.model} has one stage, which takes none: leave them out")
    if options.proposals is not None and model.rpn is not None and "rpn" not in options.learn:
        log.info("The model's own network does not learn to propose: to predict, it must have learned before.")
    model = model.to(device).to(memory_format=torch.channels_last)
    return Session(
        model=model,
        learner=model,
        optimizer=build_optimizer(model, recipe),
        average=Average(model, recipe.ema) if recipe.ema else None,
        scaler=torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16"),
        recipe=recipe,
        progress=Progress(total=total, images=len(train)),
        dataset=train,
        device=device,
        accumulate=options.accumulate,
        seed=options.seed,
        budget=None if options.minutes is None else 60 * options.minutes,
        stop=threading.Event(),
        processes=processes,
    )


def _learn(run: Run) -> None:
    """Epochs until the end, early stopping or Ctrl-C; each ends with a line, some with a validation."""
    session, options, progress = run.session, run.options, run.session.progress
    fields, recipe = session.model.fields, session.recipe
    names = run.splits.train.names
    batches = training_batches(
        run.splits.train,
        resize=fields.resizing,
        augment=Augment(
            flip=recipe.flip,
            vertical_flip=recipe.vertical_flip,
            scale=recipe.scale,
            crop=recipe.crop,
            colour=recipe.colour,
            beyond=fields.mean,
        ),
        batch=recipe.batch,
        seed=options.seed,
        start=progress.step * options.accumulate,
        workers=run.workers,
        divisor=fields.divisor,
        rank=session.processes.rank,
        world=session.processes.world,
        pin=session.device.type == "cuda",
        proposals=run.given[0],
        masks=session.model.knows_masks,
        stuff=run.stuff[0],
    )
    drawn = run.folder.with_picture(batches, names)
    quiet = options.quiet or not session.processes.leads
    with stopping_gently(session.stop), progress_bar(quiet=quiet) as after_step:
        if _epoch_to_end(run):
            _end_epoch(run)  # the run was stopped within the validation
        while not _over(run):
            epoch_end = ceil((progress.step // run.updates + 1) * run.updates)
            try:
                train_until(session, drawn, epoch_end, after_step)
            except (DataError, SystemExit):  # a picture, here or elsewhere, that cannot be read: the step has not begun
                run.folder.save_last(options.model, session, names)
                log.warning("Saved. When that is mended, go on with: twostage train --resume %s", run.folder.path)
                raise
            if _epoch_to_end(run):
                _end_epoch(run)
            else:
                run.folder.save_last(options.model, session, names)
            if session.processes.any(session.stop.is_set()):
                log.warning("Stopped and saved. Go on with: twostage train --resume %s", run.folder.path)
                session.processes.end(KeyboardInterrupt())


def _epochs(run: Run) -> int:
    """Passes over the data that have ended, or have begun where the run is over."""
    whole = int(run.session.progress.step // run.updates)
    return max(1, whole if ceil(whole * run.updates) == run.session.progress.step else whole + 1)


def _epoch_to_end(run: Run) -> bool:
    """Whether the last step was the last of an epoch, whose row is not written."""
    progress, updates = run.session.progress, run.updates
    last = _finished(progress) or progress.step == ceil(progress.step // updates * updates)
    return last and progress.summed > 0


def _over(run: Run) -> bool:
    patience = run.options.patience
    return _finished(run.session.progress) or bool(patience and run.session.progress.validations_since_best >= patience)


def _finished(progress: Progress) -> bool:
    return progress.total is not None and progress.step >= progress.total


def _end_epoch(run: Run) -> None:
    """A row of metrics.csv; validation where it is due, and always at the end; the state to go on from."""
    progress = run.session.progress
    row: dict[str, Any] = {
        "epoch": _epochs(run),
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
        "lr": progress.lr,
    }
    means = {name: value / max(1, progress.summed) for name, value in progress.losses.items()}
    row["train_loss"] = sum(means.values())
    row |= {f"train_loss_{name}": value for name, value in means.items()}
    if run.splits.val is not None and (_finished(progress) or _due(run, row["epoch"])):
        # A validation may take long: what was learned is kept, should it not come to its end.
        run.folder.save_last(run.options.model, run.session, run.splits.train.names)
        row |= _validate(run)
    progress.losses, progress.summed = {}, 0
    run.folder.add_row(row)
    total = "" if progress.total is None else f" of {progress.total}"
    scores = (
        f", validation loss {row['val_loss']:.3f}, AP {row['AP']:.3f}, AP50 {row['AP50']:.3f}" if "AP" in row else ""
    )
    if "segm_AP" in row:
        scores += f", masks AP {row['segm_AP']:.3f}, AP50 {row['segm_AP50']:.3f}"
    log.info("epoch %d, step %d%s: loss %.3f%s", row["epoch"], progress.step, total, row["train_loss"], scores)
    run.folder.save_last(run.options.model, run.session, run.splits.train.names)


def _due(run: Run, epoch: int) -> bool:
    """Every `eval_every` epochs; by default so that a run is validated about `recipe.validations` times."""
    if run.options.eval_every is not None:
        return epoch % run.options.eval_every == 0
    total = run.session.progress.total
    if total is None:
        return False  # the length of the run is not known yet
    return epoch % max(1, round(total / run.updates / run.session.recipe.validations)) == 0


def _validate(run: Run) -> dict[str, float]:
    """Validation losses and numbers; the weights are kept as best where AP rose, or has no value.

    With masks it is the mean of the boxes' and the masks' AP that must rise.
    """
    progress = run.session.progress
    report, results, metrics, losses = _score(run)
    quality = (metrics["AP"] + metrics.get("segm_AP", metrics["AP"])) / 2
    if metrics["AP"] < 0:
        log.warning("AP has no value: the validation split has no object that counts. The newest weights are kept.")
    # Where what tells classes does not learn, its numbers choose nothing.
    tell = {"head", "boxes"} if run.session.model.second.has_losses else {"rpn"}
    newest = metrics["AP"] < 0 or not tell & set(run.options.learn)
    if quality > progress.best or newest:
        progress.best, progress.validations_since_best = quality, 0
        run.metrics, run.report, run.results = metrics, report, results
        run.folder.save_best(run.options.model, run.session, run.splits.train.names, metrics)
    else:
        progress.validations_since_best += 1
    return {"val_loss": sum(losses.values()), **{f"val_loss_{name}": v for name, v in losses.items()}, **metrics}


def _score(run: Run) -> tuple[Report | None, Results, dict[str, float], dict[str, float]]:
    """The report where this process leads, the detections there, and to all the metrics and the mean losses."""
    options, splits, processes = run.options, run.splits, run.session.processes
    assert splits.val is not None
    assert splits.truth is not None
    report, results, losses = validate(
        run.session.evaluated,
        splits.val,
        splits.truth,
        conf=options.conf,
        iou=options.iou,
        max_det=options.max_det,
        batch=run.session.recipe.batch,
        workers=run.workers,
        processes=processes,
        proposals=run.given[1],
        stuff=run.stuff[1],
    )
    return report, results, *processes.share((report.metrics if report else {}, losses))


def _finish(run: Run) -> dict[str, Any]:
    """Plots and pictures of the best weights."""
    progress, folder, val = run.session.progress, run.folder, run.splits.val
    if val is not None and run.metrics is None:
        # A resumed run whose best weights are from before it stopped.
        load_all(run.session.evaluated, load_weights(folder.best)[1], str(folder.best))
        run.report, run.results, run.metrics, _ = _score(run)
    folder.draw(run.splits.train, val, run.report, run.results)
    return {
        "out": str(folder.path),
        "weights": str(folder.last if val is None else folder.best),
        "epochs": _epochs(run),
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "metrics": run.metrics or {},
    }
