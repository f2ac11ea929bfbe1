"""Tables of text."""

from collections.abc import Iterator, Sequence


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """The lines of a table: the first column on the left, the others on the right."""
    text = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    for first, *others in text:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
