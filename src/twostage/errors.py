"""The exceptions a user can meet. Every message says what, where, and how to mend it.

The command line turns each into its exit code (DESIGN, section 4) and prints the message without a traceback.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class TwostageError(Exception):
    """Something failed at run time: exit code 1."""

    exit_code = 1


class UsageError(TwostageError):
    """The call itself is wrong: an unknown name, a value out of range, options that contradict each other."""

    exit_code = 2


class DataError(TwostageError):
    """The data set or an image cannot be used as it stands."""

    exit_code = 3


class MissingError(TwostageError):
    """An optional dependency or a weights file is not there; the message holds the command that brings it."""

    exit_code = 4


class ThresholdError(TwostageError):
    """A metric fell below what was asked, or an exported model differs from its original."""

    exit_code = 5


def nearest(name: str, known: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """A sentence that names the nearest known name, or all of them when none is near: `Did you mean 'train'?`.

    `listed` are those to name in that case, where things have several names.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Known: " + ", ".join(known if listed is None else listed) + "."


def brief(value: Any) -> str:
    """A value as it stands in a message: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
