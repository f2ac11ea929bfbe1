"""Flags and help of a verb, from the dataclass that holds its options."""

import contextlib
import inspect
import types
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import yaml
from cyclopts import Argument, Group, Parameter

from twostage.common_options import QuietOptions
from twostage.errors import UsageError
from twostage.options import option

# Sections of a help page, from top to bottom.
_SECTIONS = (
    *("Options", "Data", "Model", "Proposals", "Schedule", "Images", "Validation", "Why", "Detections", "int8"),
    *("Test-time augmentation", "Run", "Output"),
)


@dataclass(frozen=True, kw_only=True)
class Common(QuietOptions):
    """Options of every verb."""

    config: Path | None = option(None, "YAML file with options as `name: value`.", group="Run")
    set: tuple[str, ...] = option(
        (), "An option as name=value; with a model, a field of it as model.name=value.", group="Run"
    )
    json: bool = option(False, "Print one JSON object on standard output, all else on standard error.", group="Output")
    debug: bool = option(False, "Print tracebacks and debug messages.", group="Output")


def signature_of(options: type) -> inspect.Signature:
    """The signature of a verb: the fields of its dataclass and the common ones, annotated for cyclopts."""
    own = {each.name: _parameter(each, hint) for each, hint in _typed_fields(options)}
    common = {each.name: _parameter(each, hint) for each, hint in _typed_fields(Common)}
    return inspect.Signature(sorted((own | common | own).values(), key=lambda row: row.kind))


def build(cls: type, given: dict[str, Any]) -> Any:
    """The dataclass `cls` from the given values of its fields; strings `key=value` become its dicts."""
    values = {}
    for each, hint in _typed_fields(cls):
        if each.name in given:
            value = given[each.name]
            values[each.name] = dict(map(_pair, value)) if _is_dict(hint) else value
    return cls(**values)


def _typed_fields(cls: type) -> list[tuple[Field[Any], Any]]:
    """A class's own fields before those it inherits."""
    hints = get_type_hints(cls)
    depth = {name: depth for depth, base in enumerate(cls.__mro__) for name in inspect.get_annotations(base)}
    return [(each, hints[each.name]) for each in sorted(fields(cls), key=lambda each: depth[each.name])]


def _parameter(each: Field[Any], hint: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if each.default is MISSING else each.default
    section = each.metadata["group"]
    note = Parameter(
        name=each.metadata["flag"],
        help=each.metadata["help"],
        group=Group(section, sort_key=_SECTIONS.index(section)),
        show_default=_shown if default not in (None, (), False, inspect.Parameter.empty) else False,
        # Nobody takes back a flag on the same command line: `--no-json` would only lengthen the help.
        negative_bool=() if section == "Output" else None,
        # A dict holds fields of the model, whose names depend on the model: they are set by --set, without flags.
        show=not _is_dict(hint),
        consume_multiple=each.kw_only and each.name != "set" and _is_variadic(hint),
        negative_iterable=(),
        # So that `-`, standard input, is a source; `settings.fill` refuses misspelt options.
        allow_leading_hyphen=not each.kw_only and _is_variadic(hint),
        json_list=False,
    )
    kind = inspect.Parameter.KEYWORD_ONLY if each.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
    if _is_dict(hint):
        hint, default = tuple[str, ...], ()
    return inspect.Parameter(each.name, kind, default=default, annotation=Annotated[hint, note])


def is_common(argument: Argument) -> bool:
    """Whether an option is one of all verbs, and not a verb's own of the same name."""
    common = {each.name: each.metadata["help"] for each in fields(Common)}
    return argument.parameter.help == common.get(argument.field_info.name)


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _is_dict(hint: Any) -> bool:
    return get_origin(hint) is dict


def _is_variadic(hint: Any) -> bool:
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return any(get_origin(part) is tuple and get_args(part)[-1:] == (...,) for part in parts)


def _pair(text: str) -> tuple[str, Any]:
    """`rpn_nms=0.6` as ("rpn_nms", 0.6); values are read as YAML reads them."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set model.{text}: no value given, write --set model.{key}=VALUE")
    try:
        read = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no such date, too many digits or brackets
        raise UsageError(f"--set model.{text[:80]}: the value cannot be read ({error})") from error
    # YAML 1.1 reads 1e-3 as a string; the number is meant.
    if isinstance(read, str):
        with contextlib.suppress(ValueError):
            read = float(read)
    return key.replace("-", "_"), tuple(read) if isinstance(read, list) else read
