"""The batch of a run with a time budget follows the speed of the machine."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from twostage.data.scenes import write_scenes
from twostage.training import TrainOptions, train
from twostage.training.batch_size import ENOUGH, batch_for, for_short_run
from twostage.training.recipe import FINETUNE, SCRATCH


def test_a_budget_of_too_few_steps_has_smaller_batches() -> None:
    assert batch_for(SCRATCH, 100.0, 100.0 / ENOUGH) == SCRATCH.batch
    assert batch_for(SCRATCH, 100.0, 101.0 / ENOUGH) == SCRATCH.batch // 2
    assert batch_for(SCRATCH, 100.0, 201.0 / ENOUGH) == SCRATCH.batch // 4
    assert batch_for(SCRATCH, 100.0, 100.0) == SCRATCH.least_batch
    assert batch_for(SCRATCH, 100.0, 1.0, processes=3) == 3
    assert batch_for(SCRATCH, 100.0, 100.0, processes=8) == 8
    assert batch_for(FINETUNE, 1.0, 100.0) == FINETUNE.batch


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("batch") / "scenes", train=16, val=2, seed=0)


def options(scenes: Path, out: Path) -> TrainOptions:
    return TrainOptions(
        scenes,
        out=out,
        model="faster_rcnn_tiny_fpn",
        size=64,
        minutes=0.01,
        val_split="none",
        workers=0,
        device="cpu",
        quiet=True,
    )


def test_a_short_run_has_the_small_batch_and_its_rate(scenes: Path, tmp_path: Path) -> None:
    chosen = train(options(scenes, tmp_path / "short"))
    config = yaml.safe_load((tmp_path / "short" / "config.yaml").read_text(encoding="utf-8"))
    assert config["batch"] == SCRATCH.least_batch
    assert config["scale"] == [1.0, 1.0]
    assert config.get("lr") is None
    assert chosen["steps"] >= 1


def test_rate_and_scale_follow_unless_they_are_given() -> None:
    short = for_short_run(SCRATCH, 2, TrainOptions(Path("data")))
    assert short == replace(SCRATCH, batch=2, lr=SCRATCH.lr / 4, scale=(1.0, 1.0))
    given = for_short_run(SCRATCH, 2, TrainOptions(Path("data"), lr=SCRATCH.lr, scale=(0.5, 2.0)))
    assert given == replace(SCRATCH, batch=2, scale=(0.5, 2.0))


def test_a_given_batch_stays(scenes: Path, tmp_path: Path) -> None:
    train(replace(options(scenes, tmp_path / "given"), batch=8))
    config = yaml.safe_load((tmp_path / "given" / "config.yaml").read_text(encoding="utf-8"))
    assert config["batch"] == 8


def test_the_trial_leaves_the_run_as_it_is(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the batch that the trial chooses given, the first weights are the same."""
    weights = []
    for name, batch in (("chosen", None), ("given", SCRATCH.least_batch)):
        torch.manual_seed(int(name == "given"))
        given = {} if batch is None else {"batch": batch, "scale": (1.0, 1.0)}
        train(replace(options(scenes, tmp_path / name), minutes=1e-6, **given))
        weights.append((tmp_path / name / "weights" / "last.safetensors").read_bytes())
    assert weights[0] == weights[1]
