"""Everything a person may give to predict, and what each of it becomes."""

import contextlib
import io
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from twostage.errors import DataError, MissingError, UsageError
from twostage.inference.sources import expand, is_one_image


@pytest.fixture
def folder(tmp_path):
    """Three images of widths 11, 12 and 13, a text file, a hidden image, and a subfolder with one more."""
    for width, name in ((12, "b.PNG"), (11, "a.jpg"), (13, "c.bmp"), (99, "._a.jpg")):
        Image.new("RGB", (width, 8), (200, 10, 30)).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (14, 8)).save(tmp_path / "deep" / "d.png")
    return tmp_path


def widths(source, **options):
    return [item.image.shape[1] for item in expand(source, **options)]


def test_one_image(folder):
    (item,) = expand(str(folder / "b.PNG"))
    assert item.path == str(folder / "b.PNG")
    assert item.error is None
    assert item.image.shape == (8, 12, 3)
    assert item.image[0, 0].tolist() == [200, 10, 30]


@pytest.mark.parametrize("ahead", [0, 1, 2, 16])
def test_a_folder_in_order_of_names_without_its_subfolders(folder, ahead):
    assert widths(folder, ahead=ahead) == [11, 12, 13]


def test_patterns(folder):
    assert widths(f"{folder}/*.PNG") == [12]
    assert widths(f"{folder}/[ab].*") == [11, 12]
    assert widths(f"{folder}/**/*") == [11, 12, 13, 14]


def test_a_name_with_brackets_is_a_name_first(folder):
    Image.new("RGB", (20, 8)).save(folder / "x[1].png")
    assert widths(folder / "x[1].png") == [20]
    assert is_one_image(folder / "x[1].png")


def test_a_list_of_anything(folder):
    source = [folder / "c.bmp", str(folder), np.zeros((8, 5, 3), np.uint8), Image.new("L", (6, 8)), [folder / "a.jpg"]]
    assert widths(source) == [13, 11, 12, 13, 5, 6, 11]
    assert widths([]) == []


def test_an_iterator_is_taken_step_by_step(folder):
    taken = []

    def stream():
        for name in ("a.jpg", "b.PNG", "c.bmp"):
            taken.append(name)
            yield folder / name

    items = expand(stream())
    assert not taken
    assert next(items).image.shape[1] == 11
    assert taken == ["a.jpg"]


def test_a_wrong_path_in_an_iterator_does_not_end_it(folder):
    items = list(expand(iter([folder / "a.jpg", folder / "absent.jpg", folder / "b.PNG"])))
    assert [item.error is None for item in items] == [True, False, True]
    assert "absent.jpg" in str(items[1].error)


def test_paths_from_standard_input(folder, monkeypatch):
    lines = f"{folder / 'a.jpg'}\n\n{folder / 'absent.jpg'}\r\n{folder / 'c.bmp'}"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    items = list(expand("-"))
    assert [item.path for item in items] == [str(folder / name) for name in ("a.jpg", "absent.jpg", "c.bmp")]
    assert "does not exist" in str(items[1].error)
    assert items[1].image is None


def test_standard_input_is_answered_line_by_line(folder):
    """A slow writer on the pipe gets each image back before it writes the next path."""
    code = "from twostage.inference.sources import expand\nfor i in expand('-'): print(i.image.shape[1], flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        watchdog = threading.Timer(30, p.kill)
        watchdog.start()
        for name, width in (("a.jpg", 11), ("c.bmp", 13)):
            p.stdin.write(f"{folder / name}\n")
            p.stdin.flush()
            assert p.stdout.readline() == f"{width}\n"
        p.stdin.close()
        watchdog.cancel()


@pytest.mark.parametrize("ahead", [0, 3])
def test_an_unreadable_image_carries_its_error_and_the_rest_goes_on(folder, ahead):
    (folder / "b.PNG").write_bytes((folder / "b.PNG").read_bytes()[:40])
    items = list(expand(folder, ahead=ahead))
    assert [item.image is None for item in items] == [False, True, False]
    assert isinstance(items[1].error, DataError)
    assert str(folder / "b.PNG") in str(items[1].error)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{folder}/absent.jpg", "absent.jpg: does not exist"),
        ("{folder}/*.webp", "matches nothing"),
        ("{folder}/*.txt", "1 files, none of them an image"),
        ("{folder}/empty", "contains no images"),
        (["{folder}/a.jpg", "{folder}/absent.jpg"], "absent.jpg: does not exist"),
        ("iVBORw0KGgo" * 500, "iVBORw0KGgo.*: 5500 characters are too long for a path.*b64decode"),
        ("a\0.jpg", "is not a path"),
    ],
)
def test_wrong_paths_are_told_before_any_work(folder, source, words):
    (folder / "empty").mkdir()
    named = [s.format(folder=folder) for s in source] if isinstance(source, list) else source.format(folder=folder)
    with pytest.raises(DataError, match=words):
        expand(named)


