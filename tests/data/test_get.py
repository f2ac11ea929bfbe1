"""Data sets of the papers, fetched from a server on this machine that has little ones under their names."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from twostage.data.check import check
from twostage.data.convert import convert
from twostage.data.get import get
from twostage.data.published import PUBLISHED_DATA, Archive, PublishedData, published_data
from twostage.data.recognise import find_layout, open_dataset
from twostage.data.scenes import write_scenes
from twostage.errors import DataError, MissingError, TwostageError, UsageError
from twostage.folders import claimed


def packed_tar(folder: Path, prefix: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        packed.add(folder, prefix)
    return buffer.getvalue()


def packed_zip(folder: Path, *parts: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for path in sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file()):
            packed.write(path, path.relative_to(folder))
    return buffer.getvalue()


def archive(server: Any, name: str, content: bytes, splits: tuple[str, ...], root: str = "") -> Archive:
    server.files[name] = content
    return Archive(server.url(name), len(content), hashlib.sha256(content).hexdigest(), splits, root)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "coco", train=3, val=2, seed=0)


@pytest.fixture
def coco(server: Any, scenes: Path) -> PublishedData:
    """As COCO is dealt out: annotations of all splits in one archive, the images of each in its own."""
    return PublishedData(
        "coco2017",
        "little",
        "none",
        (
            archive(server, "annotations.zip", packed_zip(scenes, "annotations"), ("train", "val")),
            archive(server, "val.zip", packed_zip(scenes, "val"), ("val",)),
            archive(server, "train.zip", packed_zip(scenes, "train"), ("train",)),
        ),
    )


def test_voc_of_two_archives(server: Any, scenes: Path, tmp_path: Path) -> None:
    convert(scenes, tmp_path / "voc", to="voc")
    content = packed_tar(tmp_path / "voc", "VOCdevkit/VOC2007")
    parts = [archive(server, f"{name}.tar", content, (name,), "VOCdevkit/VOC2007") for name in ("trainval", "test")]
    out = get(PublishedData("voc2007", "little", "none", tuple(parts)), tmp_path / "got")
    assert find_layout(out).kind == "voc"
    for split in ("train", "val"):
        assert open_dataset(out, split=split).boxes.tolist() == open_dataset(scenes, split=split).boxes.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["got", "voc"]


def test_coco_whole_or_one_split(coco: PublishedData, server: Any, scenes: Path, tmp_path: Path) -> None:
    get(coco, tmp_path / "whole")
    assert find_layout(tmp_path / "whole").splits == ("train", "val")
    assert len(open_dataset(tmp_path / "whole", split="train")) == 3
    asked = len(server.asked)
    get(coco, tmp_path / "val", splits=("val",))
    assert len(server.asked) == asked + 2
    assert len(open_dataset(tmp_path / "val", split="val")) == 2
    assert find_layout(tmp_path / "val").splits == ("val",)
    assert check(tmp_path / "val").ok
    with pytest.raises(UsageError, match="has no 'vla'"):
        get(coco, tmp_path / "other", splits=("vla",))
    assert not (tmp_path / "other").exists()


def test_broken_off_and_resumed(coco: PublishedData, server: Any, tmp_path: Path) -> None:
    """What has been fetched is kept; the folder itself is there when all is."""
    train = server.files.pop("train.zip")
    with pytest.raises(MissingError, match="404") as caught:
        get(coco, tmp_path / "got")
    assert str(tmp_path / "got.archives" / "train.zip") in str(caught.value)
    assert not (tmp_path / "got").exists()
    server.files["train.zip"] = train
    server.asked.clear()
    get(coco, tmp_path / "got")
    assert len(server.asked) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["got"]


def test_offline_and_by_hand(coco: PublishedData, server: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"got\.archives: nothing is downloaded offline") as caught:
        get(coco, tmp_path / "got", offline=True)
    assert not (tmp_path / "got.archives").exists()
    (tmp_path / "got.archives").mkdir()
    for name, content in server.files.items():
        assert f"{server.url(name)}, to {tmp_path / 'got.archives' / name}" in str(caught.value)
        (tmp_path / "got.archives" / name).write_bytes(content)
    get(coco, tmp_path / "got", offline=True)
    assert server.asked == []
    assert len(list((tmp_path / "got.archives").iterdir())) == 3, "they may be somebody's only copy"
    assert len(open_dataset(tmp_path / "got", split="train")) == 3


def test_a_wrong_byte_is_refused(coco: PublishedData, server: Any, tmp_path: Path) -> None:
    wrong = bytearray(server.files["val.zip"])
    wrong[len(wrong) // 2] ^= 1
    server.files["val.zip"] = bytes(wrong)
    with pytest.raises(MissingError, match="another file"):
        get(coco, tmp_path / "got")
    (tmp_path / "got.archives" / "val.zip").write_bytes(wrong)
    with pytest.raises(DataError, match="another file"):
        get(coco, tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_a_folder_that_is_not_new_and_a_disk_that_is_full(coco: PublishedData, tmp_path: Path) -> None:
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        get(coco, tmp_path / "got")
    huge = coco._replace(archives=(coco.archives[0]._replace(size=10**18),))
    with pytest.raises(TwostageError, match="GiB are needed to download and unpack"):
        get(huge, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_two_do_not_fetch_into_one_folder(coco: PublishedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twostage.folders._PATIENCE", 0.1)
    with claimed(tmp_path / "got.archives"), pytest.raises(UsageError, match=r"got\.archives: another run is writing"):
        get(coco, tmp_path / "got")
    (tmp_path / "file.archives").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        get(coco, tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="is the folder you are in"):
        get(coco, Path())


def test_published() -> None:
    for one in PUBLISHED_DATA.values():
        assert all(len(archive.sha256) == 64 and archive.size > 10**8 for archive in one.archives)
    assert [a.file for a in published_data("coco2017").needed(("val2017",))] == [
        "annotations_trainval2017.zip",
        "val2017.zip",
    ]
    with pytest.raises(UsageError, match="Did you mean 'voc2007'"):
        published_data("voc07")
