"""Whether a picture is whole, at the price of its header.

A copy that broke off is found by its end: each format says there that it is complete. Where it does not look so, or a
format says nothing, the pixels are decoded to know; a whole file with bytes appended passes. What is wrong inside a
complete file is found by decoding alone (`data check --deep`).
"""

from io import BufferedIOBase
from pathlib import Path

from twostage.data.images import Header, read_header, read_image


def probe(path: str | Path) -> Header:
    """The picture's header, after making sure that it is whole. Raises DataError as `read_image` does."""
    header = read_header(path)
    with Path(path).open("rb") as file:
        whole = _ends_well(file, header.format)
    if not whole:
        read_image(path)
    return header


def _ends_well(file: BufferedIOBase, kind: str) -> bool:
    size = file.seek(0, 2)
    file.seek(max(0, size - 12))
    tail = file.read(12)
    file.seek(0)
    head = file.read(12)
    if kind in ("JPEG", "MPO"):
        return tail.endswith(b"\xff\xd9")
    if kind == "PNG":
        return tail[4:8] == b"IEND"
    if kind == "GIF":
        return tail.endswith(b";")
    if kind == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return False
