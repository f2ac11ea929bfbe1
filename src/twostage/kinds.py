"""Values and the type hints of options and fields: convert a value to a type, check it, describe the type in words.

Values come from Python, JSON, YAML and weights files.
"""

import os
from contextlib import suppress
from math import inf, isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin


class Within(NamedTuple):
    """The smallest and the largest allowed value of a number, as in `Annotated[float, Within(0, 1)]`."""

    lowest: float
    highest: float = inf


def coerce(value: Any, kind: Any) -> Any:
    """Convert a value to the type where nothing is lost: lists to tuples, integers to floats, strings to paths.

    Any other value is returned unchanged, for `matches` to reject.
    """
    options = get_args(kind)
    if get_origin(kind) is tuple:
        return _coerce_tuple(value, options)
    if value is False and get_origin(kind) is Literal and False not in options and "off" in options:
        return "off"  # YAML 1.1 reads `off` as False
    for option in options if get_origin(kind) not in (Literal, dict) else ():
        value = coerce(value, option)
    if isinstance(value, Integral) and not isinstance(value, bool) and kind is int:
        return int(value)
    if isinstance(value, Real) and not isinstance(value, bool) and kind is float:
        with suppress(OverflowError):  # a whole number of any length, as JSON and YAML hold them
            return float(value)
    if isinstance(value, str) and kind is Path:
        return Path(value)
    return os.fspath(value) if isinstance(value, os.PathLike) and kind is str else value


def _coerce_tuple(value: Any, options: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        return value
    kinds = [options[0]] * len(value) if options[-1] is Ellipsis else [*options, *[None] * len(value)]
    return tuple(coerce(v, k) for v, k in zip(value, kinds, strict=False))


def matches(value: Any, kind: Any) -> bool:
    """Whether a coerced value is of the type. A bool is not a number, numbers are finite, tuples are not empty."""
    options = get_args(kind)
    if get_origin(kind) is Annotated:
        plain, within = options
        return matches(value, plain) and within.lowest <= value <= within.highest
    if get_origin(kind) is Literal:
        return value in options
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(matches(k, options[0]) for k in value)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and _matches_tuple(value, options)
    if options:
        return any(matches(value, k) for k in options)
    if kind is Any:
        return True
    if kind is float:
        return isinstance(value, float) and isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _matches_tuple(value: tuple[Any, ...], options: tuple[Any, ...]) -> bool:
    if options[-1] is Ellipsis:
        return len(value) > 0 and all(matches(v, options[0]) for v in value)
    return len(value) == len(options) and all(matches(v, k) for v, k in zip(value, options, strict=True))


def describe(kind: Any) -> str:
    """The type in words, for error messages: "a whole number of at least 1 or nothing (null)"."""
    options = get_args(kind)
    if get_origin(kind) is Annotated:
        plain, within = options
        limits = f"from {within.lowest:g} to {within.highest:g}"
        return f"{describe(plain)} " + (f"of at least {within.lowest:g}" if within.highest == inf else limits)
    if get_origin(kind) is Literal:
        return " or ".join(repr(v) for v in options)
    if get_origin(kind) is dict:
        return "a dictionary with texts as keys"
    if get_origin(kind) is tuple:
        count = "one or more" if options[-1] is Ellipsis else str(len(options))
        return f"a list of {count}, each {describe(options[0])}"
    if options:
        return " or ".join(describe(k) for k in options)
    return _WORDS[kind]


_WORDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    type(None): "nothing (null)",
}
