"""The exceptions of the library. Every message says what failed, where, what was expected and how to fix it.

The command line turns each into its exit code (DESIGN, section 4) and prints the message without a traceback.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class TwostageError(Exception):
    """Something failed at run time: exit code 1."""

    exit_code = 1


class UsageError(TwostageError):
    """Wrong arguments: an unknown name, a value out of range, options that contradict each other: exit code 2."""

    exit_code = 2


class DataError(TwostageError):
    """The data set or an image is not valid: exit code 3."""

    exit_code = 3


class MissingError(TwostageError):
    """An optional dependency or a weights file is missing; the message has the command to get it: exit code 4."""

    exit_code = 4


class ThresholdError(TwostageError):
    """A metric is below its threshold, or an exported model differs from its original: exit code 5."""

    exit_code = 5


class InterruptedRunError(TwostageError):
    """Ctrl-C ended the work early, and what was done until then is reported: exit code 130."""

    exit_code = 130


def nearest(name: str, known: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """A sentence with the most similar known name, or with all if none is similar: `Did you mean 'train'?`.

    `listed` replaces all of them where a thing has several names.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Known: " + ", ".join(known if listed is None else listed) + "."


def brief(value: Any) -> str:
    """A value for a message: its repr, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
