"""The run folder: everything that a run writes, each file complete or not there at all."""

import csv
import io
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from twostage.atomic import sweep, write_text
from twostage.data.dataset import Dataset
from twostage.data.loader import Loaded
from twostage.environment import environment
from twostage.errors import DataError, MissingError, TwostageError, UsageError
from twostage.evaluation.plots import plot_history, plot_labels, save_figure
from twostage.folders import claimed, new_folder, next_folder
from twostage.models.backbones.provided import ProvidedConfig
from twostage.run_config import CONFIG, read_config, resumed, to_yaml
from twostage.shell import command
from twostage.training.images import save_predictions, save_training_batch
from twostage.training.options import TrainOptions
from twostage.training.recipe import recipe_name
from twostage.training.state import Progress, save_state
from twostage.training.step import Session
from twostage.training.validate import Validation
from twostage.weights.file import Card, save_weights

log = logging.getLogger("twostage.training")

# Where a run computes and where its data lie do not change its result.
FREE = ("data", "images", "proposals", "device", "workers", "quiet", "offline", "resume")


class RunFolder:
    """Where a run writes. `path` holds config.yaml, env.json, metrics.csv, plots, images, `weights` and `state`.

    Of several processes one `writes`; the others' calls leave the folder as it is.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.best = path / "weights" / "best.safetensors"
        self.last = path / "weights" / "last.safetensors"
        self.state = path / "state" / "state.safetensors"
        self.rows: list[dict[str, Any]] = []

    @classmethod
    def create(cls, options: TrainOptions) -> "RunFolder":
        """A new folder; one with anything in it is never written to. Raises UsageError."""
        if options.out is not None:
            return cls(new_folder(options.out, "--out"))
        return cls(next_folder(Path("runs") / "train", options.model))

    @classmethod
    def existing(cls, path: Path) -> "RunFolder":
        """The folder of a run to go on with. Raises MissingError when it holds no state."""
        folder = cls(path)
        if not folder.state.exists():
            config = path / CONFIG
            again = command("twostage", "train", "--config", config)
            again = f" It stopped before its first step: {again}" if config.exists() else ""
            raise MissingError(f"{path}: no run to resume: {folder.state} does not exist.{again}")
        return folder

    def begin(self, options: TrainOptions, processes: int = 1) -> None:
        """Write the run's options and environment. Raises UsageError where another run has started here meanwhile."""
        if not self.writes:
            return
        if (self.path / CONFIG).exists():
            raise UsageError(f"{self.path}: another run has begun there just now. Choose a new folder.")
        write_text(self.path / CONFIG, to_yaml(options))
        write_text(self.path / "env.json", json.dumps(environment() | {"processes": processes}, indent=2) + "\n")

    def resume(self, progress: Progress) -> None:
        """Drop the rows behind this state, and the temporary files of a killed writer."""
        if self.writes:
            sweep(self.path)
        path = self.path / "metrics.csv"
        if path.exists():  # not when the run stopped within the first epoch
            with path.open(newline="", encoding="utf-8") as file:
                # Where losses are still being summed, the row of this step is yet to be written.
                last = progress.step - bool(progress.summed)
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= last]

    def add_row(self, row: dict[str, float]) -> None:
        """A row of metrics.csv."""
        self.rows.append(row)
        if not self.writes:
            return
        names = list(dict.fromkeys(name for one in self.rows for name in one))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path / "metrics.csv", text.getvalue())

    def save_last(self, session: Session) -> None:
        """The newest weights, and the state to go on from them."""
        if not self.writes:
            return
        self._save_weights(self.last, session)
        save_state(
            self.state,
            session.model,
            session.optimizer,
            session.ema,
            session.progress,
            session.scaler.state_dict(),
        )

    def save_best(self, session: Session, val: Dataset, metrics: dict[str, float], *, chosen: bool) -> None:
        """The weights with the highest AP so far on the validation split, or the newest where AP has not `chosen`."""
        if self.writes:
            measured = f"on {len(val)} images of {val.split}"
            if val.split == session.dataset.split:  # a part of it
                measured += " that were not learned from"
            if chosen:
                measured += ", by which these weights were chosen"
            self._save_weights(self.best, session, {"metrics": measured}, metrics)

    def with_picture(self, batches: Iterator[Loaded], names: tuple[str, ...]) -> Iterator[Loaded]:
        """The same batches; the first is also drawn, with the targets of the model."""
        for loaded in batches:
            path = self.path / "train_batch.jpg"
            if self.writes and not path.exists():
                save_training_batch(path, loaded.batch, loaded.targets, names)
            yield loaded

    def draw(self, train: Dataset, val: Dataset | None, best: Validation | None) -> None:
        """The plots and images of a finished run: loss.png, labels.png, pr.png, confusion.png, predictions/."""
        if not self.writes:
            return
        save_figure(plot_history(self.rows), self.path / "loss.png")
        if val is not None and best is not None and best.report is not None:
            best.report.write_plots(self.path)
            write_text(self.path / "report.txt", best.report.table() + "\n")
            save_predictions(self.path / "predictions", val, best.results)
        save_figure(plot_labels(train), self.path / "labels.png")

    def _save_weights(
        self, path: Path, session: Session, of_metrics: Mapping[str, str] = {}, metrics: Mapping[str, float] = {}
    ) -> None:
        kept = session.evaluated
        names, licence, origin = session.dataset.names, session.licence, {**_origin(session), **of_metrics}
        save_weights(
            path, kept.state_dict(), Card(session.options.model, names, kept.config, metrics, licence, origin=origin)
        )


