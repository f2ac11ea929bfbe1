"""Pickles, without the code in them: the only place where one is opened.

A pickle is a program that names functions and calls them. What torch.save wrote is read by torch's own restricted
reader; plain pickles, as detectron2's zoo has them, by one that makes arrays and calls nothing else. Classes in which
training scripts keep their state beside the weights (mmengine's HistoryBuffer) become `Inert`, which holds nothing.
"""

import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from twostage.data.files import text_name
from twostage.errors import DataError
from twostage.weights.file import require_file

_ZIP = b"PK\x03\x04"
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # of torch.save before version 1.6
_STATE_OF = ("mmengine.", "mmcv.", "mmdet.", "detectron2.", "fvcore.", "yacs.", "omegaconf.", "argparse.")
_ARRAYS = ("numpy.core.", "numpy._core.", "numpy.ndarray", "numpy.dtype", "numpy.dtypes.")
_FUNCTIONS = ("_reconstruct", "scalar", "_frombuffer")
_NAMED = re.compile(r"GLOBAL (\S+) was not an allowed global")
_CORE = re.compile(r"numpy\._?core\.")
_CODE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|[SU]\d+)")  # truth values, numbers and text


class Inert:
    """In the place of a class of a training script: takes everything, holds nothing."""

    def __new__(cls, *_: object, **__: object) -> "Inert":
        """One, whatever is given."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _inert(*_: object, **__: object) -> Inert:
    """In the place of a function."""
    return Inert()


def load_pickle(path: Path) -> Any:
    """What the file holds: dicts, lists, numbers, text, tensors and arrays.

    Raises MissingError where there is none, DataError where it is damaged or names anything else.
    """
    require_file(path)
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
    try:
        if start.startswith(_ZIP) or start == _LEGACY:
            with text_name(path) as name:
                return _of_torch(name, mapped=start.startswith(_ZIP))
        with path.open("rb") as file:
            return _plain(_Plain(file, encoding="latin1").load(), {})
    except Exception as error:  # a broken pickle may raise anything
        named = _NAMED.search(str(error))  # torch also says how to let the code run
        reason = f"it names {named[1]}" if named else " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: cannot be read as plain tensors ({reason}). A file that needs its own code is not opened: save "
            "its state dict alone, `torch.save(model.state_dict(), ...)`, where it was made."
        ) from None


def _of_torch(path: str | Path, *, mapped: bool) -> Any:
    """A file of torch.save. Mapped, what is not used of it (optimizer states) is not read."""
    inert: list[Any] = [Inert]
    for full in torch.serialization.get_unsafe_globals_in_checkpoint(path) if mapped else ():
        module, _, name = full.rpartition(".")
        stand_in = type(name, (Inert,), {"__module__": module})
        if full.startswith(_STATE_OF):
            inert.append(stand_in)
        elif full.startswith(_ARRAYS):  # the numbers of such a class, which nothing reads
            inert.append((_inert if name in _FUNCTIONS else stand_in, full))
    with torch.serialization.safe_globals(cast(list[Callable[..., Any] | tuple[Callable[..., Any], str]], inert)):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


class _Plain(pickle.Unpickler):
    """Of all that a pickle may name, numpy's arrays and numbers, which are made here and not by numpy's own code."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global."""
        allowed: dict[str, Any] = {
            "numpy.multiarray._reconstruct": partial(_Array),
            "numpy.multiarray.scalar": partial(_number),
            "numpy.numeric._frombuffer": partial(_from_buffer),
            "numpy.ndarray": partial(_Array),  # an argument of _reconstruct
            "numpy.dtype": partial(_DType),
            "_codecs.encode": partial(_encoded),
            "builtins.bytes": partial(_no_bytes),
            "__builtin__.bytes": partial(_no_bytes),
            "collections.OrderedDict": dict,
        }
        full = f"{_CORE.sub('numpy.', module)}.{name}"
        if full not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return allowed[full]

    def persistent_load(self, pid: Any) -> Any:
        """What lies outside of the file is not read."""
        raise pickle.UnpicklingError("it refers to something outside of the file")


class _DType:
    """The type of an array's numbers: first its code, then a state with the order of bytes."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise pickle.UnpicklingError(f"it has an array of {code}")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, *rest = state[1:5]
        if any(part is not None for part in rest):
            raise pickle.UnpicklingError("it has an array of records")
        self.value = self.value.newbyteorder(order)


class _Array:
    """An array: first nothing, then a state of version, shape, type, order in memory and bytes."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, data = state
        self.value = _from_buffer(data, dtype, shape, "F" if by_columns else "C").value


def _from_buffer(data: Any, dtype: _DType, shape: tuple[int, ...], order: Literal["C", "F"]) -> _Array:
    made = _Array()
    made.value = np.frombuffer(_as_bytes(data), dtype.value).reshape(shape, order=order)
    return made


def _number(dtype: _DType, data: Any) -> Any:
    return np.frombuffer(_as_bytes(data), dtype.value)[0].item()


def _as_bytes(data: Any) -> bytes:
    """Protocols before 3 have bytes as text. A number, of which `bytearray` makes so many bytes, is none."""
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError(f"it has an array whose bytes are a {type(data).__name__}")
    return data if isinstance(data, bytes) else bytes(data)


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it has bytes encoded in {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocols before 3 write those of an array without numbers."""
    return b""


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """The same with arrays for what stood in their place; what comes twice is looked at once."""
    if isinstance(value, _Array):
        return value.value
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {key: _plain(part, done) for key, part in value.items()}
        else:
            done[id(value)] = type(value)(_plain(part, done) for part in value)
    return done[id(value)]
