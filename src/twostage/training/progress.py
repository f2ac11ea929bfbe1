"""How far a run is: a bar with rate and time left on a terminal, nothing elsewhere (each epoch logs a line)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twostage.progress import on_terminal
from twostage.training.state import Progress


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A function to be called after every step."""
    if quiet or not on_terminal():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Bar(TextColumn("training"), *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=None, note="")

        def after_step(progress: Progress) -> None:
            loss = sum(progress.losses.values()) / max(1, progress.summed)
            rate = progress.step / max(progress.seconds, 1e-9)
            bar.update(task, completed=progress.step, total=progress.last, note=f"{rate:.2f} steps/s, loss {loss:.3f}")

        yield after_step
