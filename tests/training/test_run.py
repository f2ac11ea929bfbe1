"""A run from its options to its folder: what it leaves, how it goes on, how it ends."""

import csv
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from twostage.cli import main
from twostage.detector import Detector
from twostage.errors import DataError, MissingError, TwostageError, UsageError
from twostage.training import TrainOptions, step, train
from twostage.training.folder import RunFolder, read_options
from twostage.weights.file import load_tensors, load_weights

pytestmark = pytest.mark.slow
HTC = {"head_channels": 32, "mask_channels": 16, "mask_convs": 2, "semantic_convs": 1, "region_batch": 16}
HTC |= {"rpn_top_train": 60, "rpn_keep_train": 40, "rpn_top_test": 60, "rpn_keep_test": 40}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("drawn")
def test_run_leaves_everything_and_its_weights_load(options: TrainOptions) -> None:
    result = train(options)
    out = Path(result["out"])
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml",
        "env.json",
        "metrics.csv",
        "loss.png",
        "pr.png",
        "confusion.png",
        "labels.png",
        "train_batch.jpg",
        "report.txt",
        "weights/best.safetensors",
        "weights/last.safetensors",
        "state/state.safetensors",
    }
    assert len(list((out / "predictions").iterdir())) == 4
    assert (result["epochs"], result["steps"]) == (2, 4)
    assert set(result["metrics"]) >= {"AP", "AP50", "voc07"}
    assert [row["step"] for row in rows(out)] == ["2", "4"]
    assert json.loads((out / "env.json").read_text())["packages"]["torch"] == torch.__version__.split("+")[0]
    detector = Detector.load(result["weights"])
    assert detector.names == ("circle", "square", "triangle", "star", "cross")
    assert detector.model.config.image.size == 64
    # Images are images, not empty canvases.
    assert np.asarray(Image.open(out / "loss.png").convert("L")).std() > 5


def test_config_repeats_the_run(options: TrainOptions, unbroken: Callable, tmp_path: Path) -> None:
    first = unbroken(options)
    config = yaml.safe_load((Path(first["out"]) / "config.yaml").read_text())
    config["scale"] = tuple(config["scale"]) if "scale" in config else None
    config["learn"] = tuple(config["learn"])
    second = train(TrainOptions(**{**config, "data": Path(config["data"]), "out": tmp_path / "again"}))
    assert_same_weights(Path(first["out"]), Path(second["out"]))


def test_config_repeats_a_run_whose_backbone_is_not_trained(options: TrainOptions, tmp_path: Path) -> None:
    options = replace(options, learn=("rpn", "head"), epochs=1, val_split="none")
    first = Path(train(options)["out"])
    train(replace(read_options(first), out=tmp_path / "again", quiet=True))
    assert_same_weights(first, tmp_path / "again")


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({}, 0),
        ({"learn": ("rpn", "head")}, 1),
        ({}, 1),
        ({"optimizer": "sgd", "ema": 0.0}, 1),
        ({"accumulate": 2, "precision": "bf16"}, 1),
        ({"model": "hybrid_task_cascade_tiny_fpn", "model_fields": HTC}, 1),
        ({"model": "retinanet_tiny_fpn", "model_fields": {}}, 1),
    ],
)
def test_resumed_run_ends_as_an_unbroken_one(
    options: TrainOptions, unbroken: Callable, tmp_path: Path, changes: dict, epochs: int
) -> None:
    options = replace(options, epochs=3, eval_every=1, **changes)
    whole = unbroken(options)
    broken = replace(options, out=tmp_path / "broken")
    stop_after(broken, epochs=epochs)
    train(TrainOptions(resume=tmp_path / "broken", quiet=True))
    assert_same_weights(Path(whole["out"]), tmp_path / "broken")
    kept = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / "broken")]
    assert kept == [{k: v for k, v in row.items() if k != "seconds"} for row in rows(Path(whole["out"]))]


