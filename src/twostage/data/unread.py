"""Why a file is not an image that is read here, by its first bytes: the advice that helps."""

import struct
from pathlib import Path

# Photographs, videos and documents that Pillow does not read, by their usual extensions.
EXTENSIONS = frozenset(
    (".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".svg", ".pdf", ".psd", ".dcm")
)
_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
_SAMPLES_PER_PIXEL = 277


def reason(source: str | Path | bytes) -> str:
    """What the file is and what to do, for a message; "" where nothing is known."""
    try:
        head = source[: 1 << 16] if isinstance(source, bytes) else _head(Path(source))
    except OSError:
        return ""
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return "is a HEIC photograph: convert it to JPEG or PNG"
    if head[:4] == b"%PDF" or head.lstrip()[:4] == b"<svg" or head[:5] == b"<?xml":
        return "is a document, not an image of pixels: export it as PNG"
    bands = _bands(source, head)
    if bands > 4:
        return (
            f"is a TIFF of {bands} bands, of which three can be used: write those as an RGB image, for instance by "
            "tifffile.imwrite(name, tifffile.imread(file)[..., [0, 1, 2]])"
        )
    return ""


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 16)


def _bands(source: str | Path | bytes, head: bytes) -> int:
    """The samples per pixel of a TIFF; 0 for another file, or one that is broken."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None or len(head) < 8:
        return 0
    (start,) = struct.unpack_from(f"{order}I", head, 4)
    try:
        if isinstance(source, bytes):
            table = source[start : start + (1 << 14)]
        else:
            with Path(source).open("rb") as file:
                file.seek(start)
                table = file.read(1 << 14)
        (count,) = struct.unpack_from(f"{order}H", table)
        for number in range(count):
            tag, kind = struct.unpack_from(f"{order}HH", table, 2 + 12 * number)
            if tag == _SAMPLES_PER_PIXEL:
                value: int = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", table, 10 + 12 * number)[0]
                return value
    except (OSError, struct.error):
        return 0
    return 0
