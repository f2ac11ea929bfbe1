"""`twostage env`: what a bug report needs."""

from typing import Any

from twostage.cli.verb import Outcome, verb
from twostage.options import Options


@verb(Options)
def env(_options: Options) -> Outcome:
    """Print versions, devices and threads: paste them into a bug report."""
    from twostage.environment import environment

    values = environment()
    for key, value in values.items():
        print(f"{key:12} {_line(value)}")
    return Outcome(values)


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_line(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "; ".join(map(_line, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
