"""The predictor without torch: its images are those of training and prediction, to the bit or nearly."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from twostage.data.images import read_image
from twostage.data.resize import Resize
from twostage.errors import DataError
from twostage.inference import standalone

RULES = {
    "torch": {"by": "torch"},
    "antialias": {"by": "torch", "antialias": True},
    "pillow": {"by": "pillow", "rounding": "nearest"},
    "opencv": {"by": "opencv", "rounding": "nearest"},
    "caffe": {"by": "caffe", "rounding": "nearest"},
    "skimage": {"by": "skimage", "rounding": "nearest"},
}
NAMES = ("mode", "size", "max_size", "antialias", "rounding", "by")


def as_in_a_file(resize: Resize) -> SimpleNamespace:
    """The rule as the metadata of an exported file gives it."""
    return SimpleNamespace(**{name: getattr(resize, name) for name in NAMES})


@pytest.mark.parametrize("rule", RULES)
@given(
    st.integers(1, 130),
    st.integers(2, 130),  # of an image one pixel wide torch itself takes the wrong rows (antialias, channels-last)
    st.integers(1, 110),
    st.integers(1, 160),
    st.sampled_from(["shortest", "fixed", "none"]),
    st.sampled_from(["floor", "nearest"]),
)
def test_resized_as_by_the_package(
    rule: str, height: int, width: int, size: int, limit: int, mode: str, rounding: str
) -> None:
    resize = Resize(**{"mode": mode, "size": size, "max_size": limit, "rounding": rounding, **RULES[rule]})
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assume(mode == "none" or resize.shape(height, width)[1] > 1)
    expected = resize(torch.from_numpy(pixels.copy()).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    found = standalone.resized(pixels, as_in_a_file(resize))
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(480, 640), (427, 640), (1, 700), (333, 1000)])
def test_large_images_are_resized_as_by_the_package(rule: str, shape: tuple[int, int]) -> None:
    """Rounding of the places grows with them."""
    resize = Resize(size=321, max_size=517, **RULES[rule])
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = resize(torch.from_numpy(pixels.copy()).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    found = standalone.resized(pixels, as_in_a_file(resize))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def written(folder: Path, kind: str) -> Path:
    """An image file of some kind."""
    image, path, options = Image.fromarray(PIXELS), folder / "a.png", {}
    if kind.startswith("turned"):
        exif = Image.Exif()
        exif[0x0112] = int(kind[-1])
        options["exif"] = exif
    elif kind == "16 bits":
        image = Image.fromarray(np.array([[0, 255, 256, 4095, 32768, 65535]] * 3, dtype=np.uint16))
    elif kind == "16 bits in a TIFF":
        image, path = Image.fromarray(np.array([[0, 70, 300, 65535]] * 3, dtype=np.uint16)), folder / "a.tif"
    elif kind == "palette with transparency":
        image, options = image.convert("P", palette=Image.Palette.ADAPTIVE), {"transparency": bytes(range(256))}
    elif kind in ("CMYK", "turned TIFF"):
        image, path = image.convert("CMYK"), folder / "a.tif"
    elif kind == "JPEG":
        path = folder / "a.jpg"
    else:
        image = image.convert(kind)
    image.save(path, **options)
    return path


KINDS = ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "JPEG", "16 bits", "16 bits in a TIFF"]


@pytest.mark.parametrize("kind", [*KINDS, "palette with transparency", *(f"turned {k}" for k in range(1, 9))])
def test_files_are_read_as_by_the_package(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    expected = read_image(path)
    for source in (path, str(path), Image.open(path)):
        found = standalone.read(source)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("samples", [np.array([[0, 65536]], dtype=np.int32), np.ones((4, 4), dtype=np.float32)])
def test_pixels_without_an_agreed_range_are_refused_as_by_the_package(tmp_path: Path, samples: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(samples).save(path)
    with pytest.raises(DataError):
        read_image(path)
    with pytest.raises(standalone.FileError, match=r"a\.tif"):
        standalone.read(path)


def test_broken_exif_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    np.testing.assert_array_equal(standalone.read(path), read_image(path))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(standalone.FileError, match=r"broken\.jpg: cannot be read as an image"):
        standalone.read(path)
    with pytest.raises(standalone.FileError, match=r"nowhere\.jpg"):
        standalone.read(tmp_path / "nowhere.jpg")


def test_half_an_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(standalone.FileError, match=r"half\.png"):
        standalone.read(path)


def test_calls_side_by_side_are_in_order_and_none_is_far_ahead() -> None:
    begun: list[int] = []

    def double(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return 2 * number

    results: list[object] = []
    for done in standalone.side_by_side(double, range(20), 4):
        results.append(done.exception() or done.result())
        assert len(begun) <= len(results) + 4
    assert str(results[3]) == "three"
    assert [one for place, one in enumerate(results) if place != 3] == [2 * n for n in range(20) if n != 3]


def found_in_any(name: str) -> type:
    """A predictor that finds one object of a class in every image."""
    found = {"boxes": np.array([[1, 1, 9, 9]]), "scores": np.array([0.9]), "class_ids": np.array([0]), "masks": None}

    class One:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def predict(self, *_: object) -> dict[str, object]:
            return {**found, "labels": [name]}

    return One


def test_a_class_that_the_console_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pipe on Windows, whose code page lacks most letters."""
    image, written = tmp_path / "a.png", io.BytesIO()
    Image.new("RGB", (20, 20)).save(image)
    monkeypatch.setattr(standalone, "Predictor", found_in_any("\u7ea2"))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="cp1252", write_through=True))
    assert standalone.main([str(image), "--model", "m.onnx"]) == 0
    assert rb"\u7ea2 0.90" in written.getvalue()


def test_a_picture_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "found" / "a.png").mkdir(parents=True)
    monkeypatch.setattr(standalone, "Predictor", found_in_any("cat"))
    assert standalone.main([str(tmp_path / "a.png"), "--model", "m.onnx", "--save", str(tmp_path / "found")]) == 1
    assert f"{tmp_path / 'found' / 'a.png'}: cannot be written (Is a directory)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--threads", "0", "0 is below 1"),
        ("--threads", "-1", "-1 is below 1"),
        ("--conf", "2", "2 is not from 0 to 1"),
        ("--conf", "nan", "nan is not from 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused(flag: str, value: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        standalone.main(["photo.jpg", flag, value])
    assert stopped.value.code == 2
    assert f"argument {flag}: {words}" in capsys.readouterr().err