def started_from(session: Session) -> str:
    """The initial weights: of a file, of the backbone's module that a Python caller gave, or random."""
    weights, backbone = session.options.initial_weights, session.model.config.backbone
    if weights is not None:
        return Path(weights).name
    return f"the module's own weights, {backbone.name}" if isinstance(backbone, ProvidedConfig) else "random weights"


def _origin(session: Session) -> dict[str, Any]:
    """Where the weights of a run come from."""
    options, data, recipe = session.options, session.dataset, session.recipe
    return {
        "made by": "twostage train",
        "data": data.root.name,
        "split": data.split,
        "images": len(data),
        "objects": len(data.boxes),
        "started from": started_from(session),
        "recipe": recipe_name(options),
        "optimizer": f"{recipe.optimizer}, learning rate {recipe.lr:g}, {recipe.batch} images per step",
        "steps": session.progress.step,
        "seed": options.seed,
    }


@contextmanager
def naming_resume(command: str) -> Iterator[None]:
    """Where Ctrl-C ends what is inside, log the command that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        log.warning("Continue with: %s", command)
        raise


def claimed_root(options: TrainOptions, held: ExitStack) -> Path:
    """The folder of a training of several runs, locked by this process, with the options of all.

    Where an error ends the training before its first run has begun, it is removed, and its name is free again.
    """
    folder = RunFolder.create(options) if options.resume is None else RunFolder(options.resume)
    lock = held.enter_context(ExitStack())
    lock.enter_context(claimed(folder.state.parent))
    if options.resume is None:
        folder.begin(options)
        held.push(partial(_remove_unbegun, folder.path, lock))
    return folder.path


def _remove_unbegun(root: Path, lock: ExitStack, kind: type[BaseException] | None, *_: object) -> None:
    """Remove the folder of a training that an error has ended before any of its runs has a state."""
    if kind is None or not issubclass(kind, TwostageError) or any(root.glob("*/state/*.safetensors")):
        return
    lock.close()  # Windows does not remove files that are open
    shutil.rmtree(root, ignore_errors=True)


def read_options(folder: Path) -> TrainOptions:
    """The options of a run, from its config.yaml. Raises MissingError or DataError."""
    options = read_config(TrainOptions, folder)
    # Runs of earlier versions have the recipe and the seed of proposals among the model's fields.
    fields = {name: value for name, value in options.model_fields.items() if name not in ("recipe", "proposals_seed")}
    return replace(options, model_fields=fields, recipe=options.recipe or options.model_fields.get("recipe"))


def resumed_options(options: TrainOptions, folder: Path) -> TrainOptions:
    """The options of the run in `folder`, with those given now. Raises UsageError for one that would change it."""
    last = RunFolder(folder).last  # which a training of several runs does not have
    otherwise = f"begin a new run with {command('--weights', last)}" if last.exists() else "begin a new run"
    return resumed(options, read_options(folder), FREE, otherwise)


def require_same_images(progress: Progress, train: Dataset) -> None:
    """Raises DataError where the split has not as many images as when the run was stopped."""
    if progress.images != len(train):
        raise DataError(
            f"{train.root}: the split {train.split!r} has {len(train)} images now, and had {progress.images} when the "
            "run was stopped. Bring the data back, or begin a new run with the weights of this one."
        )
