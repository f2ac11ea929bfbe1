"""Options that would do nothing are refused, and every other one is read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twostage.cli import verb
from twostage.cli.data_audit import AuditOptions
from twostage.cli.data_check import CheckOptions
from twostage.cli.data_proposals import ProposalsOptions
from twostage.cli.eval import EvalOptions
from twostage.cli.flags import Common
from twostage.cli.predict import PredictOptions
from twostage.cli.weights_convert import WeightsConvertOptions
from twostage.errors import UsageError
from twostage.training.options import TrainOptions
from twostage.training.start import require_start

DATA = Path("data")
RESULTS = {"data": DATA, "predictions": Path("found.json")}

# What is refused: the options class, what is given, and the option that has no effect then.
IDLE: list[tuple[type, dict[str, Any], str]] = [
    (PredictOptions, {"sources": ("a.jpg",), "weights": "w", "format": ("coco",)}, "format"),
    (PredictOptions, {"sources": ("a.jpg",), "weights": "w", "overlap": 0.5}, "overlap"),
    (PredictOptions, {"sources": ("a.jpg",), "weights": "w", "fuse": "wbf"}, "fuse"),
    *(
        (EvalOptions, {**RESULTS, name: value}, name)
        for name, value in {
            **{"conf": 0.5, "iou": 0.5, "size": 300, "max_size": 500, "model_fields": {"rpn_nms": 0.5}},
            **{"proposals": Path("p"), "flip": True, "scales": (0.5,), "tile": 64, "max_det": 10},
            **{"device": "cuda", "precision": "bf16", "batch": 2, "workers": 2, "choose_forms": False},
        }.items()
    ),
    (CheckOptions, {"data": DATA, "remove": True}, "remove"),
    *(
        (AuditOptions, {"data": DATA, "weights": "w", "out": Path("new"), name: value}, name)
        for name, value in {"model": "m", "minutes": 1.0, "seed": 1, "next": 2, "unlabelled": "images"}.items()
    ),
    *(
        (ProposalsOptions, {"data": DATA, "source": ("sliding_window",), name: value}, name)
        for name, value in {
            **{"width": 300, "seed": 1, "workers": 2, "keep": 100, "batch": 2, "device": "cuda", "precision": "bf16"},
            **{"choose_forms": False, "model_fields": {"rpn_nms": 0.5}, "size": 300, "max_size": 500},
        }.items()
    ),
    *(
        (WeightsConvertOptions, {"file": DATA, "out": Path("new"), "source": "classifier", **given}, name)
        for name, given in {
            "rpn_nms": {"model_fields": {"rpn_nms": 0.5}},
            "names": {"names": ("a",)},
            "config": {"config": Path("c.yaml")},
        }.items()
    ),
    (WeightsConvertOptions, {"file": DATA, "out": Path("new"), "model": "m", "names": ("a",), "key": "k"}, "key"),
    (TrainOptions, {"data": DATA, "rounds": 2}, "rounds"),
    (TrainOptions, {"data": DATA, "model": "faster_rcnn_tiny_fpn", "learn": ("head",), "freeze": 1}, "freeze"),
    (TrainOptions, {"data": DATA, "learn": ("rpn",), "proposals": Path("p")}, "proposals"),
    (TrainOptions, {"data": DATA, "epochs": 1, "minutes": 1}, "epochs"),
    *(
        (TrainOptions, {"data": DATA, "val_split": "none", name: value}, name)
        for name, value in {"eval_every": 1, "patience": 2, "conf": 0.1, "iou": 0.4, "max_det": 20}.items()
    ),
]


@pytest.mark.parametrize(("options", "given", "name"), IDLE, ids=[f"{o.__name__}-{n}" for o, _, n in IDLE])
def test_an_option_without_effect_is_refused_by_its_name(options: type, given: dict[str, Any], name: str) -> None:
    def use() -> None:
        made = options(**given)
        if isinstance(made, TrainOptions):
            require_start(made)
        if isinstance(made, PredictOptions):  # views are checked where they are made, before anything is read
            assert made.views

    with pytest.raises(UsageError, match=name.split("_", maxsplit=1)[0]):
        use()


class Reads:
    """The options that a verb has read, after they were validated."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def recording(self, options: Any) -> Any:
        """The same options, of a class that notes what is read of them."""
        fields = {each.name for each in dataclasses.fields(options)}

        def get(this: Any, name: str) -> Any:
            if name in fields:
                self.names.add(name)
            return object.__getattribute__(this, name)

        recorded = object.__new__(type(type(options).__name__, (type(options),), {"__getattribute__": get}))
        object.__getattribute__(recorded, "__dict__").update(vars(options))
        return recorded


# A run of each verb, and the options that it has no occasion to read: they are of other sources.
RUNS: dict[str, tuple[list[str], set[str]]] = {
    "data check": (["data", "check", "{scenes}", "--fix", "{out}"], {"remove"}),  # read where there are faults
    "data stats": (["data", "stats", "{scenes}"], set()),
    "data view": (["data", "view", "{scenes}", "--out", "{out}/view.html"], set()),
    "data convert": (["data", "convert", "{scenes}", "--to", "voc", "--out", "{out}"], set()),
    "data split": (["data", "split", "{scenes}", "--out", "{out}"], set()),
    "data audit": (
        ["data", "audit", "{scenes}", "--weights", "{weights}", "--out", "{out}", "--most", "1"],
        {"model", "minutes", "seed", "unlabelled"},
    ),
    "data proposals": (
        ["data", "proposals", "{scenes}", "--source", "{weights}", "--out", "{out}"],
        {"width", "quiet"},
    ),
    "eval": (["eval", "{scenes}", "--weights", "{weights}", "--workers", "0", "--why"], set()),
    "predict": (["predict", "{scenes}/val", "--weights", "{weights}", "--save", "{out}"], set()),
    "bench": (["bench", "--weights", "{weights}", "--seconds", "2"], {"model", "model_fields"}),
    "weights info": (["weights", "info", "{weights}"], set()),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_verb_reads_all_its_options(
    name: str,
    scenes: Path,
    weights: Path,
    tmp_path: Path,
    shell: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = Reads()
    classes: list[type] = []
    build = verb.build

    def recorded(options: type, given: Any) -> Any:
        made = build(options, given)
        if options is Common:
            return made
        classes.append(options)
        return reads.recording(made)

    monkeypatch.setattr(verb, "build", recorded)
    arguments, elsewhere = RUNS[name]
    places = {"scenes": scenes, "weights": weights, "out": tmp_path / "out"}
    (tmp_path / "out").mkdir() if name == "data view" else None
    answer = shell(*(argument.format(**places) for argument in arguments))
    assert answer.code == 0, answer.messages
    unread = {each.name for each in dataclasses.fields(classes[0])} - reads.names
    assert unread <= elsewhere
