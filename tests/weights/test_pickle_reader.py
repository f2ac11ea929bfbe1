"""Pickles give numbers, text and arrays, and run nothing."""

import argparse
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twostage.errors import DataError
from twostage.weights.pickle_reader import load_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ZOO = {
    "model": OrderedDict(
        {
            "matrix": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
            "by columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
            "half": np.ones(3, np.float16),
            "big-endian": np.arange(3, dtype=">i4"),
            "empty": np.zeros((0, 4)),
            "scalar": np.array(7),
            "number": np.float64(2.5),
            "text": np.array(["ab", "c"]),
        }
    ),
    "__author__": "somebody",
    "others": [1, (2, None, True), {"deep": np.ones(2)}],
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_come_out_as_they_went_in(tmp_path: Path, protocol: int) -> None:
    """As detectron2's zoo has them: {"model": {name: array}, "__author__": ...}."""
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(ZOO, protocol=protocol))
    read = load_pickle(path)
    assert list(read) == list(ZOO)
    for name, value in ZOO["model"].items():
        np.testing.assert_array_equal(read["model"][name], value)
    assert read["others"][:2] == [1, (2, None, True)]
    np.testing.assert_array_equal(read["others"][2]["deep"], np.ones(2))
    assert not read["model"]["matrix"].flags.writeable  # it may be the bytes of the file


class Calls:
    """A pickle that calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


def gadgets(trap: Path) -> dict[str, bytes]:
    """Known ways to run code, each of which would make the file `trap`; and some to use up memory."""
    write = f"open({str(trap)!r}, 'w').close()"
    calls: dict[str, Any] = {
        "os": Calls(os.mkdir, str(trap)),
        "exec": Calls(exec, write),
        "eval": Calls(eval, write),
        "subprocess": Calls(subprocess.call, [sys.executable, "-c", write]),
        "partial": Calls(partial(os.mkdir, str(trap))),
        "getattr": Calls(getattr, {}, "pop"),
        "numpy": Calls(np.load, str(trap), None, True),
        "torch": Calls(torch.load, str(trap)),
        "nested": {"model": {"a": [Calls(os.mkdir, str(trap))]}},
        "objects": np.array([Calls(os.mkdir, str(trap))], object),
    }
    made = {f"{name}-{p}": pickle.dumps(each, protocol=p) for name, each in calls.items() for p in (0, 2, 4)}
    at = str(trap).encode()
    return made | {
        "inst": b"(S'" + at + b"'\nios\nmkdir\n.",
        "obj": b"(cos\nmkdir\nS'" + at + b"'\no.",
        "build": b"cos\nmkdir\n}(S'a'\nI1\nub.",
        "persistent": b"P" + at + b"\n.",
        "extension": b"\x80\x02\x82\x01.",
        "codec": b"c_codecs\nencode\n(Va\nVzlib\ntR.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0bos.path.abs\x93.",
        "through numpy": b"\x80\x04\x8c\x05numpy\x8c\x0acore.os.xy\x93.",
        "a huge array": b"cnumpy.core.multiarray\n_reconstruct\n(tR"
        b"(I1\n(I100000000000\ntcnumpy\ndtype\n(S'f8'\nI0\nI1\ntRI00\nS''\ntb.",
        "a cycle": b"(lp0\ng0\na.",
    }


@pytest.mark.parametrize("name", gadgets(Path("trap")))
def test_no_known_gadget_runs(tmp_path: Path, name: str) -> None:
    trap = tmp_path / "trap"
    path = tmp_path / "a.pkl"
    path.write_bytes(gadgets(trap)[name])
    with pytest.raises(DataError, match=r"a\.pkl: cannot be read as plain tensors"):
        load_pickle(path)
    assert not trap.exists()


def test_a_few_bytes_do_not_become_many(tmp_path: Path) -> None:
    """Each list holds the one before twice: 2 to the power of 60 in the end."""
    value: Any = []
    for _ in range(60):
        value = [value, value]
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(value))
    assert len(load_pickle(path)) == 2


def test_the_state_of_training_scripts_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As mmengine's HistoryBuffer; what is of nobody's training stays an error."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self.values, self.last, self.steps = np.array([1.0, 2.0]), np.float64(2), np.int64(3)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    module = type(sys)("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module if name == module.__name__ else type(sys)(name))
    state = {"a.weight": torch.rand(2, 3)}
    torch.save(
        {
            "state_dict": state,
            "message_hub": {"loss": HistoryBuffer()},
            "args": argparse.Namespace(x=1),
            "meta": {"epoch": np.int64(3)},
        },
        tmp_path / "a.pth",
    )
    read = load_pickle(tmp_path / "a.pth")
    torch.testing.assert_close(read["state_dict"]["a.weight"], state["a.weight"])
    assert not vars(read["message_hub"]["loss"])
    torch.save({"state_dict": state, "path": tmp_path}, tmp_path / "b.pth")
    with pytest.raises(DataError, match=r"it names pathlib\.\S*PosixPath"):
        load_pickle(tmp_path / "b.pth")


def test_bytes_that_are_a_number_make_no_array(tmp_path: Path) -> None:
    """50 MB, were it `bytearray(50_000_000)`."""
    path = tmp_path / "a.pkl"
    path.write_bytes(
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR(I1\n(I50000000\nt"
        b"cnumpy\ndtype\n(Vu1\nI0\nI1\ntR(I3\nV|\nNNNI-1\nI-1\nI0\ntbI00\nI50000000\ntb."
    )
    with pytest.raises(DataError, match="an array whose bytes are a int"):
        load_pickle(path)


@pytest.mark.parametrize("cut", [1, 10, 100, 400])
def test_a_truncated_file(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(ZOO)[:-cut])
    with pytest.raises(DataError, match="cannot be read"):
        load_pickle(path)
