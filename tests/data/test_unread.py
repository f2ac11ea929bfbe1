"""What a file is that cannot be read as an image, with advice that helps (detectree2#147, users' HEIC photographs)."""

import struct
from pathlib import Path

import pytest

from twostage.data.images import read_image
from twostage.errors import DataError


def tiff(bands: int, order: str = "<") -> bytes:
    """The header of a TIFF with so many samples per pixel."""
    entries = [(256, 4, 8), (257, 4, 8), (277, 3, bands)]
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        packed = struct.pack(f"{order}{'H' if kind == 3 else 'I'}", value).ljust(4, b"\0")
        table += struct.pack(f"{order}HHI", tag, kind, 1) + packed
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8) + table + bytes(4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tiff(6), "TIFF of 6 bands"),
        (tiff(12, ">"), "TIFF of 12 bands"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEIC"),
        (b"%PDF-1.7 ...", "document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "document"),
        (b"no image at all", "is not an image"),
        (tiff(6)[:12], "is not an image"),
    ],
)
def test_the_kind_of_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file.tif"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(DataError, match=words):
            read_image(source)
