"""Every image leaves as upright RGB of 8 bits, or as an error that names it."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from twostage.data import images
from twostage.data.images import probe, read_header, read_image
from twostage.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_is_read_as_it_is_from_path_text_bytes_and_pil(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(PIXELS))
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        pixels = read_image(source)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable
        np.testing.assert_array_equal(pixels, PIXELS)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    path = saved(tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png"), image)
    np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))
    assert read_header(path)[:2] == (6, 9)


def test_alpha_is_dropped_and_not_blended(tmp_path: Path) -> None:
    alpha = np.zeros((6, 9, 1), dtype=np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(np.concatenate([PIXELS, alpha], axis=2)))
    np.testing.assert_array_equal(read_image(path), PIXELS)


def test_palette_with_transparency_keeps_its_colours(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    image = Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE)
    path = saved(tmp_path / "a.png", image, transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))
    assert not recwarn.list


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_keep_their_high_byte(tmp_path: Path, name: str) -> None:
    samples = np.array([[0, 255, 256, 4095, 32768, 65535]], dtype=np.uint16)
    path = saved(tmp_path / name, Image.fromarray(samples))
    np.testing.assert_array_equal(read_image(path)[0], [[v] * 3 for v in (0, 0, 1, 15, 128, 255)])


def test_thirty_two_bits_with_the_range_of_sixteen_are_read_and_others_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, 65535]], dtype=np.int32)))
    np.testing.assert_array_equal(read_image(path)[0], [[0] * 3, [255] * 3])
    path = saved(tmp_path / "b.tif", Image.fromarray(np.array([[0, 65536]], dtype=np.int32)))
    with pytest.raises(DataError, match=r"b\.tif.*65536"):
        read_image(path)


def test_float_pixels_are_refused_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "f.tif", Image.fromarray(np.ones((4, 4), dtype=np.float32)))
    with pytest.raises(DataError, match=r"f\.tif.*mode F"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_exif_turns_pixels_and_size_alike(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path / name, Image.fromarray(PIXELS), exif=exif, **options)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(path), upright)
    np.testing.assert_array_equal(read_image(Image.open(path)), upright)
    assert read_header(path)[:2] == upright.shape[:2]
    assert read_header(path).orientation == orientation


def test_exif_behind_the_pixels_of_a_png_turns_it_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\x00\x00"))
    plain = saved(tmp_path / "a.png", Image.fromarray(PIXELS)).read_bytes()
    (tmp_path / "a.png").write_bytes(plain[:-12] + chunk + plain[-12:])
    assert read_header(tmp_path / "a.png")[:2] == (9, 6)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(PIXELS, -1))


def test_broken_exif_counts_as_none(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(PIXELS), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read_header(path)[:2] == (6, 9)
    assert read_image(path).shape == (6, 9, 3)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path), np.asarray(frames[0]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jpg", b"", "empty"),
        ("text.png", b"hello, I am no image", "not an image"),
        ("header.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", "."),
        ("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (read_image, read_header, probe):
        with pytest.raises(DataError, match=words) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.jpg: does not exist"):
        read_image(tmp_path / "no.jpg")
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path)


def test_a_header_of_a_bomb_is_refused_with_its_pixels(tmp_path: Path) -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + png_chunk(b"IEND", b""))
    for read in (read_image, read_header):
        with pytest.raises(DataError, match=r"bomb\.png.*3600000000 pixels"):
            read(tmp_path / "bomb.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tif", "a.ppm", "a.jp2"])
def test_probe_passes_whole_images_and_finds_truncated_ones(
    tmp_path: Path, name: str, make_image: Callable[..., Path]
) -> None:
    path = make_image(tmp_path / name, 64, 80)
    assert probe(path)[:2] == (64, 80)
    content = path.read_bytes()
    for part in (0.5, 0.9):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(DataError, match=name):
            probe(path)


def test_probe_passes_a_jpeg_with_bytes_behind_its_end(tmp_path: Path, make_image: Callable[..., Path]) -> None:
    path = make_image(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes() + b"phone maker's own data")
    assert probe(path)[:2] == (40, 60)


def test_real_images_are_read_as_pillow_reads_them(real_data: Path) -> None:
    for path in sorted((real_data / "coco-photos" / "images").iterdir())[:20]:
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        np.testing.assert_array_equal(read_image(io.BytesIO(path.read_bytes()).getvalue()), expected)
        assert read_header(path)[:2] == expected.shape[:2]


def test_twelve_bits_in_an_image_of_sixteen_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Microscopes and satellites write them (mmdet#12299); 16 of 4096 shades are left."""
    images._warn_of_few_bits.cache_clear()
    for number, high in enumerate((4080, 4080, 60000)):
        samples = np.full((4, 6), high, dtype=np.uint16)
        Image.fromarray(samples).save(tmp_path / f"{number}.tif")
        with caplog.at_level("WARNING", "twostage"):
            read_image(tmp_path / f"{number}.tif")
    (record,) = caplog.records
    assert "12 bits only" in record.getMessage()
    assert "by 16" in record.getMessage()
