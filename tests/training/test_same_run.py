"""The same seed gives the same run as before the redesign of the configuration.

`tests/before/losses.json` holds the losses of 20 steps that the code before it wrote, in float32, with AVX-512 and
with AVX2 on a Xeon, and with both on an AMD EPYC. Training is chaotic: where rounding moves one proposal across a
threshold, the recordings part. Up to where the first two do, every loss of one of them is met within 0.1 %, behind it
the sum within what they themselves differ by.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from twostage.cli import main
from twostage.data.scenes import write_scenes
from twostage.models.proposals.rpn import RPN

pytestmark = pytest.mark.slow

BEFORE = json.loads((Path(__file__).parents[1] / "before" / "losses.json").read_text(encoding="utf-8"))
STEPS = 20


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("same-run") / "scenes"
    write_scenes(folder, train=4, val=1, seed=3)
    return folder


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """As in the recordings: another number of threads rounds sums otherwise, and the tests' workers have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("model", BEFORE)
def test_twenty_steps_have_the_losses_of_before(
    model: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch is one step, so that every row of metrics.csv is one.

    The RPN's loss is computed from all anchors, as it was: from the sampled ones alone it is rounded otherwise.
    """
    monkeypatch.setattr(RPN, "samples_few", lambda *_: False)
    assert main(arguments(model, scenes, tmp_path / "run")) == 0
    rows = losses_of(tmp_path / "run")
    assert len(rows) == STEPS
    first, second, *_ = BEFORE[model].values()
    apart = [step for step, (a, b) in enumerate(zip(first, second, strict=True)) if a != pytest.approx(b, abs=1e-3)]
    require_one_of(model, rows, min(apart, default=STEPS))


@pytest.mark.parametrize("model", [name for name in BEFORE if name.startswith("faster_rcnn")])
def test_sampled_anchors_alone_give_the_same_losses(model: str, scenes: Path, tmp_path: Path) -> None:
    """In the first steps, before rounding moves a proposal across a threshold."""
    assert main(arguments(model, scenes, tmp_path / "run")) == 0
    require_one_of(model, losses_of(tmp_path / "run"), 5)


def require_one_of(model: str, rows: list[dict[str, float]], strict: int) -> None:
    """That the losses are those of one recording for so many steps, and near them behind."""
    recordings = list(BEFORE[model].values())
    for step, now in enumerate(rows):
        if step < strict:
            recordings = [one for one in recordings if now == pytest.approx(one[step], rel=1e-3, abs=1e-5)]
            assert recordings, f"step {step}"
        assert now.keys() == recordings[0][step].keys()
        assert now["train_loss"] == pytest.approx(recordings[0][step]["train_loss"], rel=0.25), f"step {step}"


def arguments(model: str, scenes: Path, out: Path) -> list[str]:
    """The command line of such a run."""
    options = f"--model {model} --epochs {STEPS} --batch 4 --warmup 5 --size 96 --max-size 96 --precision fp32 --seed 7"
    return [
        "train",
        str(scenes),
        *options.split(),
        "--eval-every",
        "100",
        "--workers",
        "0",
        "--out",
        str(out),
        "--quiet",
    ]


def losses_of(run: Path) -> list[dict[str, float]]:
    """Of every row the training losses."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [{name: float(value) for name, value in row.items() if name.startswith("train_loss")} for row in rows]
