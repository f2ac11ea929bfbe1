"""Verbs in several processes, started by torchrun."""

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
    """torchrun's processes, or this one alone; only rank 0 prints to standard output. Imports torch."""
    from twostage.distributed import process_group

    with process_group() as processes, contextlib.ExitStack() as muted:
        if not processes.is_main:
            muted.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield processes


def follows() -> bool:
    """Whether torchrun has started this process with a rank above 0: only rank 0 writes to standard output."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


def has_group() -> bool:
    """Whether the process group exists; an error before that occurs in all processes alike."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def let_rank_0_report() -> None:
    """Wait before failing on a rank above 0 without a process group, where rank 0 fails alike.

    torchrun ends all processes as soon as one fails: rank 0 would end before its message is printed.
    """
    if follows() and not has_group():
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
