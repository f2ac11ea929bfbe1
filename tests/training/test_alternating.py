"""Faster R-CNN's four steps: what each learns, what is shared, how it goes on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from twostage.cli import main
from twostage.data.proposals import read_proposals
from twostage.data.recognise import open_dataset
from twostage.detector import Detector
from twostage.errors import UsageError
from twostage.training import TrainOptions, alternating, train
from twostage.training.alternating import steps

pytestmark = pytest.mark.slow


@pytest.fixture
def options(options: TrainOptions) -> TrainOptions:
    """One epoch a step of the small net with a single map."""
    return replace(options, model="faster_rcnn_tiny", epochs=1, scheme="alternating")


def part(path: Path, name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in load_file(path).items() if key.startswith(name + ".")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a)


def test_the_papers_steps() -> None:
    learned = [(step.learn, step.begins, step.proposals) for step in steps(1)]
    assert learned == [
        (("backbone", "rpn"), None, None),
        (("backbone", "head"), None, "step-1"),
        (("rpn",), "step-2", None),
        (("head",), "step-3", "step-3"),
    ]
    again = list(steps(2))[4:]
    assert [step.begins for step in again] == ["step-4", "step-4", "round-2-step-2", "round-2-step-3"]


def test_both_nets_share_their_convolutions_to_the_last_bit(options: TrainOptions, unbroken: Callable) -> None:
    result = unbroken(options)
    root = Path(result["out"])
    begun, one, two, three = (root / f"step-{k}" / "weights" / "last.safetensors" for k in (1, 1, 2, 3))
    four = Path(result["weights"])
    assert not same(part(one, "backbone"), part(two, "backbone"))  # nothing is shared yet
    assert same(part(two, "backbone"), part(three, "backbone"))
    assert same(part(three, "backbone"), part(four, "backbone"))
    assert same(part(three, "rpn"), part(four, "rpn"))
    assert not same(part(two, "rpn"), part(three, "rpn"))
    assert same(part(two, "head"), part(three, "head"))
    assert not same(part(three, "head"), part(four, "head"))
    assert begun.exists()
    assert result["steps"] == 4 * 2
    assert result["metrics"]["AP"] >= 0
    assert Detector.load(four).model.rpn is not None


def test_proposals_of_step_three_are_those_of_the_final_detector(options: TrainOptions, unbroken: Callable) -> None:
    """So that the numbers of step 4 are those of the one network that both have become."""
    result = unbroken(options)
    detector = Detector.load(result["weights"])
    val = open_dataset(options.data, split="val")
    read = read_proposals(Path(result["out"]) / "proposals" / "step-3.safetensors", val)
    own = detector.propose_dataset(val)
    torch.testing.assert_close(torch.from_numpy(read.boxes), torch.from_numpy(own.boxes), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("stopped", [1, 2, 3, 4])
def test_a_stopped_training_ends_as_an_unbroken_one(
    options: TrainOptions, unbroken: Callable, tmp_path: Path, stopped: int
) -> None:
    """Stopped between the steps, and within one: after its folder was made and before its result was kept."""
    whole = unbroken(options)
    stop_in(f"step-{stopped}", replace(options, out=tmp_path / "broken"))
    if stopped == 2:  # killed before its first state
        (tmp_path / "broken" / "step-2" / "state" / "state.safetensors").unlink()
    again = train(TrainOptions(resume=tmp_path / "broken", quiet=True))
    assert load_file(again["weights"]).keys() == load_file(whole["weights"]).keys()
    assert all(torch.equal(v, load_file(again["weights"])[k]) for k, v in load_file(whole["weights"]).items())
    assert again["metrics"] == whole["metrics"]


def stop_in(name: str, options: TrainOptions) -> None:
    """Raise KeyboardInterrupt when a step is trained and its result not yet saved."""
    finish = alternating._finish

    def stop(training: alternating.Training, step: alternating.Step, *rest: object) -> None:
        if step.name == name:
            raise KeyboardInterrupt
        finish(training, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alternating, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            train(options)


def test_a_folder_with_a_run_is_never_taken_over(options: TrainOptions, unbroken: Callable) -> None:
    result = unbroken(options)
    before = Path(result["weights"]).read_bytes()
    with pytest.raises(UsageError, match="is not empty"):
        train(replace(options, epochs=2, out=Path(result["out"])))
    assert Path(result["weights"]).read_bytes() == before


def test_it_goes_on_where_the_data_lie_now(options: TrainOptions, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(options.data, moved)
    stop_in("step-2", replace(options, data=moved))
    again, root = tmp_path / "again", tmp_path / "elsewhere"
    moved.rename(again)
    (tmp_path / "run").rename(root)
    result = train(TrainOptions(again, resume=root, quiet=True))
    assert Path(result["out"]) == root
    assert result["steps"] == 8


def test_contradictions(options: TrainOptions) -> None:
    with pytest.raises(UsageError, match="fix the trained parts"):
        train(replace(options, learn=("rpn",)))
    with pytest.raises(UsageError, match="lacks one, choose a faster_rcnn"):
        train(replace(options, model="fast_rcnn_tiny", model_fields={}))
    with pytest.raises(UsageError, match="rounds is for"):
        replace(options, scheme="joint", rounds=2)
    with pytest.raises(UsageError, match="learn: a model has no part 'neck'"):
        replace(options, scheme="joint", learn=("neck",))
    with pytest.raises(UsageError, match="there is no loss"):
        replace(options, scheme="joint", learn=("backbone",))


@pytest.mark.usefixtures("drawn")
def test_command_line_from_training_to_evaluation(
    options: TrainOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [f"--set=model.{name}={value}" for name, value in options.model_fields.items()]
    call = ["train", str(options.data), "--model", "faster_rcnn_tiny", "--scheme", "alternating", "--epochs", "1"]
    call += ["--size", "64", "--workers", "0", "--precision", "fp32", "--out", str(tmp_path / "run"), "--json", *sets]
    assert main(call) == 0
    weights = json.loads(capsys.readouterr().out)["weights"]
    assert main(["eval", str(options.data), "--weights", weights, "--json"]) == 0
    assert "AP" in json.loads(capsys.readouterr().out)["metrics"]
    assert main(["train", "--resume", str(tmp_path / "run"), "--json"]) == 0  # nothing is left to do
    assert json.loads(capsys.readouterr().out)["weights"] == weights
