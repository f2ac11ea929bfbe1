"""Settings in a YAML file, as detectron2's configurations are: plain values, and inert ones for tags that would run."""

from pathlib import Path
from typing import Any

import yaml

from twostage.errors import DataError

_BASE = "_BASE_"


class _Loader(yaml.SafeLoader):
    """Plain values; tuples of Python as lists, any other tag as None."""


def _tuple(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else None


def _mapping(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    """What an object that is a dictionary holds, as Detectron's settings are written."""
    held = loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    return held.get("dictitems") if tag.endswith("AttrDict") else None


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/object/new:", _mapping)
_Loader.add_multi_constructor("", lambda loader, tag, node: None)


def read_yaml_config(path: Path) -> dict[str, Any]:
    """The settings of a file, with those of its `_BASE_` merged in. Raises DataError for a file that is none."""
    try:
        own = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if not isinstance(own, dict):
            raise ValueError(f"it holds {type(own).__name__}, not settings by name")
        base = own.pop(_BASE, None)
        return own if base is None else _merged(read_yaml_config(path.parent / str(base)), own)
    except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be read as a configuration in YAML ({reason}).") from None


def parse_yaml_config(text: str) -> dict[str, Any]:
    """The settings of a text. Raises DataError for one that has none."""
    try:
        settings = yaml.load(text, _Loader)
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"the settings cannot be read ({' '.join(str(error).split())[:200]}).") from None
    if not isinstance(settings, dict):
        raise DataError(f"the settings are {type(settings).__name__}, and not by name.")
    return settings


def _merged(base: Any, own: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    return base | {key: _merged(base.get(key), value) for key, value in own.items()}
