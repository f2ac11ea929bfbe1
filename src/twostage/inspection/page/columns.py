"""Columns of numbers as text: the bytes of little-endian arrays in base64, which a browser reads as typed arrays."""

import base64
from typing import Any, Literal

import numpy as np
from torch import Tensor

Kind = Literal["f4", "i4", "i2", "u2", "u1"]
Column = dict[str, str]


def column(values: Any, kind: Kind) -> Column:
    """The values, row by row, as `{"kind", "data"}`. Those of integer kinds must fit."""
    array = values.detach().numpy() if isinstance(values, Tensor) else np.asarray(values)
    data = np.ascontiguousarray(array, dtype=np.dtype(kind).newbyteorder("<")).tobytes()
    return {"kind": kind, "data": base64.b64encode(data).decode()}


def shares(values: Any) -> Column:
    """Numbers from 0 to 1 in steps of 1 / 65535."""
    array = values.detach().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=np.float32)
    return column(np.round(np.clip(np.nan_to_num(array), 0, 1) * 65535), "u2")
