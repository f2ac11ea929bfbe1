"""Progress bars, on standard error if that is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Show = Callable[[int, int | None], None]


def on_terminal() -> bool:
    """Whether standard error is a terminal; a process without a console has none (`pythonw`, `2>&-`)."""
    return sys.stderr is not None and sys.stderr.isatty()


def images_bar(title: str, *, quiet: bool) -> AbstractContextManager[Show]:
    """A function to call with the number of finished images and of all images."""
    return _bar(title, "MofNCompleteColumn", quiet=quiet)


def calls_bar(title: str) -> AbstractContextManager[Show]:
    """A function to call with the number of finished calls and the most there can be."""
    return _bar(title, "MofNCompleteColumn")


def bytes_bar(title: str) -> AbstractContextManager[Show]:
    """A function to call with the bytes so far and the total, None where it is not known."""
    return _bar(title, "DownloadColumn", "TransferSpeedColumn")


@contextmanager
def _bar(title: str, *columns: str, quiet: bool = False) -> Iterator[Show]:
    if quiet or not on_terminal():
        yield lambda done, all: None
        return
    from rich import progress
    from rich.console import Console

    shown = [progress.BarColumn(), *(getattr(progress, column)() for column in columns), progress.TimeRemainingColumn()]
    text = progress.TextColumn("{task.description}")
    with progress.Progress(text, *shown, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, all: bar.update(task, completed=done, total=all)
