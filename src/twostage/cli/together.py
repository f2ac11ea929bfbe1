"""A verb that several processes do together, as torchrun starts them."""

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twostage.training.distributed import Processes


@contextlib.contextmanager
def together() -> "Iterator[Processes]":
    """torchrun's processes, or this one alone; what the others print is not shown. Imports torch."""
    from twostage.training.distributed import joined

    with joined() as processes, contextlib.ExitStack() as muted:
        if not processes.leads:
            muted.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield processes
