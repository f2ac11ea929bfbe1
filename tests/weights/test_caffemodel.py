"""Caffe's files are read as protocol buffers' own library writes them."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from caffe import caffemodel
from hypothesis import given
from hypothesis import strategies as st

from twostage.errors import DataError, MissingError
from twostage.weights.caffemodel import is_caffemodel, read_caffemodel
from twostage.weights.pickled import read_checkpoint

BLOBS = {
    "conv1_1.weight": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
    "conv1_1.bias": np.arange(4, dtype=np.float32),
    "rpn_conv/3x3.weight": np.full((2, 4, 1, 1), -1.5, dtype=np.float32),
    "fc6.weight": np.arange(300, dtype=np.float32).reshape(5, 60),
    "fc6.bias": np.zeros(5, dtype=np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.caffemodel"


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_every_blob_is_read_in_its_shape(old: bool, double: bool, path: Path) -> None:
    path.write_bytes(caffemodel(BLOBS, old=old, double=double))
    found = read_caffemodel(path)
    assert list(found) == list(BLOBS)
    for name, values in BLOBS.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], torch.from_numpy(values)), name


@given(data=st.data())
def test_a_file_that_is_cut_short_or_damaged_is_an_error_or_read(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = bytearray(caffemodel(BLOBS))
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole = whole[:place]
    else:
        whole[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "net.caffemodel"
    path.write_bytes(whole)
    found = {}
    with suppress(DataError):
        found = read_caffemodel(path)
    assert all(isinstance(value, torch.Tensor) for value in found.values())


def test_bytes_that_are_missing_are_counted(path: Path) -> None:
    path.write_bytes(caffemodel(BLOBS)[:-7])
    with pytest.raises(DataError, match=r"net\.caffemodel: is no caffemodel, or is cut short \(7 bytes are missing\)"):
        read_caffemodel(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x04}q\x00.", caffemodel({})])
def test_another_file_is_none(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no caffemodel"):
        read_caffemodel(path)


@pytest.mark.parametrize("name", ["net.CAFFEMODEL", "net.caffemodel.h5", "net.pkl"])
def test_a_network_is_recognised_under_another_suffix(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(caffemodel(BLOBS))
    assert is_caffemodel(path)
    assert list(read_checkpoint(path).state) == list(BLOBS)


def test_a_pickle_under_its_suffix_is_read_as_one(path: Path) -> None:
    torch.save({"a": torch.ones(1)}, path)
    assert not is_caffemodel(path)
    assert read_checkpoint(path).state["a"] == 1


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(MissingError, match=r"net\.caffemodel"):
        read_caffemodel(path)
