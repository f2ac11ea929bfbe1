"""Many steps in a row: how a time budget becomes a number of them."""

import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectors import make_model

from twostage.data.recognise import open_dataset
from twostage.distributed import SINGLE_PROCESS, Processes
from twostage.training import TrainOptions, step
from twostage.training.optimiser import backbone_stages, freeze
from twostage.training.recipe import SCRATCH, Recipe
from twostage.training.state import Progress
from twostage.training.step import Session, stopping_gently, train_until


@pytest.mark.parametrize(("early", "late"), [(0.2, 0.2), (0.2, 0.15), (0.15, 0.2)])
def test_time_budget_is_met_though_steps_change(
    monkeypatch: pytest.MonkeyPatch, scenes: Path, early: float, late: float
) -> None:
    spent = seconds_of_run(monkeypatch, scenes, SCRATCH, lambda session: early if session.progress.step < 60 else late)
    assert spent == pytest.approx(100, abs=3)


@pytest.mark.parametrize("unfreeze", [0.1, 0.5, 0.9, 1.0])
def test_time_budget_is_met_though_the_backbone_makes_steps_slower(
    monkeypatch: pytest.MonkeyPatch, scenes: Path, unfreeze: float
) -> None:
    """Three times as slow, from the share of the time on at which it is trained."""
    held = []

    def seconds(session: Session) -> float:
        held.append(session.holds_backbone)
        return 0.2 if session.holds_backbone else 0.6

    spent = seconds_of_run(monkeypatch, scenes, replace(SCRATCH, unfreeze=unfreeze), seconds)
    assert spent == pytest.approx(100, abs=4)
    assert 0.2 * sum(held) == pytest.approx(100 * unfreeze, abs=4)


def test_the_backbone_is_trained_from_its_share_of_the_steps_on(monkeypatch: pytest.MonkeyPatch, scenes: Path) -> None:
    trained = []

    def quick_step(session: Session, batches: object) -> dict[str, float]:
        stages = [{p.requires_grad for module in stage for p in module.parameters()} for stage in stages_of(session)]
        trained.append(stages)
        return {}

    monkeypatch.setattr(step, "train_step", quick_step)
    session = session_of(scenes, replace(SCRATCH, freeze=1, unfreeze=0.5), minutes=None)
    session.progress.total = 4
    step.hold_or_train_backbone(session)
    train_until(session, iter(()), step=4, after_step=lambda progress: None)
    others = len(stages_of(session)) - 1
    assert trained == [[{False}] * (others + 1)] * 2 + [[{False}, *[{True}] * others]] * 2


def stages_of(session: Session) -> list[list[torch.nn.Module]]:
    return backbone_stages(session.model)


def seconds_of_run(
    monkeypatch: pytest.MonkeyPatch, scenes: Path, recipe: Recipe, seconds: Callable[[Session], float]
) -> float:
    """How long a run of 100 seconds takes with steps of so many."""
    now = 0.0

    def quick_step(session: Session, batches: object) -> dict[str, float]:
        nonlocal now
        now += seconds(session)
        return {}

    monkeypatch.setattr(step, "train_step", quick_step)
    monkeypatch.setattr(step, "time", SimpleNamespace(perf_counter=lambda: now))
    session = session_of(scenes, replace(recipe, warmup=50), minutes=100 / 60)
    train_until(session, iter(()), step=10**6, after_step=lambda progress: None)
    assert session.progress.step == session.progress.total
    return now


def session_of(scenes: Path, recipe: Recipe, *, minutes: float | None) -> Session:
    model = make_model("faster_rcnn_tiny_fpn", 1)
    freeze(model, recipe.freeze)
    return Session(
        options=TrainOptions(scenes, minutes=minutes),
        model=model,
        ddp_model=model,
        optimizer=torch.optim.SGD([torch.zeros(1)]),
        ema=None,
        scaler=None,
        recipe=recipe,
        progress=Progress(),
        dataset=open_dataset(scenes, split="train"),
        repeats=None,
        device=torch.device("cpu"),
        stop=threading.Event(),
        processes=SINGLE_PROCESS,
    )


@pytest.mark.parametrize("world", [1, 2])
def test_sigterm_after_an_error_cannot_cut_its_message_short(world: int) -> None:
    """torchrun sends it to the other processes once one has failed."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(ValueError, match="lost"), stopping_gently(threading.Event(), Processes(0, world)):
            raise ValueError("lost")
        assert signal.getsignal(signal.SIGTERM) == (before if world == 1 else signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGTERM, before)
