"""Options declared once, on a dataclass, for Python, the command line and configuration files.

@dataclass(frozen=True)
class EvalOptions(Options):
    data: Path = option(help="A data set.")
    _: KW_ONLY
    conf: float = option(0.5, "Lowest score kept.", group="Detections", low=0, high=1)
"""

import math
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from twostage.errors import UsageError, nearest
from twostage.kinds import coerce, describe, matches

Number = int | float


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    group: str = "Options",
    low: Number | None = None,
    above: Number | None = None,
    high: Number | None = None,
    flag: str | None = None,
) -> Any:
    """A dataclass field with its help, its section of the help page and the range of its numbers (`above` excludes).

    `flag` is its flag where that is not its name.
    """
    metadata = {"help": help, "group": group, "low": low, "above": above, "high": high, "flag": flag}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Base of the options dataclasses: values are validated. A subclass with rules of its own calls this first."""

    def __post_init__(self) -> None:
        validate(self)


def validate(options: Any) -> None:
    """Check every field of a dataclass against its choices, its range and its type.

    Lossless conversions are done in place: a string becomes a path, a list a tuple. Raises UsageError for the first
    field that fails.
    """
    hints = get_type_hints(type(options))
    for each in fields(options):
        value = coerce(getattr(options, each.name), hints[each.name])
        object.__setattr__(options, each.name, value)  # of a frozen dataclass, while it is made
        choices = choices_of(hints[each.name])
        if choices and isinstance(value, str) and value not in choices:
            raise UsageError(f"{each.name} is {value!r}. {nearest(value, choices)}")
        for number in _numbers(value):
            _check_range(each, number)
        if value != each.default and not matches(value, hints[each.name]):
            raise UsageError(f"{each.name} is {value!r}, and must be {_describe(hints[each.name])}")


def _describe(hint: Any) -> str:
    """The type in words, without the None of an option that is not given."""
    if get_origin(hint) not in (Union, types.UnionType):
        return describe(hint)
    return " or ".join(describe(part) for part in get_args(hint) if part is not type(None))


def choices_of(hint: Any) -> tuple[str, ...]:
    """The strings a Literal, or an optional Literal, allows; empty for any other type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(choice for part in get_args(hint) for choice in choices_of(part))
    return ()


def _numbers(value: Any) -> Iterator[Number]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _numbers(part)


def _check_range(each: Field[Any], number: Number) -> None:
    low, above, high = (each.metadata.get(key) for key in ("low", "above", "high"))
    if isinstance(number, int) and abs(number) >= 2**31:
        raise UsageError(f"{each.name} is {number}, and must be below {2**31}")
    if not math.isfinite(number):
        raise UsageError(f"{each.name} is {number}, and must be a finite number")
    if low is not None and number < low:
        raise UsageError(f"{each.name} is {number:g}, and must be at least {low:g}")
    if above is not None and number <= above:
        raise UsageError(f"{each.name} is {number:g}, and must be above {above:g}")
    if high is not None and number > high:
        raise UsageError(f"{each.name} is {number:g}, and must be at most {high:g}")
