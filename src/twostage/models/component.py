"""What the configuration of a component is made of: a frozen dataclass of leaves and of further components.

Every leaf has a path, `rpn.nms`, and a short name, `rpn_nms`: the path with underscores, or what `short` declares.
"""

from collections.abc import Iterator, Mapping
from dataclasses import field, fields, is_dataclass, replace
from functools import cache
from types import MappingProxyType, NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

from twostage.errors import UsageError
from twostage.kinds import Within, coerce, describe, matches

Positive = Annotated[float, Within(1e-3)]
Count = Annotated[int, Within(1)]
CountFromZero = Annotated[int, Within(0)]
Share = Annotated[float, Within(0, 1)]
# An IoU that separates boxes: from 0 on every box would match, in images without objects too.
IoULimit = Annotated[float, Within(1e-3, 1)]
NotNegative = Annotated[float, Within(0)]
Quad = tuple[Positive, Positive, Positive, Positive]


def short(default: Any, *names: str) -> Any:
    """A field of a configuration with short names of its own. Several components may share one: it sets them all."""
    return field(default=default, metadata={"short": names})


def component(default: Any, **names: str) -> Any:
    """A field that holds a component; `names` are short names of its leaves: `component(..., size="mask_size")`."""
    return field(default=default, metadata={"names": names})


class Leaf(NamedTuple):
    """One value of a configuration: where it is, its names, its declared type, and the value."""

    path: str
    names: frozenset[str]
    kind: Any
    value: Any


def leaves(config: Any, prefix: str = "", more: Mapping[str, str] = MappingProxyType({})) -> Iterator[Leaf]:
    """Every value of a configuration, depth first; components that are None have none."""
    kinds = kinds_of(config.__class__)
    for each in fields(config):
        value, path = getattr(config, each.name), f"{prefix}{each.name}"
        if is_dataclass(value):
            yield from leaves(value, f"{path}.", each.metadata.get("names", {}))
        elif not _is_component(kinds[each.name]):
            names = {path, path.replace(".", "_"), *each.metadata.get("short", ()), more.get(each.name, path)}
            yield Leaf(path, frozenset(names), kinds[each.name], value)


def with_value(config: Any, path: str, value: Any) -> Any:
    """The configuration with the value, or the whole component, at a path replaced."""
    head, _, rest = path.partition(".")
    return replace(config, **{head: with_value(getattr(config, head), rest, value) if rest else value})


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested values, as JSON and YAML hold them: a component with its class as `type`, none where it is None."""
    values: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            values[each.name] = {"type": type(value).__name__, **to_dict(value)}
        elif not _is_component(kinds_of(config.__class__)[each.name]):
            values[each.name] = value
    return values


def from_dict(cls: Any, values: Mapping[str, Any], path: str = "") -> Any:
    """The component of a class from values as `to_dict` gives them; missing values have their defaults,
    missing components are None where they may be.

    Raises UnknownFieldError for a name that the component does not have, UsageError for a value of another kind.
    """
    kinds, given = kinds_of(cls), {}
    for name, value in values.items():
        where = f"{path}{name}"
        if name == "type":
            continue
        if name not in kinds:
            raise UnknownFieldError(where)
        if _is_component(kinds[name]):
            given[name] = from_dict(_class_named(value["type"], kinds[name], where), value, f"{where}.")
            continue
        given[name] = coerce(value, kinds[name])
        if not matches(given[name], kinds[name]):
            raise UsageError(f"The model's field {where} cannot be {value!r}: it takes {describe(kinds[name])}.")
    missing = {name for name, kind in kinds.items() if name not in given and _is_component(kind)}
    optional = {name: None for name in missing if NoneType in get_args(kinds[name])}
    return cls(**given, **optional)


class UnknownFieldError(Exception):
    """A field, or a class of component, that this version does not have."""


def _class_named(name: str, kind: Any, path: str) -> Any:
    """The class of that name among those that a field is declared to hold, and their subclasses."""
    pending = [part for part in (kind, *get_args(kind)) if is_dataclass(part)]
    while pending:
        cls: Any = pending.pop()
        if cls.__name__ == name:
            return cls
        pending += cls.__subclasses__()
    raise UnknownFieldError(f"{path} of the class {name}")


@cache
def kinds_of(cls: Any) -> dict[str, Any]:
    """The declared type of every field."""
    return get_type_hints(cls, include_extras=True)


def _is_component(kind: Any) -> bool:
    return is_dataclass(kind) or any(is_dataclass(part) for part in get_args(kind))
