"""Killed at any moment, a run goes on and ends as if nothing had been; and no two runs write into one folder."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from twostage.data import dataset
from twostage.errors import DataError, MissingError, TwostageError, UsageError
from twostage.folders import claimed
from twostage.run_config import to_yaml
from twostage.training import TrainOptions, run, step, train
from twostage.training.folder import RunFolder

pytestmark = pytest.mark.slow


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, Path(__file__).with_name("undrawn.py"), "train", *map(str, arguments), "--quiet"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)


def rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def kill_after(process: subprocess.Popen[bytes], folder: Path, epochs: int) -> None:
    """As soon as so many epochs are written: within the writing of the rest, or in the steps after it."""
    while len(rows(folder)) < epochs:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups to kill")
def test_a_killed_run_ends_as_an_unbroken_one(options: TrainOptions, tmp_path: Path) -> None:
    options = replace(options, epochs=4, eval_every=1, batch=2, accumulate=2, precision="bf16", workers=1)
    whole = Path(train(options)["out"])
    (tmp_path / "options.yaml").write_text(to_yaml(options))
    broken = tmp_path / "broken"
    kill_after(start("--config", tmp_path / "options.yaml", "--out", broken), broken, epochs=1)
    kill_after(start("--resume", broken), broken, epochs=2)
    last = start("--resume", broken)
    assert last.wait() == 0, last.communicate()[1].decode()
    assert rows(broken) == rows(whole)
    for name in ("best", "last"):
        one, other = (load_file(folder / "weights" / f"{name}.safetensors") for folder in (whole, broken))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not list(broken.rglob(".*"))


def test_an_image_that_vanishes_costs_no_step(
    options: TrainOptions,
    unbroken: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = replace(options, batch=2, epochs=1)
    whole = Path(unbroken(options)["out"])
    read, steps = dataset.read_image, []

    def vanishing(path: str) -> object:
        steps.append(path)
        if len(steps) == 6:
            raise DataError(f"{path}: does not exist")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "read_image", vanishing)
        with pytest.raises(DataError, match="does not exist"):
            train(options)
    assert f"continue with: twostage train --resume {options.out}" in caplog.text
    state = options.out / "state" / "state.safetensors"
    with safe_open(state, "pt") as file:
        assert json.loads(file.metadata()["twostage-state"])["progress"]["step"] == 2
    train(TrainOptions(resume=options.out, quiet=True))
    assert rows(options.out) == rows(whole)


def test_long_epochs_are_saved_within(
    options: TrainOptions, unbroken: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(unbroken(options)["out"])
    clock, saved = itertools.count(step=400.0), []
    monkeypatch.setattr(step, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(RunFolder, "save_last", lambda *given: saved.append(given[1].progress.step))
    train(options)
    assert saved == [0, 1, 2, 2, 3, 4, 4]  # an epoch's last step before its validation too
    assert rows(options.out) == rows(whole)


@pytest.mark.parametrize(("seconds", "expected"), [(600, [0, 8]), (0, [0, 2, 4, 6, 8])])
def test_short_epochs_share_a_save(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: list[int]
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(run, "SAVE_AFTER", seconds)
    monkeypatch.setattr(RunFolder, "save_last", lambda *given: saved.append(given[1].progress.step))
    train(replace(options, epochs=4, val_split="none"))
    assert saved == expected


def test_killed_before_the_first_step(
    options: TrainOptions, unbroken: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there from the beginning is enough to go on from."""
    whole = Path(unbroken(options)["out"])

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("twostage.training.run._learn", killed)
        with pytest.raises(SystemExit):
            train(options)
    assert (options.out / "state" / "state.safetensors").exists()
    train(TrainOptions(resume=options.out, quiet=True))
    assert rows(options.out) == rows(whole)


def test_killed_before_anything_was_kept(options: TrainOptions) -> None:
    options.out.mkdir()
    (options.out / "config.yaml").write_text(to_yaml(options))
    with pytest.raises(MissingError, match=r"before its first step: twostage train --config .*config\.yaml"):
        train(TrainOptions(resume=options.out, quiet=True))


def test_what_a_killed_writer_left_goes(options: TrainOptions) -> None:
    train(replace(options, epochs=1))
    beside = options.out / "state" / ".state.safetensors.abcd1234.part"
    beside.mkdir()
    (beside / ".tmpAbCdEf").write_bytes(b"half")  # so safetensors names its temporary file
    (options.out / ".mine.markdown").write_text("kept")
    train(TrainOptions(resume=options.out, quiet=True))
    assert not beside.exists()
    assert (options.out / ".mine.markdown").exists()


def test_two_runs_do_not_meet(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twostage.folders._PATIENCE", 0.1)
    train(replace(options, epochs=1))
    before = rows(options.out)
    with claimed(options.out / "state"), pytest.raises(UsageError, match="another run is writing there"):
        train(TrainOptions(resume=options.out, quiet=True))
    assert rows(options.out) == before
    train(TrainOptions(resume=options.out, quiet=True))


def test_a_folder_taken_at_the_same_moment_stays_as_it_is(options: TrainOptions, tmp_path: Path) -> None:
    """Both saw it empty; the second comes when the first has begun."""
    from twostage.training.folder import RunFolder

    first, second = RunFolder.create(options), RunFolder.create(options)
    first.begin(options)
    with pytest.raises(UsageError, match="another run has begun there"):
        second.begin(replace(options, epochs=7))
    assert "epochs: 2" in (options.out / "config.yaml").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of file size")
def test_a_full_disk_keeps_the_last_state(options: TrainOptions, unbroken: Callable, tmp_path: Path) -> None:
    import resource

    options = replace(options, epochs=3, eval_every=1)
    whole = Path(unbroken(options)["out"])
    stop_in_epoch(options, 2)
    kept = (options.out / "state" / "state.safetensors").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(TwostageError, match=r"weights.*safetensors: cannot be written: File too large"):
            train(TrainOptions(resume=options.out, quiet=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (options.out / "state" / "state.safetensors").read_bytes() == kept
    train(TrainOptions(resume=options.out, quiet=True))
    assert rows(options.out) == rows(whole)


def stop_in_epoch(options: TrainOptions, epoch: int) -> None:
    """Ctrl-C, as it were, when so many epochs have ended."""
    with pytest.MonkeyPatch.context() as patch:
        end = run._end_epoch

        def stopping(one: run.Run) -> None:
            end(one)
            if one.session.progress.step >= 2 * epoch:
                one.session.stop.set()

        patch.setattr(run, "_end_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(options)
