"""Image files to arrays: the one decode function of training, prediction, evaluation and the server.

Every image is returned as RGB, 8 bits, turned upright by its EXIF (or PNG eXIf) tag:

- alpha is dropped, not blended: a transparent pixel keeps its stored colour, as Pillow's and torchvision's
  conversions to RGB do;
- 16-bit samples keep their high byte (65535 becomes 255), for grey as Pillow itself does for 16-bit colour: values are
  not stretched to the range of the image, so equal values stay equal over a data set;
- CMYK goes through Pillow's conversion, without colour profiles; of several frames or
  pages the first is taken.
"""

import io
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from twostage.data import unread
from twostage.errors import DataError

# Raster formats, which need no external program, and their extensions; Pillow would run Ghostscript for an EPS.
EXTENSIONS_OF = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "PNG": {".png"},
    "BMP": {".bmp", ".dib"},
    "DIB": {".bmp", ".dib"},
    "GIF": {".gif"},
    "TIFF": {".tif", ".tiff"},
    "WEBP": {".webp"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
    "JPEG2000": {".jp2"},
    "AVIF": {".avif"},
    "MPO": {".jpg", ".jpeg", ".mpo"},
    "QOI": {".qoi"},
}
EXTENSIONS = frozenset().union(*EXTENSIONS_OF.values())

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DARK_BITS = 14  # of an image of 16 bits, from which on it is taken to use all of them
log = logging.getLogger("twostage.data")
SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange height and width


class Header(NamedTuple):
    """What the header of an image file states; height and width are upright."""

    height: int
    width: int
    orientation: int
    format: str
    mode: str


def read_image(source: str | Path | bytes | Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """The image as upright RGB, from a path, the bytes of a file, or a PIL image.

    Raises DataError, naming the file, when it is missing, empty, truncated, not an image, or larger than Pillow's limit
    of pixels (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    if isinstance(source, Image.Image):
        with _named("the PIL image"):
            source.load()
        return _pixels(source, _orientation(source))
    with _named(_name(source)), _open(source) as (image, _):
        # Loading first: Pillow turns a TIFF itself, and finds a PNG's EXIF before and after the pixels.
        image.load()
        return _pixels(image, _orientation(image))


def read_header(source: str | Path | bytes) -> Header:
    """Size, orientation, format and mode of an image from its first bytes. Raises DataError as `read_image` does."""
    with _named(_name(source)), _open(source) as (image, file):
        width, height = image.size
        if image.format == "PNG" and "exif" not in image.info:
            image.info["exif"] = _late_exif(file)
        if image.format == "TIFF":  # whether Pillow's size is turned depends on its version
            tags = image.tag_v2  # type: ignore[attr-defined]
            width, height = tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
        orientation = _orientation(image)
        if orientation in SIDEWAYS:
            height, width = width, height
        return Header(height, width, orientation, image.format or "", image.mode)


def probe(path: str | Path) -> Header:
    """An image's header, after a check that the file is complete, at the price of the header. Raises as `read_image`.

    A copy that broke off is found by its end, where each format marks that it is complete. Without that mark, and for a
    format that has none, the pixels are decoded; a complete file with bytes appended passes. Damage inside a complete
    file is found by decoding alone (`data check --deep`).
    """
    header = read_header(path)
    with Path(path).open("rb") as file:
        whole = _ends_well(file, header.format)
    if not whole:
        read_image(path)
    return header


def _name(source: str | Path | bytes) -> str:
    return f"an image of {len(source)} bytes" if isinstance(source, bytes) else str(source)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(f for f in EXTENSIONS_OF if f in Image.OPEN)


@contextmanager
def _open(source: str | Path | bytes) -> Iterator[tuple[Image.Image, io.BufferedIOBase]]:
    if not isinstance(source, bytes):
        path = Path(source)
        if path.is_dir():
            raise DataError(f"{path}: is a folder, not an image. Name a file in it.")
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is not a regular file.")
    file: io.BufferedIOBase = io.BytesIO(source) if isinstance(source, bytes) else path.open("rb")
    with file:
        if not file.read(1):
            raise DataError(f"{_name(source)}: is empty (0 bytes). Copy it again, or leave it out of the data set.")
        file.seek(0)
        try:
            opened = Image.open(cast("IO[bytes]", file), formats=_formats())
        except UnidentifiedImageError as error:
            if why := unread.reason(source):
                raise DataError(f"{_name(source)}: {why}.") from error
            raise
        with opened as image:
            yield image, file


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turns all exceptions of Pillow into a DataError that names the image."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: does not exist. Check the path.") from error
    except PermissionError as error:
        raise DataError(f"{name}: no permission to read it. Change its mode or its owner.") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise DataError(f"{name}: {error.strerror}. Check the path.") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name}: is not an image, or is truncated; known formats are {', '.join(_formats())}."
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name}: {str(error).rstrip('.')}. Cut it into tiles, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from error
    # Pillow's decoders raise nearly anything on hostile bytes: struct.error, IndexError, zlib.error, MemoryError ...
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{name}: cannot be decoded ({reason}). Save it again, or leave it out.") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Broken EXIF counts as none, as in every viewer."""
    try:
        # The base method: PNG's own would decode all pixels to look for an eXIf chunk behind them.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF is parsed by Pillow from untrusted bytes: any exception means that it is broken
        return 1
    return value if value in TURNS else 1


def _late_exif(file: io.BufferedIOBase) -> bytes | None:
    """The eXIf chunk of a PNG after the pixels, where ExifTool writes it."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return b"Exif\x00\x00" + file.read(min(length, 1 << 20))
        file.seek(length + 4, io.SEEK_CUR)
    return None


def _pixels(image: Image.Image, orientation: int) -> UInt8[np.ndarray, "h w 3"]:
    image = _to_rgb(image)
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    return np.array(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        return _high_byte(image).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("F", "LAB"):
        raise ValueError(f"pixels of mode {image.mode} have no agreed range; 8 or 16 bits have")
    return image.convert("RGB")


def _high_byte(image: Image.Image) -> Image.Image:
    """8-bit grey from 16-bit samples, which Pillow hands over as 16 or as 32 bits."""
    samples = np.asarray(image)
    low, high = int(samples.min(initial=0)), int(samples.max(initial=0))
    if low < 0 or high > 0xFFFF:
        raise ValueError(f"its samples run from {low} to {high}, more than 16 bits hold")
    if 0xFF < high < 1 << _DARK_BITS:
        _warn_of_few_bits(high.bit_length())
    return Image.fromarray((samples >> 8).astype(np.uint8))


@cache
def _warn_of_few_bits(bits: int) -> None:
    """Once per process: a camera of 12 bits leaves 16 shades in the high byte."""
    log.warning(
        "Images of 16 bits have samples of %d bits only: their high byte, which is used, has %d shades. Multiply them "
        "by %d before.",
        bits,
        1 << (bits - 8),
        1 << (16 - bits),
    )


def _ends_well(file: io.BufferedIOBase, kind: str) -> bool:
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
