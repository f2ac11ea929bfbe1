"""Many steps in a row: how a time budget becomes a number of them."""

import signal
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectors import make_model

from twostage.data.recognise import open_dataset
from twostage.distributed import SINGLE_PROCESS, Processes
from twostage.training import TrainOptions, step
from twostage.training.recipe import SCRATCH
from twostage.training.state import Progress
from twostage.training.step import Session, stopping_gently, train_until


@pytest.mark.parametrize(("early", "late"), [(0.2, 0.2), (0.2, 0.15), (0.15, 0.2)])
def test_time_budget_is_met_though_steps_change(
    monkeypatch: pytest.MonkeyPatch, scenes: Path, early: float, late: float
) -> None:
    now = 0.0

    def quick_step(session: Session, batches: object) -> dict[str, float]:
        nonlocal now
        now += early if session.progress.step < 60 else late
        return {}

    monkeypatch.setattr(step, "train_step", quick_step)
    monkeypatch.setattr(step, "time", SimpleNamespace(perf_counter=lambda: now))
    session = Session(
        options=TrainOptions(scenes, minutes=100 / 60),
        model=(model := make_model("faster_rcnn_tiny_fpn", 1)),
        ddp_model=model,
        optimizer=torch.optim.SGD([torch.zeros(1)]),
        ema=None,
        scaler=None,
        recipe=replace(SCRATCH, warmup=50),
        progress=Progress(),
        dataset=open_dataset(scenes, split="train"),
        repeats=None,
        device=torch.device("cpu"),
        stop=threading.Event(),
        processes=SINGLE_PROCESS,
        licence="",
    )
    train_until(session, iter(()), step=10**6, after_step=lambda progress: None)
    assert session.progress.step == session.progress.total
    assert now == pytest.approx(100, abs=3)


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
