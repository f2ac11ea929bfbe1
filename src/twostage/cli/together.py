"""A verb that several processes do together, as torchrun starts them."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from twostage.errors import TwostageError

if TYPE_CHECKING:
    from twostage.distributed import Processes


_HELD_BACK = 10.0  # seconds


@contextlib.contextmanager
def together() -> "Iterator[Processes]":
    """torchrun's processes, or this one alone; what the others print is not shown. Imports torch."""
    from twostage.distributed import joined

    with joined() as processes, contextlib.ExitStack() as muted:
        if not processes.leads:
            muted.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield processes


def follows() -> bool:
    """Whether torchrun has started this process to follow another: the first alone writes to standard output."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


def has_met() -> bool:
    """Whether the processes have found each other: what goes wrong before befalls all of them alike."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def let_the_first_speak() -> None:
    """Wait a while where this process follows one that it has not met and that fails alike.

    torchrun ends all processes as soon as one fails: the first would not get to say why.
    """
    if follows() and not has_met():
        time.sleep(_HELD_BACK)


def report_to_torchrun(message: str) -> None:
    """Write the error file that torchrun reads when a process fails, so that its report ends with the message."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return
    with contextlib.suppress(ImportError, OSError):  # torch may be built without torch.distributed
        from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

        try:
            raise TwostageError(message) from None
        except TwostageError as error:
            error.__traceback__ = None  # the report shows the message alone
            ErrorHandler().record_exception(error)
