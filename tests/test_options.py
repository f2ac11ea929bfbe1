"""Options given in Python: what fits is put right, what does not is refused by name, value and mend."""

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from twostage.errors import UsageError
from twostage.options import option, validate


# The suite checks types of the package by itself, and would refuse these before `validate`; not those declared here.
@dataclass(frozen=True)
class Some:
    data: Path | None = option(None, "A data set.")
    epochs: int | None = option(None, "Passes.", low=1)
    lr: float | None = option(None, "Learning rate.", above=0)
    flip: float = option(0.5, "Chance.", low=0, high=1)
    quiet: bool = option(False, "Say less.")
    weights: str | None = option(None, "A file or a name.")
    names: tuple[str, ...] | None = option(None, "Classes.")
    sources: tuple[Path, ...] = option((), "Pictures.")
    scale: tuple[float, float] | None = option(None, "Factors.", above=0)
    model_fields: dict[str, Any] = option({}, "Fields.")
    schedule: Literal["multistep", "cosine"] | None = option(None, "How the rate falls.")

    def __post_init__(self) -> None:
        validate(self)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": "3"}, "epochs is '3', and must be a whole number"),
        ({"epochs": 2.5}, "epochs is 2.5, and must be a whole number"),
        ({"epochs": True}, "epochs is True, and must be a whole number"),
        ({"epochs": 0}, "epochs is 0, and must be at least 1"),
        ({"epochs": 2**31}, "epochs is 2147483648, and must be below 2147483648"),
        ({"lr": "1e-3"}, "lr is '1e-3', and must be a number"),
        ({"lr": 10**400}, "lr is 1000"),
        ({"lr": float("nan")}, "lr is nan, and must be a finite number"),
        ({"flip": None}, "flip is None, and must be a number"),
        ({"flip": 2}, "flip is 2, and must be at most 1"),
        ({"quiet": "yes"}, "quiet is 'yes', and must be true or false"),
        ({"data": 3}, "data is 3, and must be a path"),
        ({"names": "RBC"}, "names is 'RBC', and must be a list of one or more, each a text"),
        ({"names": [1]}, "names is (1,), and must be a list of one or more, each a text"),
        ({"scale": [0.5]}, "scale is (0.5,), and must be a list of 2, each a number"),
        ({"model_fields": [1]}, "model_fields is [1], and must be a dictionary with texts as keys"),
        ({"model_fields": {1: 2}}, "model_fields is {1: 2}, and must be a dictionary with texts as keys"),
        ({"schedule": "cosin"}, "schedule is 'cosin'. "),
        ({"schedule": 1}, "schedule is 1, and must be 'multistep' or 'cosine'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_its_name_and_what_it_must_be(given, message):
    with pytest.raises(UsageError) as error:
        Some(**given)
    assert str(error.value).startswith(message)


def test_values_that_only_look_different_are_put_right():
    options = Some(
        data="blood-cells",
        epochs=np.int64(3),
        lr=1,
        flip=np.float32(0.5),
        weights=Path("best.safetensors"),
        names=["RBC", "WBC"],
        sources=["a.jpg", Path("b.jpg")],
        scale=[1, 2],
    )
    assert options == Some(
        data=Path("blood-cells"),
        epochs=3,
        lr=1.0,
        flip=0.5,
        weights="best.safetensors",
        names=("RBC", "WBC"),
        sources=(Path("a.jpg"), Path("b.jpg")),
        scale=(1.0, 2.0),
    )
    assert [type(v) for v in (options.data, options.epochs, options.lr, options.flip)] == [
        type(Path()),
        int,
        float,
        float,
    ]


def test_defaults_stand_as_they_are_and_options_stay_frozen():
    options = Some()
    assert options.sources == ()
    assert options.model_fields == {}
    with pytest.raises(FrozenInstanceError):
        options.epochs = 3  # type: ignore[misc]
