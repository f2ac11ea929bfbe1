"""What kind of value a declared type takes: values are fitted to it, held against it, and it is put into words.

Type hints say what an option or a model's field is; values come from Python, JSON, YAML and weights files.
"""

import os
from math import inf, isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin


class Within(NamedTuple):
    """The smallest and the largest value a number may have, in `Annotated[float, Within(0, 1)]`."""

    lowest: float
    highest: float = inf


def fitted(value: Any, kind: Any) -> Any:
    """The value as the type wants it, where nothing is lost: lists become tuples, whole numbers floats, texts paths.

    What does not fit is returned as it is, for `fits` to refuse.
    """
    options = get_args(kind)
    if get_origin(kind) is tuple:
        return _fitted_tuple(value, options)
    if value is False and get_origin(kind) is Literal and False not in options and "off" in options:
        return "off"  # which YAML 1.1 reads as a truth value
    for option in options if get_origin(kind) not in (Literal, dict) else ():
        value = fitted(value, option)
    if isinstance(value, Integral) and not isinstance(value, bool) and kind is int:
        return int(value)
    if isinstance(value, Real) and not isinstance(value, bool) and kind is float:
        return float(value)
    if isinstance(value, str) and kind is Path:
        return Path(value)
    return os.fspath(value) if isinstance(value, os.PathLike) and kind is str else value


def _fitted_tuple(value: Any, options: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        return value
    kinds = [options[0]] * len(value) if options[-1] is Ellipsis else [*options, *[None] * len(value)]
    return tuple(fitted(v, k) for v, k in zip(value, kinds, strict=False))


def fits(value: Any, kind: Any) -> bool:
    """Whether a fitted value is of the type: a bool is no number, a number is finite, a tuple is not empty."""
    options = get_args(kind)
    if get_origin(kind) is Annotated:
        plain, within = options
        return fits(value, plain) and within.lowest <= value <= within.highest
    if get_origin(kind) is Literal:
        return value in options
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(fits(k, options[0]) for k in value)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and _fits_tuple(value, options)
    if options:
        return any(fits(value, k) for k in options)
    if kind is Any:
        return True
    if kind is float:
        return isinstance(value, float) and isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _fits_tuple(value: tuple[Any, ...], options: tuple[Any, ...]) -> bool:
    if options[-1] is Ellipsis:
        return len(value) > 0 and all(fits(v, options[0]) for v in value)
    return len(value) == len(options) and all(fits(v, k) for v, k in zip(value, options, strict=True))


def described(kind: Any) -> str:
    """The type in words, for a message: "a whole number of at least 1 or nothing (null)"."""
    options = get_args(kind)
    if get_origin(kind) is Annotated:
        plain, within = options
        limits = f"from {within.lowest:g} to {within.highest:g}"
        return f"{described(plain)} " + (f"of at least {within.lowest:g}" if within.highest == inf else limits)
    if get_origin(kind) is Literal:
        return " or ".join(repr(v) for v in options)
    if get_origin(kind) is dict:
        return "a dictionary with texts as keys"
    if get_origin(kind) is tuple:
        count = "one or more" if options[-1] is Ellipsis else str(len(options))
        return f"a list of {count}, each {described(options[0])}"
    if options:
        return " or ".join(described(k) for k in options)
    return _WORDS[kind]


_WORDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    type(None): "nothing (null)",
}
