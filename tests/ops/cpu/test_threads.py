"""Waiting threads spin on an idle machine and sleep on a busy one: idle teams are held while others take cores."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from twostage.ops.cpu import threads


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The cores that other programs use, as the code under test sees them; a second passes at each look."""
    used, clock, total = [0.0], [0.0], [0.0]

    def look(cores: set[int]) -> tuple[float, float]:
        clock[0] += 1
        total[0] += used[0]
        return clock[0], total[0]

    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_load", look)
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock[0] + 1)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads, "_known", {})
    return used


def held() -> int:
    return sum(thread.name.startswith("twostage idle team") for thread in threading.enumerate())


@pytest.mark.skipif(not threads._STAT.exists(), reason="the load is read from /proc/stat")
def test_teams_are_held_while_other_programs_take_cores(load: list[float]) -> None:
    threads.adapt_to_load()
    assert held() == 0
    load[0] = 0.9
    threads.adapt_to_load()
    assert held() >= 1
    count = held()
    threads.adapt_to_load()
    assert held() == count
    load[0] = 0.1
    threads.adapt_to_load()
    for thread in threading.enumerate():
        if thread.name.startswith("twostage idle team"):
            thread.join(timeout=10)
    assert held() == 0


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_a_policy_of_the_users_own_stays(name: str, load: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    load[0] = 2.0
    threads.adapt_to_load()
    threads.adapt_to_load()
    assert held() == 0


@pytest.mark.skipif(not hasattr(threads.os, "sysconf"), reason="ticks are Unix's")
def test_the_load_is_that_of_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc/stat counts ticks: user, nice, system, idle, waiting for a disk, interrupts, and what a host took away."""
    ticks = threads.os.sysconf("SC_CLK_TCK")
    used = [[3, 1, 1, 60, 5, 0.5, 0.25, 0.25, 3, 0], [2, 0, 1, 40, 5, 0, 0, 0, 0, 0], [50, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
    names = ["cpu0", "cpu1", "cpu2"]
    rows = [f"{name} {' '.join(str(int(s * ticks)) for s in row)}" for name, row in zip(names, used, strict=True)]
    (tmp_path / "stat").write_text("\n".join(["cpu  7 7 7 7 7 7 7 7 7 7", *rows, "intr 5"]))
    monkeypatch.setattr(threads, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(threads.os, "times", lambda: SimpleNamespace(user=3.0, system=1.0))
    assert threads._load({0, 1})[1] == pytest.approx(5)  # cpu2 is none of this process
    assert threads._load({9})[1] == pytest.approx((8 * 7 - 14) / ticks - 4)  # numbered anew: of all


def test_another_number_of_threads_ends_the_teams(load: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    if not threads._STAT.exists():
        pytest.skip("the load is read from /proc/stat")
    threads.adapt_to_load()
    load[0] = 0.9
    threads.adapt_to_load()
    assert held() >= 1
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 1)
    threads.adapt_to_load()
    for thread in threading.enumerate():
        if thread.name.startswith("twostage idle team"):
            thread.join(timeout=10)
    assert held() == 0


def test_where_no_more_threads_are_allowed_nothing_is_held(load: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads.adapt_to_load()
    load[0] = 0.9
    monkeypatch.setattr(threading.Thread, "start", refuse)
    threads.adapt_to_load()
    threads.adapt_to_load()
    assert held() == 0


def test_a_container_that_hides_the_load_is_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_known", {})
    monkeypatch.setattr(threads, "_STAT", tmp_path)
    threads.adapt_to_load()
    (tmp_path / "stat").write_text("cpu 1\n")
    monkeypatch.setattr(threads, "_known", {})
    monkeypatch.setattr(threads, "_STAT", tmp_path / "stat")
    threads.adapt_to_load()
    assert held() == 0
