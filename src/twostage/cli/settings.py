"""Options from `--config FILE` and `--set key=value`: flags override them, and they override defaults.

cyclopts calls `fill` after reading the flags: an option that has a value by then keeps it.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from cyclopts import App, Argument, ArgumentCollection, Token

from twostage.cli.flags import is_common
from twostage.errors import DataError, UsageError, nearest

# The dict `model_fields` of a dataclass is written `model.key=value`.
_FIELDS = "_fields"


def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give every option without a flag its value from `--set`, else from the configuration file."""
    known = {argument.field_info.name: argument for argument in arguments}
    given = {name for name, argument in known.items() if argument.tokens}
    for argument in arguments:
        for token in argument.tokens:
            if token.keyword is None:
                refuse_option(token.value, arguments)
                refuse_assignment(token.value, known)
    if "set" in known:
        given |= _fill_from_set(known, given)
    if "config" in known and known["config"].tokens and is_common(known["config"]):
        _fill_from_file(Path(known["config"].tokens[-1].value), known, given)
    for argument in arguments:
        _refuse_fraction(argument)


def refuse_option(text: str, arguments: ArgumentCollection) -> None:
    """Raise UsageError when an argument looks like an option: options of the verb were consumed before."""
    if text.startswith("-") and text != "-":
        flags = [name for argument in arguments if argument.show for name in argument.names]
        raise UsageError(f"unknown option {text}. {nearest(text.partition('=')[0], flags)}")


def refuse_assignment(text: str, known: Any) -> None:
    """Raise UsageError with the right spelling when an argument reads `key=value` and `key` is an option."""
    match = re.fullmatch(r"-{0,2}([A-Za-z_-]+(?:\.[\w-]+)*)=(.*)", text)
    if match is None or Path(text).exists():
        return
    key, value = match.groups()
    name = key.replace("-", "_")
    if name in known:
        raise UsageError(f"{text!r} is not a path. Options are written --{name.replace('_', '-')} {value}")
    if name.partition(".")[0] + _FIELDS in known:
        raise UsageError(f"{text!r} is not a path. Fields of the model are written --set {text}, one per --set")


def _refuse_fraction(argument: Argument) -> None:
    """Raise UsageError for a fraction given to an integer option: cyclopts would round it."""
    if argument.hint is not int and int not in get_args(argument.hint):
        return
    for token in argument.tokens:
        with contextlib.suppress(ValueError):  # cyclopts reports values that are no numbers
            if not float(token.value).is_integer():
                origin = token.keyword if token.source == "cli" else token.source
                raise UsageError(f"{origin} {token.value}: must be a whole number")


def _fill_from_set(known: dict[str, Argument], given: set[str]) -> set[str]:
    """Returns the names of the options set. The last of two equal keys wins."""
    pairs: dict[str, str] = {}
    for token in known["set"].tokens:
        key, equals, value = token.value.partition("=")
        if not equals:
            raise UsageError(f"--set {token.value}: no value given, write --set {key}=VALUE")
        pairs[key.replace("-", "_")] = value
    done = set()
    for key, value in pairs.items():
        head, dot, rest = key.partition(".")
        if dot and head + _FIELDS in known:
            _append(known[head + _FIELDS], f"{rest}={value}", f"--set {key}")
            continue
        name = _known_name(key, known, "--set")
        if name not in given:
            # As `--set scale=0.5,2`, for an option that takes several values.
            for part in value.split(",") if _takes_several(known[name]) else [value]:
                _append(known[name], part, f"--set {key}")
            done.add(name)
    return done


def _fill_from_file(path: Path, known: dict[str, Argument], given: set[str]) -> None:
    for key, value in _read(path).items():
        head, dot, rest = str(key).partition(".")
        if dot and head + _FIELDS in known:
            key, value = head + _FIELDS, {rest: value}
        name = _known_name(str(key), known, str(path))
        argument = known[name]
        if isinstance(value, dict):
            _merge(argument, value, name, path)
        elif isinstance(value, list) and not _takes_several(argument):
            raise UsageError(f"{path}: {name} is {value}, and must be one value")
        elif value is not None and name not in given:
            for part in value if isinstance(value, list) else [value]:
                _append(argument, _text(part), f"{path}: {name}")


def _merge(argument: Argument, value: dict[Any, Any], name: str, path: Path) -> None:
    """Fields of the model, before those that --set gave: the last value of a field counts, whichever name it has."""
    if not name.endswith(_FIELDS):
        raise UsageError(f"{path}: {name} is a mapping, and must be one value")
    given = list(argument.tokens)
    argument.tokens.clear()
    for key, part in value.items():
        _append(argument, f"{key}={json.dumps(part)}", f"{path}: {name}")
    argument.tokens.extend(given)


def _read(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not YAML ({error})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise DataError(f"{path}: contains a {type(content).__name__}; options are written as `name: value`.")
    return content


def _known_name(key: str, known: dict[str, Argument], source: str) -> str:
    name = key.replace("-", "_")
    options = [each for each in known if each not in ("config", "set")]
    if name not in options:
        model = " A field of the model is written as model.NAME." if f"model{_FIELDS}" in known else ""
        raise UsageError(f"{source}: no option is called {key!r}. {nearest(name, options)}{model}")
    return name


def _append(argument: Argument, value: str, source: str) -> None:
    argument.append(Token(keyword=argument.name, value=value, source=source, index=len(argument.tokens)))


def _takes_several(argument: Argument) -> bool:
    count, takes_all = argument.token_count()
    return takes_all or count > 1


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
