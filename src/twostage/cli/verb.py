"""How a verb runs: its options, its output streams, its result, its exit code."""

import contextlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from twostage.atomic import to_json
from twostage.cli.flags import Common, build, signature_of
from twostage.errors import TwostageError

T = TypeVar("T")


class Outcome(NamedTuple):
    """The result of a verb, and the error it ends with after it: a threshold not reached, faults in a data set.

    The result is None in processes that do not print it.
    """

    result: dict[str, Any] | None
    failure: TwostageError | None = None


def verb(options: type[T]) -> Callable[[Callable[[T], Outcome]], Callable[..., int]]:
    """Make a function of one options dataclass a verb: cyclopts gets a flag for every field, and the exit code.

    With `--json`, what the function prints goes to standard error, and standard output gets the outcome's `result`.
    """

    def wrap(function: Callable[[T], Outcome]) -> Callable[..., int]:
        """The function with the options as its parameters and the exit code as its result."""
        signature = signature_of(options)

        def call(*args: Any, **kwargs: Any) -> int:
            given = signature.bind_partial(*args, **kwargs).arguments
            common = build(Common, given)
            output = sys.stdout
            printed_to = sys.stderr if common.json else output
            try:
                with log_to_stderr(common), contextlib.redirect_stdout(printed_to):
                    outcome = function(build(options, given))
            except BaseException as error:
                vars(error)["json_wanted"] = common.json
                raise
            if common.json and outcome.result is not None:
                print(to_json(outcome.result), file=output, flush=True)
            if outcome.failure is None:
                return 0
            print(f"twostage: {outcome.failure}", file=sys.stderr)
            return outcome.failure.exit_code

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__doc__ = inspect.getdoc(function)
        call.__name__ = function.__name__
        return call

    return wrap


@contextlib.contextmanager
def log_to_stderr(common: Common) -> Iterator[None]:
    """Log messages of the library to standard error: warnings only with --quiet, everything with --debug."""
    logger = logging.getLogger("twostage")
    handler = logging.StreamHandler(_Stderr())
    handler.setFormatter(_Formatter())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if common.debug else logging.WARNING if common.quiet else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Stderr:
    """The current sys.stderr at each write: a progress bar replaces it for a while."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _Formatter(logging.Formatter):
    """Messages unchanged; levels other than INFO are named."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