def test_a_folder_with_images_only_below_names_the_pattern(folder):
    (folder / "top").mkdir()
    (folder / "deep").rename(folder / "top" / "deep")
    with pytest.raises(DataError, match=r"subfolders hold 1: give '.*/top/\*\*/\*'"):
        expand(folder / "top")


@pytest.mark.parametrize("url", ["http://a.org/b.jpg", "https://a.org/b.jpg", "rtsp://camera/1", "s3://bucket/b.jpg"])
def test_urls_are_refused_with_the_way_round(url):
    with pytest.raises(UsageError, match="nothing is downloaded"):
        expand(url)


def test_arrays_grey_with_alpha_and_batches():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    rgba = np.stack([grey, grey + 1, grey + 2, grey], axis=2)
    for array in (grey, grey[:, :, None]):
        (item,) = expand(array)
        assert item.image.tolist() == np.repeat(grey[:, :, None], 3, axis=2).tolist()
        assert item.path is None
    assert next(expand(rgba)).image.tolist() == rgba[:, :, :3].tolist()
    assert [item.image[0, 0, 0] for item in expand(np.stack([rgba[:, :, :3], rgba[:, :, 1:]]))] == [0, 1]


def test_tensors_of_bytes_and_of_floats():
    picture = torch.arange(36, dtype=torch.uint8).reshape(3, 3, 4)
    expected = picture.permute(1, 2, 0).tolist()
    assert next(expand(picture)).image.tolist() == expected
    assert next(expand(picture.float() / 255)).image.tolist() == expected
    assert next(expand((picture / 255).requires_grad_())).image.tolist() == expected
    assert len(list(expand(torch.zeros(5, 3, 8, 8)))) == 5


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((8, 8, 3)), "float64"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.zeros((3, 8, 8), np.uint8), "Channels come last"),
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\)"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
        (torch.zeros(8, 8, 3), "Channels come first"),
        (torch.full((3, 8, 8), 255.0), "0 to 1"),
        (torch.full((3, 8, 8), torch.nan), "0 to 1"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
        (7, "int"),
        (None, "NoneType"),
        ({"a": 1}, "dict"),
    ],
    ids=str,
)
def test_what_is_no_image_is_refused_with_how_to_make_it_one(source, words):
    with pytest.raises(UsageError, match=words):
        list(expand(source))


def test_pil_images_and_bytes_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as image:
        (item,) = expand(image)
    assert item.image.shape == (20, 10, 3)
    assert item.path == str(tmp_path / "turned.jpg")
    assert next(expand((tmp_path / "turned.jpg").read_bytes())).image.shape == (20, 10, 3)
    (broken,) = expand(b"no picture")
    assert isinstance(broken.error, DataError)


def test_leaving_early_leaves_no_threads(folder):
    before = threading.active_count()
    items = expand(folder, ahead=2)
    next(items)
    items.close()
    assert threading.active_count() == before


