"""Flags, `--set` and `--config`: one dataclass is the source of all three, and flags override files."""

import inspect
import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from cyclopts import App, CoercionError

from twostage.cli.settings import fill
from twostage.cli.verb import Outcome, verb
from twostage.errors import DataError, UsageError
from twostage.options import option, validate


@dataclass(frozen=True)
class Options:
    """A verb with one option of each kind."""

    data: Path | None = option(None, "Data.")
    _: KW_ONLY
    epochs: int = option(1, "Epochs.", low=1)
    lr: float | None = option(None, "Rate.", above=0)
    max_det: int = option(100, "Detections.")
    flip: bool = option(False, "Flip.")
    precision: Literal["fp32", "bf16"] = option("fp32", "Precision.")
    names: tuple[str, ...] | None = option(None, "Names.")
    scale: tuple[float, float] | None = option(None, "Scale.")
    model_fields: dict[str, Any] = option({}, "Fields.")

    def __post_init__(self) -> None:
        validate(self)


EVERY = Options(epochs=3, lr=1e-3, max_det=7, flip=True, precision="bf16", names=("cat", "dog"), scale=(0.5, 2.0))


@pytest.fixture
def parse() -> Callable[..., Options]:
    """Runs the verb on arguments and returns its options."""
    seen: list[Options] = []

    @verb(Options)
    def go(options: Options) -> Outcome:
        """Go."""
        seen.append(options)
        return Outcome({})

    app = App(config=fill, print_error=False, exit_on_error=False, result_action="return_value")
    app.command(go, name="go")

    def run(*arguments: str) -> Options:
        app(["go", *arguments])
        return seen[-1]

    return run


