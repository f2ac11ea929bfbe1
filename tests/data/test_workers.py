"""How many processes read images."""

import os

import pytest

from twostage.data.workers import default_workers


@pytest.mark.parametrize(
    ("cores", "on_cpu", "workers"),
    [(1, True, 0), (2, True, 0), (8, True, 2), (1, False, 1), (2, False, 1), (64, False, 8)],
)
def test_readers_leave_cores_to_the_model(
    monkeypatch: pytest.MonkeyPatch, cores: int, on_cpu: bool, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert default_workers(on_cpu=on_cpu) == workers
