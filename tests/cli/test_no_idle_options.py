"""Options that would do nothing are refused, and every option of every verb is accounted for."""

import ast
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import twostage
from twostage import cli
from twostage.cli.data_check import CheckOptions
from twostage.cli.data_proposals import ProposalsOptions
from twostage.cli.eval import EvalOptions
from twostage.cli.predict import PredictOptions
from twostage.cli.weights_convert import WeightsConvertOptions
from twostage.errors import UsageError
from twostage.training.options import TrainOptions

SOURCE = Path(inspect.getfile(twostage)).parent
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
        (ProposalsOptions, {"data": DATA, "source": ("sliding_window",), name: value}, name)
        for name, value in {
            **{"width": 300, "seed": 1, "workers": 2, "keep": 100, "batch": 2, "device": "cuda", "precision": "bf16"},
            **{"choose_forms": False, "model_fields": {"rpn_nms": 0.5}, "size": 300, "max_size": 500},
        }.items()
    ),
    (WeightsConvertOptions, {"file": DATA, "out": Path("new"), "model_fields": {"rpn_nms": 0.5}}, "rpn_nms"),
    (WeightsConvertOptions, {"file": DATA, "out": Path("new"), "names": ("a",)}, "names"),
    (TrainOptions, {"data": DATA, "rounds": 2}, "rounds"),
    (TrainOptions, {"data": DATA, "learn": ("head",), "freeze": 1}, "freeze"),
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
        if isinstance(made, PredictOptions):  # views are checked where they are made, before anything is read
            assert made.views

    with pytest.raises(UsageError, match=name.split("_", maxsplit=1)[0]):
        use()


def verbs() -> dict[str, list[str]]:
    """The options of every verb, by the verb's name."""
    modules = {name: f"twostage.cli.{name}" for name in cli._VERBS}
    modules |= {
        f"{group} {name}": f"twostage.cli.{group}_{name}" for group, (_, some) in cli._GROUPS.items() for name in some
    }
    found = {}
    for name, module in modules.items():
        function = getattr(import_module(module), name.rpartition(" ")[2])
        found[name] = list(inspect.signature(function).parameters)
    return found


def test_every_option_is_read() -> None:
    """By name, as an attribute of the options or among names that are read so; no verb collects one for nothing."""
    read: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
    found = verbs()
    assert {"fix", "remove", "deep"} <= set(found["data check"])
    assert not [f"{name}: {option}" for name, options in found.items() for option in options if option not in read]
