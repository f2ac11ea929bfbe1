"""Two processes under torchrun train and evaluate as one; a failure of one ends all, with one message."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from twostage.distributed import SINGLE_PROCESS, Processes
from twostage.errors import UsageError
from twostage.run_config import to_yaml
from twostage.training import TrainOptions, train
from twostage.training.recipe import FINETUNE, resolve
from twostage.training.step import Session

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="torchrun's processes are asked by signals"),
]


def start(*arguments: object) -> subprocess.Popen[str]:
    return start_file(Path(__file__).with_name("undrawn.py"), *arguments)


def start_file(*arguments: object) -> subprocess.Popen[str]:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [sys.executable, *command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it printed on standard output and standard error."""
    try:
        return process.communicate(timeout=120)
    finally:
        process.kill()


def with_config(options: TrainOptions, folder: Path) -> list[object]:
    path = folder / "options.yaml"
    path.write_text(to_yaml(options))
    return ["train", "--config", path]


def rows(folder: Path) -> list[dict[str, float]]:
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {k: float(v) for k, v in row.items() if v and (k == "step" or "loss" in k)} for row in csv.DictReader(file)
        ]


@pytest.fixture
def plain(options: TrainOptions) -> TrainOptions:
    """One update an epoch, of two batches, whose rounding does not grow as it does with AdamW."""
    return replace(
        options,
        model_fields={**options.model_fields, "norm": "group"},
        precision="fp32",
        optimizer="sgd",
        lr=0.005,
        accumulate=2,
        eval_every=1,
    )


