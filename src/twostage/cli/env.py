"""`twostage env`: what a bug report needs."""

from dataclasses import dataclass
from typing import Any

from twostage.cli.verb import Outcome, verb


@dataclass(frozen=True)
class EnvOptions:
    """The environment has no options of its own."""


@verb(EnvOptions)
def env(_options: EnvOptions) -> Outcome:
    """Versions, devices and threads: paste this into a bug report."""
    from twostage.environment import environment

    found = environment()
    for key, value in found.items():
        print(f"{key:12} {_line(value)}")
    return Outcome(found)


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_line(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "; ".join(map(_line, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
