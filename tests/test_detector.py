"""A detector as its user holds it: names of its values, a backbone of one's own, threads, copies, evaluation."""

import copy
import json
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from twostage import Detections, Detector
from twostage.cli import main
from twostage.data.dataset import Dataset, select_classes
from twostage.data.proposals import write_proposals
from twostage.data.recognise import open_dataset
from twostage.data.scenes import write_scenes
from twostage.errors import DataError, UsageError
from twostage.evaluation.evaluate import evaluate
from twostage.inference.predictor import make_batch
from twostage.inference.test_time_augmentation import TestTimeAugmentation

SMALL = {"size": 64, "max_size": 64, "rpn_top_test": 60, "rpn_keep_test": 40, "score_threshold": 0.0, "max_det": 20}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=1, val=3, seed=0)


@pytest.fixture(scope="module")
def val(scenes: Path) -> Dataset:
    return open_dataset(scenes, split="val")


@pytest.fixture(scope="module")
def detector(val: Dataset) -> Detector:
    return Detector.build("mask_rcnn_tiny_fpn", list(val.names), device="cpu", **SMALL)


@pytest.fixture(scope="module")
def weights(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    detector.save(path)
    return path


def pictures(count: int) -> list[np.ndarray]:
    """Random pixels, in two shapes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (60, 80 - 20 * (i % 2), 3), dtype=np.uint8) for i in range(count)]


def assert_same(a: Detections, b: Detections) -> None:
    assert len(a) > 0
    for name in ("boxes", "scores", "class_ids"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.masks == b.masks


# --- names of values


@pytest.mark.parametrize("name", ["rpn_nms", "rpn.nms"])
def test_a_value_has_a_path_and_a_short_name(weights: Path, name: str) -> None:
    built = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", **{name: 0.6})
    loaded = Detector.load(weights, device="cpu", **{name: 0.6})
    assert built.model.config.rpn.nms == loaded.model.config.rpn.nms == 0.6


@pytest.mark.parametrize("names", [("size", "max_size"), ("image.size", "image.max_size"), ("image_size", "max_size")])
def test_a_size_keeps_the_ratio_unless_the_other_is_given_by_any_of_its_names(names: tuple[str, str]) -> None:
    def sizes(**given: int) -> tuple[int, int]:
        image = Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", **given).model.config.image
        return image.size, image.max_size

    own = sizes()
    assert sizes(**{names[0]: 2 * own[0]}) == (2 * own[0], 2 * own[1])
    for longest in ("max_size", "image.max_size", "image_max_size"):
        assert sizes(**{names[0]: 64, longest: 80}) == (64, 80)


@pytest.mark.parametrize(("name", "near"), [("rpn_nsm", "rpn_nms"), ("rpn.nsm", "rpn.nms")])
def test_an_unknown_name_shows_the_nearest(weights: Path, name: str, near: str) -> None:
    for make in (
        lambda: Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", **{name: 0.6}),
        lambda: Detector.load(weights, device="cpu", **{name: 0.6}),
    ):
        with pytest.raises(UsageError, match=rf"no field '{re.escape(name)}'\. Did you mean '{re.escape(near)}'\?"):
            make()


def test_a_name_like_no_other_lists_every_value_once() -> None:
    with pytest.raises(UsageError) as caught:
        Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", zzz=1)
    listed = str(caught.value).partition("Known: ")[2].rstrip(".").split(", ")
    assert "rpn.nms" in listed
    assert "rpn_nms" not in listed
    assert listed == sorted(set(listed))


@pytest.mark.parametrize(
    ("name", "message"), [("recipe", "belongs to training: give --recipe"), ("proposals_seed", "data proposals --seed")]
)
def test_values_that_moved_say_where_they_are_now(
    weights: Path, scenes: Path, tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=message):
        Detector.build("faster_rcnn_tiny_fpn", ["a"], device="cpu", **{name: 1})
    assert main(["train", str(scenes), f"--set=model.{name}=scratch", "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["eval", str(scenes), "--weights", str(weights), f"--set=model.{name}=scratch"]) == 2
    assert message in capsys.readouterr().err


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    code = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def config_of(path: str) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["twostage"])["config"]


TRAIN = (
    "--model",
    "faster_rcnn_tiny_fpn",
    "--epochs",
    1,
    "--size",
    64,
    "--val-split",
    "none",
    "--workers",
    0,
    "--quiet",
)


@pytest.mark.parametrize("name", ["rpn_nms", "rpn.nms", "rpn-nms"])
def test_names_on_the_command_line(
    scenes: Path, weights: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model.rpn_nms: 0.4\nmodel.rpn.top_train: 30\n")
    run = run_json(
        capsys, "train", scenes, *TRAIN, "--config", config, f"--set=model.{name}=0.6", "--out", tmp_path / "r"
    )
    rpn = config_of(run["weights"])["rpn"]
    assert (rpn["nms"], rpn["top_train"]) == (0.6, 30), "--set goes before a file, by whichever name"
    run_json(capsys, "eval", scenes, "--weights", weights, f"--set=model.{name}=0.6", "--workers", 0)


def test_a_wrong_name_on_the_command_line(
    scenes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong, near in (("rpn_nsm", "rpn_nms"), ("rpn.nsm", "rpn.nms")):
        for call in (
            ["train", str(scenes), "--out", str(tmp_path / "r")],
            ["eval", str(scenes), "--weights", str(weights)],
        ):
            assert main([*call, f"--set=model.{wrong}=0.6"]) == 2
            assert f"Did you mean '{near}'?" in capsys.readouterr().err
    assert main(["eval", str(scenes), "model.rpn.nms=0.6", "--weights", str(weights)]) == 2
    assert "--set model.rpn.nms=0.6" in capsys.readouterr().err


def test_the_recipe_is_an_option_of_training(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_json(capsys, "train", scenes, *TRAIN, "--recipe", "paper", "--out", tmp_path / "r")
    assert "recipe: paper" in (Path(run["out"]) / "config.yaml").read_text()
    with (Path(run["out"]) / "metrics.csv").open() as file:
        names, values = (line.strip().split(",") for line in file)
    assert float(dict(zip(names, values, strict=True))["lr"]) == pytest.approx(0.001)
    assert main(["train", str(scenes), "--recipe", "scrach", "--out", str(tmp_path / "s")]) == 2
    assert "scratch" in capsys.readouterr().err


# --- many at once, copies


def test_eight_threads_predict_as_one(detector: Detector) -> None:
    images = pictures(8)
    expected = [copy.deepcopy(detector).predict(image, conf=0.0) for image in images]
    shared = copy.deepcopy(detector)  # prepared by whichever thread comes first
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for got, one in zip(pool.map(lambda image: shared.predict(image, conf=0.0), images), expected, strict=True):
                assert_same(one, got)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", ["mask_rcnn_tiny_fpn", "retinanet_tiny_fpn"])
def test_a_copy_predicts_the_same(name: str, copied: Callable[[Detector], Detector]) -> None:
    fields = {name: value for name, value in SMALL.items() if name != "rpn_keep_test"}
    detector = Detector.build(name, ["a", "b"], device="cpu", **fields)
    (image,) = pictures(1)
    expected = detector.predict(image, conf=0.0)
    other = copied(detector)
    assert (other.name, other.names, other.model.config) == (detector.name, detector.names, detector.model.config)
    assert_same(expected, other.predict(image, conf=0.0))
    with torch.no_grad():
        other.model.head.classes.bias.add_(1) if name.startswith("retina") else other.model.rpn.deltas.bias.add_(1)
    assert_same(expected, detector.predict(image, conf=0.0))


# --- evaluation


@pytest.mark.parametrize("options", [{}, {"conf": 0.3, "batch": 2, "max_det": 5}], ids=str)
def test_evaluate_scores_what_detect_dataset_detects(detector: Detector, val: Dataset, options: dict) -> None:
    report = detector.evaluate(val, workers=0, **options)
    results = detector.detect_dataset(val, workers=0, **options)
    expected = evaluate(val, results, score_floor=options.get("conf", SMALL["score_threshold"]), precision="fp32")
    assert report.metrics == expected.metrics
    assert report.to_dict() == expected.to_dict()
    assert "segm_AP" in report.metrics


def test_evaluate_matches_classes_by_name(detector: Detector, val: Dataset) -> None:
    expected = detector.evaluate(val, workers=0).to_dict()
    other = select_classes(val, val.names[::-1])
    found = detector.evaluate(other, workers=0)
    assert found.to_dict() == expected
    assert found.dataset.names == detector.names
    with pytest.raises(UsageError, match="match_classes"):
        detector.detect_dataset(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 0, and must be a whole number of at least 1"),
        ({"batch": -1}, "batch is -1, and"),
        ({"batch": 0, "views": TestTimeAugmentation(flip=True)}, "batch is 0, and"),
        ({"workers": -1}, "workers is -1, and must be a whole number of at least 0"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(detector: Detector, val: Dataset, options: dict, message: str) -> None:
    """-1 image at a time would be none at all."""
    with pytest.raises(UsageError, match=message):
        detector.detect_dataset(val, **options)
    if "views" not in options:
        with pytest.raises(UsageError, match=message):
            detector.propose_dataset(val, **options)


def test_an_unknown_metric_is_refused_before_anything_is_detected(
    detector: Detector, val: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detector, "detect_dataset", lambda *_, **__: pytest.fail("all images were detected"))
    with pytest.raises(UsageError, match="No metric 'AP50'"):
        detector.evaluate(val, metric="AP50")


def test_a_file_of_proposals_may_be_named_by_a_text(detector: Detector, val: Dataset, tmp_path: Path) -> None:
    proposals = detector.propose_dataset(val, workers=0)
    write_proposals(tmp_path / "p.safetensors", [(val, proposals)], 40)
    found = detector.detect_dataset(val, workers=0, proposals=str(tmp_path / "p.safetensors"))
    expected = detector.detect_dataset(val, workers=0, proposals=tmp_path / "p.safetensors")
    np.testing.assert_array_equal(found.boxes, expected.boxes)


# --- metrics in a weights file


def test_a_metric_that_is_no_number_is_refused(detector: Detector, tmp_path: Path) -> None:
    """A file with it could not be loaded."""
    with pytest.raises(UsageError, match="metrics: AP is nan"):
        detector.save(tmp_path / "w.safetensors", metrics={"AP": float("nan")})
    assert not (tmp_path / "w.safetensors").exists()


# --- a backbone of one's own


class Own(nn.Module):
    """Two maps, of strides 8 and 16."""

    channels = (8, 12)
    strides = (8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.first(x).relu()
        return [fine, self.second(fine).relu()]


class Wider(Own):
    """The same maps, from one channel more."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, stride=8, padding=1)


@pytest.mark.parametrize("model", ["faster_rcnn_tiny_fpn", "retinanet_tiny_fpn"])
def test_a_provided_backbone_is_saved_and_loads_with_the_same_module(tmp_path: Path, model: str) -> None:
    fields = {name: value for name, value in SMALL.items() if name != "rpn_keep_test"}
    fields["anchor_sizes"] = ((16.0,), (32.0,))
    detector = Detector.build(model, ["a", "b"], backbone=Own(), device="cpu", **fields)
    (image,) = pictures(1)
    path = tmp_path / "own.safetensors"
    detector.save(path)
    with pytest.raises(UsageError, match="its own backbone, Own, whose code is not in the file"):
        Detector.load(path, device="cpu")
    loaded = Detector.load(path, backbone=Own(), device="cpu")
    assert loaded.model.config == detector.model.config
    assert_same(detector.predict(image, conf=0.0), loaded.predict(image, conf=0.0))
    with pytest.raises(DataError, match="not this model's"):
        Detector.load(path, backbone=Wider(), device="cpu")


def test_a_provided_backbone_without_strides_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Conv2d\.channels is None: give a tuple of whole numbers"):
        Detector.build("faster_rcnn_tiny_fpn", ["a"], backbone=nn.Conv2d(3, 8, 3), device="cpu")


# --- files written before


BEFORE = json.loads((Path(__file__).parent / "before" / "weights.json").read_text(encoding="utf-8"))
TINY = [name for name in BEFORE["models"] if "tiny" in name]


@pytest.mark.parametrize("model", TINY)
def test_a_file_of_format_1_detects_as_the_same_weights_saved_anew(tmp_path: Path, model: str) -> None:
    """It held one flat dictionary of the fields of all models, and RetinaNet's head in the place of the RPN."""
    fields = {**BEFORE["defaults"], **BEFORE["models"][model]["fields"], "semantic_classes": 4}
    fields |= {"size": 64, "max_size": 64, "score_threshold": 0.0, "max_det": 20, "rpn_nms": 0.6}
    if model == "fast_rcnn_tiny":
        fields |= {"proposals": "sliding_window", "rpn_keep_test": 40}
    own = {"semantic_classes": 4} if model.startswith("hybrid") else {}
    own |= {"proposals": "sliding_window", "rpn_keep_test": 40} if model == "fast_rcnn_tiny" else {}
    own |= {"rpn_nms": 0.6} if model not in ("fast_rcnn_tiny", "retinanet_tiny_fpn") else {}
    anew = Detector.build(model, ["a", "b"], device="cpu", size=64, max_size=64, score_threshold=0.0, max_det=20, **own)
    anew.save(tmp_path / "new.safetensors")
    state = load_file(tmp_path / "new.safetensors")
    if model.startswith("retinanet"):
        state = {name.replace("head.", "rpn.", 1): tensor for name, tensor in state.items()}
        assert any(name.startswith("rpn.") for name in state)
    header = {
        "format": 1,
        "model": model,
        "names": ["a", "b"],
        "fields": fields,
        "metrics": {"AP": 0.5},
        "version": "0",
    }
    save_file(state, tmp_path / "old.safetensors", metadata={"twostage": json.dumps(header)})
    old, new = (Detector.load(tmp_path / f"{name}.safetensors", device="cpu") for name in ("old", "new"))
    assert old.model.config == new.model.config
    (image,) = pictures(1)
    assert_same(old.predict(image, conf=0.0), new.predict(image, conf=0.0))


@pytest.mark.parametrize("name", ["backbone", "head", "backbone.body.stem.0", "head.body.fc7"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_forward_hooks_run_whenever_they_are_set(name: str, precision: str) -> None:
    """Features are read by hooks (vision#2963)."""
    detector = Detector.build("faster_rcnn_tiny_fpn", ["cat"], size=64, device="cpu", precision=precision)
    image = np.zeros((64, 64, 3), np.uint8)
    seen: list[torch.Tensor] = []
    for warm in (False, True):
        if warm:
            detector.predict(image)
        hook = detector.model.get_submodule(name).register_forward_hook(lambda *_: seen.append(torch.ones(1)))
        detector.predict(image)
        hook.remove()
        assert len(seen) == 1
        seen.clear()
    detector.predict(image)
    assert not seen


def test_an_exchanged_module_is_what_runs() -> None:
    class Nothing(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [0 * one for one in self.inner(x)]

    class NormFirst(torch.nn.Module):
        """Its children are in the order convolution, norm; its forward pass has the other one."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.conv, self.norm, self.inner = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3), inner
            self.norm.running_mean.fill_(2.0)  # type: ignore[union-attr,operator]

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner(self.conv(self.norm(x)))

    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for wrapper in (Nothing, NormFirst):
        detector = Detector.build("faster_rcnn_tiny_fpn", ["cat"], size=64, device="cpu")
        before = detector.predict(image, conf=0.0)
        detector.model.backbone = wrapper(detector.model.backbone).eval()
        after = detector.predict(image, conf=0.0)
        assert not np.array_equal(before.scores, after.scores)
        batch = make_batch([image], detector.model.config)
        with torch.no_grad():
            expected = detector.model(batch)
        np.testing.assert_allclose(after.scores, expected.scores[0][expected.valid[0]], atol=1e-4)
