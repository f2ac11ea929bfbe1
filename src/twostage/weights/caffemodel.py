"""Weights of Caffe: a `.caffemodel` is a NetParameter in protocol buffers' wire format.

Of it the names of layers and their blobs are read. (Caffe: src/caffe/proto/caffe.proto; Protocol Buffers: "Encoding".)
"""

import warnings
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twostage.errors import DataError
from twostage.weights.file import require_file

SUFFIX = ".caffemodel"
_VARINT, _EIGHT_BYTES, _MESSAGE, _FOUR_BYTES = 0, 1, 2, 5  # kinds of values on the wire
# Numbers of fields: of a network's layers in today's form and in that before it, and of a layer's name and blobs there.
_LAYERS = {100: (1, 7), 2: (4, 6)}
_DATA, _SHAPE, _DOUBLE, _OLD_SHAPE = 5, 7, 8, (1, 2, 3, 4)  # of a blob

Field = tuple[int, int, "int | memoryview"]


def is_caffemodel(path: Path) -> bool:
    """Whether a file is one by its suffix, or by its first byte: the name of a network comes first."""
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError:
        return False
    return first == b"\n" or (path.suffix.lower() == SUFFIX and first not in (b"P", b"\x80"))


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """The blobs of every layer that has any: the first as `NAME.weight`, the second as `NAME.bias`, others by number.

    Numbers stay in the file until they are used. Raises MissingError where there is none, DataError for one of another
    kind and one that is cut short.
    """
    require_file(path)
    state: dict[str, Tensor] = {}
    try:
        content = _mapped(path)
        for number, kind, value in _fields(content):
            if number in _LAYERS and kind == _MESSAGE:
                name, blobs = _layer(_bytes(value), *_LAYERS[number])
                state |= {f"{name}.{_part(k)}": blob for k, blob in enumerate(blobs)}
    except (ValueError, IndexError, RuntimeError) as error:
        raise DataError(f"{path}: is no caffemodel, or is cut short ({error}).") from None
    if not state:
        raise DataError(f"{path}: is no caffemodel: there is no layer with weights in it.")
    return state


def _mapped(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            return memoryview(mmap(file.fileno(), 0, access=ACCESS_READ))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _part(place: int) -> str:
    return ("weight", "bias")[place] if place < 2 else str(place)


def _layer(content: memoryview, name_field: int, blob_field: int) -> tuple[str, list[Tensor]]:
    """The name and the blobs of a layer."""
    name, blobs = "", []
    for number, kind, value in _fields(content):
        if number == name_field and kind == _MESSAGE:
            name = bytes(_bytes(value)).decode()
        elif number == blob_field and kind == _MESSAGE:
            blobs.append(_blob(_bytes(value)))
    return name, blobs


def _blob(content: memoryview) -> Tensor:
    """A blob in float32; one of the old form has four sides, of which those of 1 before its own are left out."""
    shape: list[int] = []
    old: dict[int, int] = {}
    parts: list[np.ndarray] = []
    for number, kind, value in _fields(content):
        if number == _SHAPE and kind == _MESSAGE:
            shape = [side for _, _, sides in _fields(_bytes(value)) for side in _numbers(sides)]
        elif number in _OLD_SHAPE and kind == _VARINT:
            old[number] = int(value)  # type: ignore[arg-type]
        elif number in (_DATA, _DOUBLE) and kind in (_MESSAGE, _FOUR_BYTES, _EIGHT_BYTES):
            parts.append(np.frombuffer(_bytes(value), dtype="<f4" if number == _DATA else "<f8"))
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if old and not shape:
        shape = [old.get(number, 1) for number in _OLD_SHAPE]
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the mapped file cannot be written to; nothing does
        return torch.from_numpy(values.astype(np.float32, copy=False)).reshape(shape or [-1])


def _fields(content: memoryview) -> Iterator[Field]:
    """The number, the kind and the value of each field of a message: an integer, or bytes."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(content, place)
            yield number, kind, value
            continue
        if kind == _MESSAGE:
            size, place = _varint(content, place)
        elif kind in (_FOUR_BYTES, _EIGHT_BYTES):
            size = 4 if kind == _FOUR_BYTES else 8
        else:
            raise ValueError(f"a field of kind {kind} at byte {place}")
        if place + size > len(content):
            raise ValueError(f"{place + size - len(content)} bytes are missing")
        yield number, kind, content[place : place + size]
        place += size


def _numbers(value: "int | memoryview") -> Iterator[int]:
    """One integer, or several that are packed."""
    if isinstance(value, int):
        yield value
        return
    place = 0
    while place < len(value):
        number, place = _varint(value, place)
        yield number


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """An integer of seven bits a byte, the lowest first, and the place after it."""
    value, shift = 0, 0
    while True:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError(f"a number of more than ten bytes at byte {place}")


def _bytes(value: "int | memoryview") -> memoryview:
    assert isinstance(value, memoryview)
    return value