def test_a_video_without_the_extra_names_the_command(folder, monkeypatch):
    (folder / "clip.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingError, match=r"pip install 'twostage\[video\]'"):
        expand(folder / "clip.mp4")


def test_a_video_without_the_extra_does_not_stop_the_images_beside_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (folder / "clip.mp4").write_bytes(b"")
    for source in (folder, folder / "*"):
        items = list(expand(source))
        assert [item.path for item in items if item.image is None] == [str(folder / "clip.mp4")]
        assert any(item.image is not None for item in items)
        assert all("twostage[video]" in str(item.error) for item in items if item.image is None)


def test_a_folder_of_videos_alone_names_the_command_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    for source in (tmp_path, tmp_path / "*"):
        with pytest.raises(MissingError, match=r"twostage\[video\]"):
            expand(source)


def test_paths_from_standard_input_are_taken_one_by_one_in_a_list_too(folder, monkeypatch):
    taken = []

    def lines():
        for file in sorted(folder.glob("*.*")):
            taken.append(file)
            yield f"{file}\n"

    monkeypatch.setattr(sys, "stdin", lines())
    next(expand(["-"]))
    assert len(taken) == 1


def test_a_video_gives_its_frames_in_order(tmp_path):
    av = pytest.importorskip("av", reason="the video extra is not installed")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in (0, 120, 240):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    Image.new("RGB", (7, 7)).save(tmp_path / "after.png")
    items = list(expand([tmp_path / "clip.mp4", tmp_path / "after.png"]))
    names = ["clip.mp4#0", "clip.mp4#1", "clip.mp4#2", "after.png"]
    assert [item.path for item in items] == [str(tmp_path / name) for name in names]
    assert [round(item.image.mean() / 120) for item in items[:3]] == [0, 1, 2]
    assert items[0].image.shape == (48, 64, 3)


def test_a_video_is_turned_as_players_turn_it(tmp_path, monkeypatch):
    """A phone held upright notes -90: the stored image is to be turned clockwise."""
    stored = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    frame = SimpleNamespace(rotation=-90, to_ndarray=lambda format: stored)
    container = SimpleNamespace(streams=SimpleNamespace(video=[1]), decode=lambda video: iter([frame]))
    av = SimpleNamespace(open=lambda path: contextlib.nullcontext(container), FFmpegError=OSError)
    monkeypatch.setitem(sys.modules, "av", av)
    (tmp_path / "clip.mov").touch()
    (item,) = expand(tmp_path / "clip.mov")
    assert item.image.tolist() == np.rot90(stored, -1).tolist()
    assert item.image.shape == (4, 2, 3)


def test_a_broken_video_carries_its_error(tmp_path):
    pytest.importorskip("av", reason="the video extra is not installed")
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    (item,) = expand(tmp_path / "clip.mp4")
    assert "clip.mp4" in str(item.error)


def test_which_sources_give_one_result(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert is_one_image("a.jpg")
    assert is_one_image(np.zeros((5, 5, 3), np.uint8))
    assert is_one_image(torch.zeros(3, 5, 5))
    assert is_one_image(Image.new("RGB", (5, 5)))
    for several in (
        ".",
        "*.jpg",
        "-",
        "clip.mp4",
        ["a.jpg"],
        np.zeros((2, 5, 5, 3), np.uint8),
        torch.zeros(1, 3, 5, 5),
    ):
        assert not is_one_image(several)


def test_no_torch_is_imported_for_paths(folder):
    code = f"import sys; from twostage.inference.sources import expand; list(expand({str(folder)!r})); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ}).returncode == 0


def test_bytes_on_standard_input_are_no_list_of_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("PNG\r\n\x1a\n\x00\x00\rIHDR"))
    with pytest.raises(DataError, match="holds no paths"):
        list(expand("-"))


def test_nothing_is_no_path() -> None:
    with pytest.raises(DataError, match="is not a path"):
        list(expand(""))


def png(value: int = 7) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [bytearray, memoryview, io.BytesIO])
def test_open_files_and_memory_are_images(kind, tmp_path):
    """What a web server has in hand."""
    assert is_one_image(kind(png()))
    (item,) = expand(kind(png()))
    assert item.image.shape == (4, 6, 3)
    (tmp_path / "a.png").write_bytes(png(9))
    with (tmp_path / "a.png").open("rb") as file:
        assert [item.image[0, 0, 0] for item in expand([file, kind(png())])] == [9, 7]


def test_a_file_that_was_opened_as_text_is_refused_with_how_to_open_it(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with (tmp_path / "a.txt").open() as file, pytest.raises(UsageError, match="'rb'"):
        list(expand(file))


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (np.full((4, 4, 3), 4080, np.uint16), "255 / 4095"),
        (np.full((4, 4, 3), 60000, np.uint16), "255 / 65535"),
        (np.full((4, 4, 3), 200, np.int64), "image.astype('uint8')"),
        (np.full((4, 4, 3), 200.0), "image.round().astype('uint8')"),
        (np.full((4, 4, 3), 0.5), "image * 255"),
        (np.ones((4, 4, 3), bool), "* 255"),
        (np.full((4, 4, 3), -1.0), "shift and scale"),
    ],
)
def test_the_advice_for_another_type_does_not_wrap_around(array, advice):
    with pytest.raises(UsageError) as caught:
        expand(array)
    assert advice in str(caught.value)


def test_photographs_that_cannot_be_read_are_counted(folder, caplog):
    (folder / "IMG_1.HEIC").write_bytes(b"")
    (folder / "IMG_2.heic").write_bytes(b"")
    with caplog.at_level("WARNING", "twostage"):
        list(expand(folder))
    assert "2 files (.heic) are left out, IMG_1.HEIC the first" in caplog.text