def stop_after(options: TrainOptions, epochs: int) -> None:
    """Ctrl-C, as it were, during the first step after so many epochs."""
    inner, done = step.train_step, 0

    def interrupted(session: step.Session, batches: object) -> dict[str, float]:
        nonlocal done
        done += 1
        if session.progress.step // 2 >= epochs or done > 2 * epochs:
            session.stop.set()
        return inner(session, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(options)


@pytest.mark.parametrize("within", ["a step", "the plots"])
def test_a_stopped_run_names_once_the_command_that_goes_on(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, within: str
) -> None:
    if within == "a step":
        stop_after(options, epochs=1)
    else:
        monkeypatch.setattr(RunFolder, "draw", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(options)
    assert caplog.text.count(f"Continue with: twostage train --resume {options.out}\n") == 1


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = (load_file(folder / "weights" / "last.safetensors") for folder in (a, b))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_of_an_earlier_version_keeps_its_recipe(options: TrainOptions, unbroken: Callable) -> None:
    """It was a field of the model then."""
    options = replace(options, epochs=3, recipe="paper", val_split="none")
    whole = unbroken(options)
    stop_after(options, epochs=1)
    config = options.out / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["model_fields"] |= {"recipe": values.pop("recipe"), "proposals_seed": 0}
    config.write_text(yaml.safe_dump(values))
    train(TrainOptions(resume=options.out, quiet=True))
    assert_same_weights(Path(whole["out"]), options.out)


def test_a_retinanet_run_of_an_earlier_version_is_resumed(options: TrainOptions, unbroken: Callable) -> None:
    """Its head had the name of the RPN then."""
    options = replace(options, epochs=3, eval_every=1, model="retinanet_tiny_fpn", model_fields={})
    whole = unbroken(options)
    stop_after(options, epochs=1)
    state = RunFolder(options.out).state
    metadata, tensors = load_tensors(state)
    old = {re.sub(r"^(model|average)\.head\.", r"\1.rpn.", name): tensor.clone() for name, tensor in tensors.items()}
    save_file(old, state, metadata)
    train(TrainOptions(resume=options.out, quiet=True))
    assert_same_weights(Path(whole["out"]), options.out)


def test_resumed_run_takes_no_other_options(options: TrainOptions) -> None:
    stop_after(replace(options, epochs=3), epochs=1)
    for change, text in [
        ({"lr": 0.1}, "lr: a resumed run"),
        ({"epochs": 9}, "epochs: a resumed run"),
        ({"train_split": "val"}, "train_split"),
    ]:
        with pytest.raises(UsageError, match=text):
            train(TrainOptions(resume=options.out, quiet=True, **change))
    assert train(TrainOptions(resume=options.out, data=options.data, workers=1, device="cpu"))["epochs"] == 3


def test_resumed_run_wants_the_same_data(options: TrainOptions, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(options.data, data)
    stop_after(replace(options, data=data, epochs=3), epochs=1)
    file = data / "annotations" / "instances_train.json"
    text = file.read_text()
    file.write_text(text.replace('"star"', '"sun"'))
    val = data / "annotations" / "instances_val.json"
    val.write_text(val.read_text().replace('"star"', '"sun"'))
    with pytest.raises(DataError, match="sun"):
        train(TrainOptions(resume=options.out))
    document = json.loads(text)
    document["images"] = document["images"][:-1]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
    file.write_text(json.dumps(document))
    val.write_text(val.read_text().replace('"sun"', '"star"'))
    with pytest.raises(DataError, match="7 images now, and had 8"):
        train(TrainOptions(resume=options.out))


def test_gradient_that_is_no_number_ends_the_run_before_it_is_saved(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, calls = torch.nn.utils.clip_grad_norm_, 0

    def spoilt(parameters: Iterable[torch.nn.Parameter], most: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        parameters = list(parameters)
        if calls == 4:  # the last step of the second epoch
            next(p for p in parameters if p.grad is not None).grad.fill_(torch.inf)
        return clip(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoilt)
    with pytest.raises(TwostageError, match="gradient is inf"):
        train(options)
    for name in ("last", "best"):
        state = load_file(options.out / "weights" / f"{name}.safetensors")
        assert all(torch.isfinite(t).all() for t in state.values() if t.is_floating_point())


def test_accumulated_steps_make_the_epochs_that_were_asked_for(options: TrainOptions) -> None:
    """8 images, batches of 2, 3 of them an update: 10 epochs are 40 batches, 14 updates, not 20."""
    result = train(replace(options, batch=2, accumulate=3, epochs=10, val_split="none"))
    assert (result["steps"], result["epochs"]) == (14, 10)
    assert [row["epoch"] for row in rows(options.out)] == [str(i) for i in range(1, 11)]


def test_short_run_reaches_its_rate(options: TrainOptions) -> None:
    """A recipe's warm-up of 50 steps would outlast 20."""
    train(replace(options, epochs=10, val_split="none"))
    assert max(float(row["lr"]) for row in rows(options.out)) > 0.9 * 4e-3 * 4 / 8


def test_stages_that_a_file_does_not_fill_are_not_frozen(options: TrainOptions, few: Path, tmp_path: Path) -> None:
    """A file without layers of the second stage: the recipe's two would fix them as they are drawn."""
    start = tmp_path / "resnet18.safetensors"
    body = torchvision.models.resnet18(weights=None).state_dict()
    save_file({n: t for n, t in body.items() if t.is_floating_point() and not n.startswith("layer1.0.conv2")}, start)
    options = replace(options, data=few, model_fields={**options.model_fields, "head_channels": 16})
    train(replace(options, model="faster_rcnn_resnet18_fpn", weights=str(start), epochs=1, batch=2, val_split="none"))
    assert yaml.safe_load((options.out / "config.yaml").read_text())["freeze"] == 1


def test_loss_that_is_no_number_names_the_images(options: TrainOptions) -> None:
    with pytest.raises(TwostageError, match=r"Non-finite loss or gradient at step \d+(.|\n)*train/\d+\.jpg") as caught:
        train(replace(options, lr=1e30, clip=0.0, epochs=8, warmup=0))
    assert caught.value.exit_code == 1
    state = load_file(options.out / "weights" / "last.safetensors") if (options.out / "weights").exists() else {}
    assert all(torch.isfinite(t).all() for t in state.values() if t.is_floating_point())


def test_time_budget_becomes_a_number_of_steps(options: TrainOptions) -> None:
    result = train(replace(options, epochs=None, minutes=0.05, val_split="none"))
    # 3 seconds: the number of steps is fixed after a part of them, so the time is met only roughly.
    assert 1.0 < result["seconds"] < 9.0
    assert result["metrics"] == {}
    assert result["weights"].endswith("last.safetensors")


def test_a_split_without_objects_that_count_keeps_the_newest_weights(
    options: TrainOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(options.data, data)
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        entry["iscrowd"] = 1
    file.write_text(json.dumps(content))
    train(replace(options, data=data, epochs=3, eval_every=1, ema=0.0))
    assert "AP has no value" in caplog.text
    best, last = (load_file(options.out / "weights" / f"{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in last)


def test_deterministic_operations_end_with_the_run(options: TrainOptions) -> None:
    train(replace(options, deterministic=True, epochs=1, val_split="none"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_repeating_the_options_of_the_run_is_no_change(options: TrainOptions) -> None:
    stop_after(replace(options, epochs=3), epochs=1)
    assert train(TrainOptions(resume=options.out, quiet=True, epochs=3, batch=4))["epochs"] == 3


def test_early_stopping_ends_a_run_that_does_not_improve(options: TrainOptions) -> None:
    result = train(replace(options, epochs=50, eval_every=1, patience=2, lr=1e-12, ema=0.0))
    assert result["epochs"] < 50


@pytest.mark.parametrize(("other", "cased"), [("cat", False), ("Star", True)])
def test_weights_of_other_classes_keep_what_fits(
    options: TrainOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture, other: str, cased: bool
) -> None:
    start = Detector.build("faster_rcnn_tiny_fpn", ["dog", other], device="cpu")
    start.save(tmp_path / "start.safetensors")
    with caplog.at_level(logging.INFO, "twostage"):
        result = train(replace(options, weights=str(tmp_path / "start.safetensors"), epochs=1, lr=1e-12, ema=0.0))
    assert f"In both: none; new: circle, square, triangle, star, cross; left out: dog, {other}" in caplog.text
    assert ("Upper and lower case" in caplog.text) is cased
    assert "Rows of those in both" not in caplog.text
    assert re.search(r"head +6 of 8 +yes +head.classes$", caplog.text, re.MULTILINE)
    _, state = load_weights(Path(result["weights"]))
    torch.testing.assert_close(state["rpn.objectness.weight"], start.model.rpn.objectness.weight, atol=1e-6, rtol=0)
    assert state["head.classes.weight"].shape[0] == 6


def test_class_weights_follow_their_classes(options: TrainOptions, tmp_path: Path) -> None:
    """Of fewer classes in another order; those that are given win."""
    names = ["circle", "square", "triangle", "star", "cross"]
    start = Detector.build("faster_rcnn_tiny_fpn", names, device="cpu", class_weights=(1, 2, 3, 4, 5))
    start.save(tmp_path / "start.safetensors")
    options = replace(options, weights=str(tmp_path / "start.safetensors"), epochs=1, names=("cross", "square"))
    card, _ = load_weights(Path(train(options)["weights"]))
    assert card.config.box_head.class_weights == (5, 2)
    fields = {**options.model_fields, "class_weights": (7, 8)}
    card, _ = load_weights(Path(train(replace(options, out=tmp_path / "given", model_fields=fields))["weights"]))
    assert card.config.box_head.class_weights == (7, 8)


def test_random_weights_are_normalised_by_groups_and_a_detector_passes_its_fields_on(
    options: TrainOptions, few: Path, tmp_path: Path
) -> None:
    """Frozen statistics of random weights let activations fade (MobileNet) or burst (ResNet-101)."""
    fields = {**options.model_fields, "head_channels": 16}
    model = "faster_rcnn_mobilenet_v3_large_320_fpn"
    options = replace(options, data=few, model_fields=fields, model=model, batch=2, epochs=1)
    first = train(options)
    assert load_weights(Path(first["weights"]))[0].config.backbone.norm.kind == "group"
    later = replace(options, weights=first["weights"], out=tmp_path / "later")
    card, _ = load_weights(Path(train(later)["weights"]))
    assert card.config.backbone.norm.kind == "group"
    frozen = replace(options, model_fields={**fields, "norm": "frozen"}, out=tmp_path / "frozen")
    assert load_weights(Path(train(frozen)["weights"]))[0].config.backbone.norm.kind == "frozen"


def test_run_goes_on_without_the_weights_it_began_with(options: TrainOptions, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    Detector.build("faster_rcnn_tiny_fpn", ["dog", "cat"], device="cpu", rpn_nms=0.6).save(start)
    options = replace(options, weights=str(start), epochs=3)
    stop_after(options, epochs=1)
    start.unlink()
    resumed = train(TrainOptions(resume=options.out, quiet=True))
    assert resumed["epochs"] == 3
    card, _ = load_weights(Path(resumed["weights"]))
    assert card.config.rpn.nms == 0.6
    origin = dict(card.origin)
    assert (origin["made by"], origin["split"], origin["seed"]) == ("twostage train", "train", options.seed)
    assert origin["started from"] == "start.safetensors"
    assert 0 < origin["steps"] <= resumed["steps"]  # the best weights may be earlier ones


@pytest.mark.usefixtures("drawn")
def test_validation_scores_boxes_as_the_file_has_them(options: TrainOptions, tmp_path: Path) -> None:
    """As `eval` does, so that a run and `eval` report the same AP."""
    data = tmp_path / "data"
    shutil.copytree(options.data, data)
    file = data / "annotations" / "instances_val.json"
    document = json.loads(file.read_text())
    for record in document["annotations"][::2]:
        record["bbox"][2] = 0
    file.write_text(json.dumps(document))
    result = train(replace(options, data=data, epochs=1))
    assert f"{len(document['annotations'])} objects" in (Path(result["out"]) / "report.txt").read_text()
    assert (
        main(["eval", str(data), "--weights", result["weights"], "--workers", "0", "--out", str(tmp_path / "e")]) == 0
    )
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    assert report["metrics"] == pytest.approx(result["metrics"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "faster_rcnn_tinny_fpn"}, UsageError, "Did you mean 'faster_rcnn_tiny_fpn'"),
        ({"train_split": "trian"}, UsageError, "Did you mean 'train'"),
        ({"val_split": "train"}, UsageError, "no split to validate on"),
        ({"weights": "nowhere.safetensors"}, MissingError, "nowhere.safetensors"),
        ({"data": Path("nowhere")}, DataError, "nowhere"),
        ({"device": "cuda:77"}, UsageError, "cuda:77"),
        ({"device": "cpu", "precision": "fp16"}, UsageError, "fp16 needs a GPU"),
        ({"model_fields": {"rpn_nsm": 0.5}}, UsageError, "Did you mean 'rpn_nms'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    options: TrainOptions, changes: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(replace(options, **changes))
    assert not options.out.exists()


def test_folder_with_something_in_it_is_left_alone(options: TrainOptions) -> None:
    options.out.mkdir()
    (options.out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        train(options)
    assert [path.name for path in options.out.iterdir()] == ["mine.txt"]


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=str(tmp_path)):
        train(TrainOptions(resume=tmp_path))


def test_chosen_classes_are_learned_and_scored(options: TrainOptions, scenes: Path, tmp_path: Path) -> None:
    result = train(replace(options, names=("star", "circle"), epochs=1))
    assert Detector.load(result["weights"]).names == ("star", "circle")
    shown = main(["eval", str(scenes), "--weights", result["weights"], "--workers", "0", "--out", str(tmp_path / "e")])
    assert shown == 0
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    assert list(report["per_class"]) == ["star", "circle"]
