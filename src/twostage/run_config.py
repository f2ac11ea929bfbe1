"""The options of a run as the YAML file of its folder, and what a resumed run may change of them.

`twostage VERB --config FILE` reads the same file.
"""

from collections.abc import Collection
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from twostage.errors import DataError, MissingError, UsageError
from twostage.kinds import coerce

CONFIG = "config.yaml"
# Where a run writes and how much it prints are not part of what it computes.
NOT_SAVED = ("resume", "out", "quiet")

T = TypeVar("T")


def to_yaml(options: Any) -> str:
    """The options dataclass of a run as YAML; paths become absolute, options without a value are left out."""
    values = {}
    for name, value in asdict(options).items():
        if name in NOT_SAVED or value is None:
            continue
        # Weights are a file, or a name that stays one.
        if isinstance(value, Path) or (name == "weights" and (value.endswith(".safetensors") or Path(value).exists())):
            value = str(Path(value).absolute())
        values[name] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def read_config(cls: type[T], folder: Path) -> T:
    """The options of the run in `folder`. Raises MissingError without a config.yaml, DataError for a faulty one."""
    path = folder / CONFIG
    if not path.exists():
        raise MissingError(f"{folder}: no run to resume: it holds no {CONFIG}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        hints = get_type_hints(cls)
        return cls(**{name: coerce(value, hints.get(name)) for name, value in values.items()})
    except UsageError as error:
        raise DataError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not the configuration of a run ({error}).") from None


def resumed(given: T, saved: T, free: Collection[str], otherwise: str) -> T:
    """The saved options of a run, with those options of `given` that differ from their defaults.

    Raises UsageError, with `otherwise` as the way out, for one that is not in `free` and differs from the saved one.
    """
    changes = {}
    for each in fields(given):  # type: ignore[arg-type]
        default = each.default if each.default_factory is MISSING else each.default_factory()
        value = getattr(given, each.name)
        if value == default:
            continue
        if each.name not in free and value != getattr(saved, each.name):
            raise UsageError(
                f"{each.name}: a resumed run keeps its options, and another {each.name} would change it. "
                f"Leave it out, or {otherwise}."
            )
        changes[each.name] = value
    return replace(saved, **changes)  # type: ignore[type-var]
