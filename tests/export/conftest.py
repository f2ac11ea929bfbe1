"""What tests of exports share: weights whose detections differ, images of several kinds, and the command line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jaxtyping
import numpy as np
import pytest
from detectors import lively
from PIL import Image

from twostage.cli import main
from twostage.data.scenes import HARD, make_scene


@pytest.fixture(autouse=True, scope="session")
def symbols_are_whole_numbers() -> Iterator[None]:
    """The suite's type checks do not accept a symbol as `int`. For the session, as fixtures of the session export."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Answer(NamedTuple):
    """Exit code, standard output and standard error of a call."""

    code: int
    output: str
    messages: str


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs the command line in this process."""

    def run(*words: object) -> Answer:
        capsys.readouterr()
        return Answer(main([str(word) for word in words]), *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the weights of such a detector, once for each name and fields."""
    known: dict[str, Path] = {}

    def write(name: str, **fields: object) -> Path:
        key = f"{name}{fields}"
        if key not in known:
            known[key] = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
            lively(name, **fields).save(known[key])
        return known[key]

    return write


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, weights: Callable[..., Path]) -> Callable[..., Path]:
    """Exports such a detector, once for each name and options; the folder."""
    known: dict[tuple[object, ...], Path] = {}

    def export(name: str, *options: object, **fields: object) -> Path:
        key = (name, *options, str(fields))
        if key not in known:
            known[key] = tmp_path_factory.mktemp("exported") / "out"
            words = ("export", "--weights", weights(name, **fields), *options, "--out", known[key], "--quiet")
            code = main([str(word) for word in words])
            # Random weights make much of small differences: half the bits, the padding beside an image, a mask's edge.
            assert code == 0 or (
                code == 5 and ({"fp16", "--pixels"} & set(options) or "mask" in name or "task" in name)
            )
        return known[key]

    return export


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of different shapes, none square: a wide one, a high grey one, one turned by its EXIF tag, a small one."""
    folder = tmp_path_factory.mktemp("photos")
    scenes = [Image.fromarray(make_scene(0, 0, number, style=HARD).image) for number in range(4)]
    exif = Image.Exif()
    exif[0x0112] = 6
    scenes[0].crop((0, 0, 256, 170)).save(folder / "wide.png")
    scenes[1].crop((0, 0, 150, 256)).convert("L").save(folder / "grey.png")
    scenes[2].crop((0, 0, 250, 190)).save(folder / "turned.jpg", exif=exif)
    scenes[3].crop((0, 0, 81, 64)).save(folder / "small.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def pixels(photos: list[Path]) -> list[np.ndarray]:
    """The same as upright arrays."""
    from twostage.data.images import read_image

    return [read_image(path) for path in photos]