def test_two_processes_learn_and_score_as_one(plain: TrainOptions, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(replace(plain, out=one))
    out, err = ended(start(*with_config(plain, tmp_path), "--out", two, "--json"))
    assert out, err
    assert json.loads(out)["out"] == str(two)
    first, second = zip(rows(one), rows(two), strict=True)
    assert first[1] == pytest.approx(first[0], abs=1e-5)
    # Proposals that score alike may change places by then.
    assert second[1] == pytest.approx(second[0], rel=0.02)
    weights = [load_file(folder / "weights" / "last.safetensors") for folder in (one, two)]
    assert all((weights[0][key] - weights[1][key]).abs().max() < 1e-3 for key in weights[0])
    assert json.loads((two / "env.json").read_text())["processes"] == 2

    best = two / "weights" / "best.safetensors"
    out, err = ended(start("eval", plain.data, "--weights", best, "--json", "--quiet", "--out", tmp_path / "scored"))
    alone = subprocess.run(
        [sys.executable, "-m", "twostage", "eval", str(plain.data), "--weights", str(best), "--json", "--quiet"],
        capture_output=True,
        check=True,
    )
    shared, whole = json.loads(out), json.loads(alone.stdout)
    lowest = [one["settings"].pop("lowest_score") for one in (shared, whole)]
    assert shared == whole, err
    assert lowest[0] == pytest.approx(lowest[1], rel=1e-4)  # another number of threads rounds otherwise


@pytest.mark.parametrize("kind", ["hybrid_task_cascade", "retinanet"])
def test_two_processes_learn_as_one_from_images_of_unlike_shapes(
    plain: TrainOptions, tmp_path: Path, kind: str
) -> None:
    """Masks, maps of stuff and anchors of one process lie on the canvas of both; each has its own number of objects."""
    fields = plain.model_fields if kind != "retinanet" else {"norm": "group"}
    plain = replace(plain, model=f"{kind}_tiny_fpn", model_fields=fields, crop=1.0, epochs=1)
    train(replace(plain, out=tmp_path / "one"))
    _, err = ended(start(*with_config(plain, tmp_path), "--out", tmp_path / "two"))
    (first,), (second,) = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert second == pytest.approx(first, abs=1e-5), err
    assert ("train_loss_mask_3" in first) == (kind != "retinanet")


def test_two_processes_take_the_four_steps_together(plain: TrainOptions, tmp_path: Path) -> None:
    plain = replace(plain, model="faster_rcnn_tiny", scheme="alternating", epochs=1)
    result = train(replace(plain, out=tmp_path / "one"))
    out, err = ended(start(*with_config(plain, tmp_path), "--out", tmp_path / "two", "--json"))
    assert out, err
    assert json.loads(out)["steps"] == result["steps"]
    for step in ("step-1", "step-3"):
        sets = [load_file(tmp_path / run / "proposals" / f"{step}.safetensors") for run in ("one", "two")]
        assert sets[0].keys() == sets[1].keys()
        # Every image's, in the order of the split, whoever has proposed them.
        assert all(abs(len(a) - len(sets[1][key])) <= 0.1 * len(a) for key, a in sets[0].items())
    weights = [load_file(tmp_path / run / "weights" / "best.safetensors") for run in ("one", "two")]
    assert all((weights[0][key] - weights[1][key]).abs().max() < 1e-3 for key in weights[0])


def test_a_lost_process_ends_the_others_and_the_run_goes_on_with_one(plain: TrainOptions, tmp_path: Path) -> None:
    plain = replace(plain, epochs=25, eval_every=25)
    process = start(*with_config(plain, tmp_path), "--out", tmp_path / "run")
    while not rows(tmp_path / "run"):
        assert process.poll() is None, ended(process)
        time.sleep(0.02)
    os.kill(_of_rank(1, process.pid), signal.SIGKILL)
    begun = time.monotonic()
    _, err = ended(process)
    assert process.returncode == 1
    assert time.monotonic() - begun < 20
    assert "Process 0 of 2 lost the connection to another process" in err
    kept = rows(tmp_path / "run")
    result = train(TrainOptions(resume=tmp_path / "run", quiet=True))
    assert result["steps"] == 25
    assert rows(tmp_path / "run")[: len(kept) - 1] == kept[:-1]


def test_a_run_of_one_goes_on_with_two(plain: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(replace(plain, out=tmp_path / "whole"))

    def interrupted(session: Session, *_: object) -> None:
        session.stop.set()

    with monkeypatch.context() as patch:
        patch.setattr("twostage.training.run.train_until", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(plain)
    out, err = ended(start("train", "--resume", plain.out, "--json"))
    assert out, err
    assert json.loads(out)["steps"] == 2
    whole, resumed = rows(tmp_path / "whole"), rows(plain.out)
    assert resumed[0] == pytest.approx(whole[0], abs=1e-5)
    assert resumed[1] == pytest.approx(whole[1], rel=0.02)


def test_what_is_wrong_is_told_once(plain: TrainOptions, tmp_path: Path) -> None:
    out, err = ended(start("train", tmp_path / "nowhere", "--json"))
    assert err.count("twostage: ") == 1
    assert err.count("does not exist") == 2, "here, and in torchrun's report"
    assert json.loads(out)["error"]["code"] == 3
    out, err = ended(start("train", tmp_path / "nowhere", "--json", "--batch", "x"))
    assert err.count("twostage: ") == 1
    assert json.loads(out)["error"]["code"] == 2
    _, err = ended(start(*with_config(replace(plain, lr=1e30), tmp_path), "--out", tmp_path / "run"))
    assert err.count("twostage: Non-finite loss or gradient") == 1
    told_images = err.partition("twostage: Non-finite")[2].partition("Check their boxes")[0]
    assert told_images.count(".jpg") == 4, "the images of both processes"


def test_an_image_that_one_process_cannot_read(plain: TrainOptions, tmp_path: Path) -> None:
    data = tmp_path / "scenes"
    shutil.copytree(plain.data, data)
    process = start(
        *with_config(replace(plain, data=data, epochs=300, eval_every=300), tmp_path), "--out", tmp_path / "run"
    )
    while not rows(tmp_path / "run"):
        assert process.poll() is None, ended(process)
        time.sleep(0.02)
    sorted((data / "train").iterdir())[0].unlink()
    _, err = ended(process)
    assert err.count("twostage: ") == 1
    assert "000000.jpg" in err
    assert "Saved. When that is fixed" in err


def test_minutes_are_the_same_to_all(plain: TrainOptions, tmp_path: Path) -> None:
    out, err = ended(
        start(*with_config(replace(plain, epochs=None, minutes=0.1), tmp_path), "--out", tmp_path / "run", "--json")
    )
    assert out, err
    steps = json.loads(out)["steps"]
    assert steps > 3
    assert rows(tmp_path / "run")[-1]["step"] == steps


def test_ctrl_c_stops_and_saves_in_all(plain: TrainOptions, tmp_path: Path) -> None:
    process = start(*with_config(replace(plain, epochs=500, eval_every=500), tmp_path), "--out", tmp_path / "run")
    while not rows(tmp_path / "run"):
        assert process.poll() is None, ended(process)
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = ended(process)
    assert err.count("Stopped and saved") == 1
    assert err.count("twostage: stopped") == 1


def test_a_script_that_has_made_its_own_group(plain: TrainOptions, tmp_path: Path) -> None:
    """It is used, and stays."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys
import torch.distributed as dist
from twostage.training import TrainOptions, train
from twostage.training.folder import read_options
from dataclasses import replace
from pathlib import Path
dist.init_process_group("gloo")
for again in range(2):
    result = train(replace(read_options(Path(sys.argv[1])), out=Path(sys.argv[2] + str(again)), quiet=True))
print(result["steps"], dist.get_world_size(), flush=True)
dist.destroy_process_group()
"""
    )
    (tmp_path / "config.yaml").write_text(to_yaml(replace(plain, epochs=1)))
    out, err = ended(start_file(script, tmp_path, tmp_path / "run"))
    assert out.split() == ["1", "2"] * 2, err


def test_alone() -> None:
    number = torch.tensor(3.0)
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.mean(number) is number
    assert SINGLE_PROCESS.max([4, 2]) == [4, 2]
    assert SINGLE_PROCESS.gather("x") == ["x"]
    assert SINGLE_PROCESS.on_main(lambda: 7) == 7
    assert not SINGLE_PROCESS.any(False)


def test_every_process_needs_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twostage.distributed.choose_device", torch.device)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    two = Processes(1, 2, 1, 2)
    assert two.device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="torchrun --nproc-per-node 1"):
        two.device("cuda")
    for name in ("cuda:0", "mps"):
        with pytest.raises(UsageError, match="cannot be shared by 2 processes"):
            two.device(name)


def test_the_recipes_batch_is_raised_to_what_processes_share() -> None:
    def batch_of(processes: int, batch: int | None = None) -> tuple[int, float]:
        options = TrainOptions(Path("data"), batch=batch)
        recipe = resolve(options, FINETUNE, freezable=5, bf16=False, processes=processes)
        return recipe.batch, recipe.lr

    assert batch_of(1) == batch_of(2) == (2, 0.0025)
    assert batch_of(4) == (4, 0.005)
    assert batch_of(4, 8) == (8, 0.01)
    with pytest.raises(UsageError, match="4 processes cannot share it evenly"):
        batch_of(4, 2)


def _of_rank(rank: int, launcher: int) -> int:
    """The process that torchrun gave this rank."""
    for folder in Path("/proc").iterdir():
        try:
            environment = (folder / "environ").read_bytes().split(b"\0") if folder.name.isdigit() else []
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1] if environment else ""
        except OSError:
            continue
        if f"RANK={rank}".encode() in environment and parent == str(launcher):
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")