def write(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def test_without_arguments_the_options_are_the_defaults(parse: Callable[..., Options]) -> None:
    assert parse() == Options()


def test_flags_reach_every_kind_of_option(parse: Callable[..., Options]) -> None:
    arguments = "somewhere --epochs 3 --lr 1e-3 --max-det 7 --flip --precision bf16 --names cat dog --scale 0.5 2"
    assert parse(*arguments.split()) == replace(EVERY, data=Path("somewhere"))


def test_set_reaches_every_kind_of_option(parse: Callable[..., Options]) -> None:
    pairs = ["epochs=3", "lr=1e-3", "max-det=7", "flip=true", "precision=bf16", "names=cat,dog", "scale=0.5,2"]
    assert parse(*(word for pair in pairs for word in ("--set", pair))) == EVERY


def test_file_reaches_every_kind_of_option(parse: Callable[..., Options], tmp_path: Path) -> None:
    text = "data: there\nepochs: 3\nlr: 1e-3\nmax_det: 7\nflip: true\nprecision: bf16\n"
    file = write(tmp_path, text + "names: [cat, dog]\nscale: [0.5, 2]\n")
    assert parse("--config", file) == replace(EVERY, data=Path("there"))


def test_precedence_is_flag_then_set_then_file_then_default(parse: Callable[..., Options], tmp_path: Path) -> None:
    file = write(tmp_path, "epochs: 2\nlr: 0.2\nmax_det: 2\n")
    found = parse("--config", file, "--set", "epochs=3", "--set", "lr=0.3", "--epochs", "4")
    assert (found.epochs, found.lr, found.max_det, found.precision) == (4, 0.3, 2, "fp32")


def test_flag_turns_off_what_a_file_turns_on(parse: Callable[..., Options], tmp_path: Path) -> None:
    assert parse("--config", write(tmp_path, "flip: true"), "--no-flip").flip is False


def test_null_in_a_file_means_the_default(parse: Callable[..., Options], tmp_path: Path) -> None:
    assert parse("--config", write(tmp_path, "epochs: null\nlr: null\n")) == Options()


def test_last_of_equal_set_keys_wins(parse: Callable[..., Options]) -> None:
    assert parse("--set", "epochs=3", "--set", "epochs=5").epochs == 5


def test_model_fields_keep_their_kind(parse: Callable[..., Options]) -> None:
    pairs = ["model.rpn_nms=0.6", "model.size=320", "model.norm=group", "model.aligned=true", "model.lr=1e-3"]
    pairs.append("model.anchor-sizes=[[16], [32]]")
    found = parse(*(word for pair in pairs for word in ("--set", pair))).model_fields
    assert found == {
        "rpn_nms": 0.6, "size": 320, "norm": "group", "aligned": True, "lr": 1e-3, "anchor_sizes": ([16], [32])
    }  # fmt: skip


def test_set_wins_over_file_field_by_field(parse: Callable[..., Options], tmp_path: Path) -> None:
    file = write(tmp_path, "model_fields: {rpn_nms: 0.5, size: 320}\nmodel.norm: group\n")
    assert parse("--config", file, "--set", "model.rpn_nms=0.6").model_fields == {
        "rpn_nms": 0.6, "size": 320, "norm": "group"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "epohs=3"], "Did you mean 'epochs'?"),
        (["--set", "rpn_nms=0.6"], "A field of the model is written as model.NAME."),
        (["--set", "epochs"], "write --set epochs=VALUE"),
        (["--set", "model.nms"], "write --set model.nms=VALUE"),
        (["--set", "model.nms=2024-13-45"], "the value cannot be read (month must be in 1..12)"),
        (["--set", f"model.nms={'9' * 5000}"], "the value cannot be read (Exceeds the limit"),
        (["--set", f"model.nms={'[' * 3000}"], "the value cannot be read (maximum recursion depth"),
        (["epochs=3"], "written --epochs 3"),
        (["max_det=3"], "written --max-det 3"),
        (["model.nms=0.5"], "written --set model.nms=0.5"),
        (["--epochs", "1.9"], "must be a whole number"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--epochs", "0"], "epochs is 0, and must be at least 1"),
        (["--lr", "nan"], "lr is nan, and must be a finite number"),
        (["--lr", "0"], "lr is 0, and must be above 0"),
    ],
)
def test_wrong_usage_names_the_right_one(parse: Callable[..., Options], arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse(*arguments)


def test_an_existing_file_may_have_the_name_of_an_assignment(
    parse: Callable[..., Options], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("epochs=3").touch()
    assert parse("epochs=3").data == Path("epochs=3")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("epohs: 3", UsageError, "run.yaml: no option is called 'epohs'. Did you mean 'epochs'"),
        ("set: [a=b]", UsageError, "no option is called 'set'"),
        ("epochs: {a: 1}", UsageError, "epochs is a mapping"),
        ("[1, 2]", DataError, "contains a list"),
        ("epochs: [", DataError, "is not YAML"),
    ],
)
def test_faulty_file_is_named_with_its_fault(
    parse: Callable[..., Options], tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        parse("--config", write(tmp_path, text))


def test_wrong_value_in_a_file_names_file_and_key(parse: Callable[..., Options], tmp_path: Path) -> None:
    with pytest.raises(CoercionError) as caught:
        parse("--config", write(tmp_path, "epochs: many"))
    assert "run.yaml: epochs" in str(caught.value)
    assert "many" in str(caught.value)


def test_every_option_but_fields_of_the_model_has_help() -> None:
    from twostage.training.options import TrainOptions

    shown = {
        name: row.annotation.__metadata__[0]
        for name, row in inspect.signature(verb(TrainOptions)(lambda options: Outcome({}))).parameters.items()
    }
    assert all(note.help for note in shown.values())
    assert [name for name, note in shown.items() if note.show is False] == ["model_fields"]


def test_a_list_is_refused_where_one_value_is_wanted(shell: Callable, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("conf: [0.1, 0.2]\n")
    answer = shell("predict", "a.jpg", "--weights", "w.safetensors", "--config", config)
    assert answer.code == 2
    assert "conf is [0.1, 0.2], and must be one value" in answer.messages
