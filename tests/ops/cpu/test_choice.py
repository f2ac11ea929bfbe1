"""The choice among forms by measuring: with calls of known time, and its file."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from twostage.ops.cpu import choice
from twostage.ops.cpu.choice import Choices, choices, fastest

NAMES = ["plain", "packed"]
MACHINE = {"cpu": "some", "threads": "2"}


def key(number: int) -> str:
    """The decision of a layer in the file: the layer, and the forms."""
    return f"conv {number}: plain, packed"


def takes(milliseconds: float, value: float = 1.0) -> Callable[[], Tensor]:
    """A form that computes so long, and whose result is this."""

    def call() -> Tensor:
        end = time.thread_time() + milliseconds / 1e3
        while time.thread_time() < end:
            pass
        return torch.full((3,), value)

    return call


def fails() -> Tensor:
    raise RuntimeError("no such operator")


def test_the_fastest_form_that_agrees_is_chosen() -> None:
    forms = {"plain": takes(20), "packed": takes(8), "slow": takes(60), "wrong": takes(1, 1.1), "absent": fails}
    assert fastest(forms) == ("packed", True)


def test_a_gain_within_the_noise_does_not_replace_the_first_form() -> None:
    assert fastest({"plain": takes(20), "packed": takes(19.9)})[0] == "plain"


def test_a_slow_form_is_called_twice_only() -> None:
    """Once to compare its result, once to time it."""
    calls = []

    def slow() -> Tensor:
        calls.append(1)
        return takes(30)()

    assert fastest({"plain": takes(2), "slow": slow})[0] == "plain"
    assert len(calls) == 2


def test_a_decision_is_made_once_and_serves_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "forms.json"
    first = Choices(path, MACHINE)
    assert first.choose("conv 1", NAMES, lambda: {"plain": takes(20), "packed": takes(2)}) == "packed"
    assert first.choose("conv 1", NAMES, lambda: {"plain": takes(0), "packed": takes(50)}) == "packed"
    assert not path.exists()
    first.save()
    assert Choices(path, MACHINE).choose("conv 1", NAMES, lambda: {"plain": takes(0), "packed": takes(50)}) == "packed"


def test_a_decision_that_was_disturbed_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "forms.json"
    made = Choices(path, MACHINE)
    moments = iter(range(1, 100))

    def unsteady() -> Tensor:
        return takes(1.5 ** next(moments))()

    assert made.choose("conv 1", NAMES, lambda: {"plain": unsteady}) == "plain"
    made.choose("conv 2", NAMES, lambda: {"plain": takes(20), "packed": takes(2)})
    made.save()
    assert made.made.keys() == {key(1), key(2)}
    assert Choices(path, MACHINE).made == {key(2): "packed"}


def test_what_another_process_has_decided_meanwhile_holds(tmp_path: Path) -> None:
    path = tmp_path / "forms.json"
    one, other = Choices(path, MACHINE), Choices(path, MACHINE)
    assert one.choose("conv 1", NAMES, lambda: {"plain": takes(0), "packed": takes(20)}, lasting=True) == "plain"
    assert other.choose("conv 1", NAMES, dict, lasting=True) == "plain"
    # Both try at the same time: the one that saves later takes the decision of the other.
    third = Choices(path, MACHINE)

    def while_another_is_faster() -> dict[str, Callable[[], Tensor]]:
        one.choose("conv 2", NAMES, lambda: {"plain": takes(0), "packed": takes(20)}, lasting=True)
        return {"plain": takes(20), "packed": takes(0)}

    assert third.choose("conv 2", NAMES, while_another_is_faster, lasting=True) == "plain"


def test_other_forms_are_another_decision(tmp_path: Path) -> None:
    """A process without oneDNN has fewer forms, and must not decide for those that have it."""
    path = tmp_path / "forms.json"
    made = Choices(path, MACHINE)
    assert made.choose("conv 1", ["plain"], lambda: {"plain": takes(0)}, lasting=True) == "plain"
    later = Choices(path, MACHINE)
    assert later.choose("conv 1", NAMES, lambda: {"plain": takes(20), "packed": takes(1)}, lasting=True) == "packed"
    assert later.choose("conv 1", ["plain"], dict) == "plain"


def test_results_that_are_not_finite_leave_the_first_form() -> None:
    assert fastest({"plain": takes(1, float("nan")), "packed": takes(0)}) == ("plain", False)


def test_threads_and_matrix_products_have_decisions_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWOSTAGE_HOME", str(tmp_path))
    exact = choices().path
    torch.set_float32_matmul_precision("medium")
    try:
        assert choices().path != exact
    finally:
        torch.set_float32_matmul_precision("highest")
    assert choices().path == exact


def test_a_decision_for_a_form_that_is_gone_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "forms.json"
    path.write_text(json.dumps({"machine": MACHINE, "choices": {key(1): "of a later version"}}), encoding="utf-8")
    made = Choices(path, MACHINE)
    assert made.choose("conv 1", NAMES, lambda: {"plain": takes(0)}, lasting=True) == "plain"
    made.save()
    assert Choices(path, MACHINE).made == {key(1): "plain"}


def test_the_first_form_may_fail_too() -> None:
    assert fastest({"packed": fails, "plain": takes(1)})[0] == "plain"
    assert fastest({"packed": fails}) == ("packed", False)


def test_without_a_home_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TWOSTAGE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    made = choice.choices()
    made.choose("conv 1", NAMES, lambda: {"plain": takes(0)}, lasting=True)
    made.save()
    assert not made.path.exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"machine": {"cpu": "another"}, "choices": {"conv 1": "plain"}}',
        '{"machine": {"cpu": "some", "threads": "2"}, "choices": ["plain"]}',
        '{"machine": {"cpu": "some", "threads": "2"}, "choices": {"conv 1": 3}}',
        "\udcff",
    ],
)
def test_a_broken_file_or_one_of_another_machine_counts_as_empty(tmp_path: Path, content: str) -> None:
    path = tmp_path / "forms.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    made = Choices(path, MACHINE)
    assert made.made == {}
    made.choose("conv 1", NAMES, lambda: {"plain": takes(20), "packed": takes(1)}, lasting=True)
    made.save()
    assert json.loads(path.read_text(encoding="utf-8")) == {"machine": MACHINE, "choices": {key(1): "packed"}}


def test_the_decisions_of_a_process_beside_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "forms.json"
    one, other = Choices(path, MACHINE), Choices(path, MACHINE)
    one.choose("conv 1", NAMES, lambda: {"plain": takes(0), "packed": takes(20)}, lasting=True)
    other.choose("conv 1", NAMES, lambda: {"plain": takes(20), "packed": takes(0)}, lasting=True)
    other.choose("conv 2", NAMES, lambda: {"plain": takes(20), "packed": takes(0)}, lasting=True)
    one.save()
    other.save()
    assert Choices(path, MACHINE).made == {key(1): "plain", key(2): "packed"}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    made = Choices(tmp_path / "file" / "forms.json", MACHINE)
    assert made.choose("conv 1", NAMES, lambda: {"plain": takes(0)}) == "plain"
    made.save()


def test_each_number_of_threads_has_decisions_of_its_own() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = choices()
        torch.set_num_threads(2)
        assert choices().path != one.path
        assert choices() is choices()
    finally:
        torch.set_num_threads(before)
