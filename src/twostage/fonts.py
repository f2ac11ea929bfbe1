"""The font of labels: Matplotlib's, which has accents, Greek and Cyrillic, or one of the machine with other letters."""

import logging
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont, features

from twostage.errors import MissingError

log = logging.getLogger("twostage.drawing")

# Located without the slow import of matplotlib; Pillow's own font lacks accents.
_DEFAULT = Path(getattr(find_spec("matplotlib"), "origin", None) or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
# Parts of the names of fonts with many scripts, which are tried first.
_LIKELY = ("cjk", "unicode", "gothic", "malgun", "nanum", "yahei", "wqy", "hei", "song", "noto", "deva", "thai")
_NO_LETTER = "\U0010ffff"  # a code point that no font has: drawn as the sign for a missing letter


def font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """A font of this size that has the letters of the text, as far as one of the machine's has. Raises MissingError."""
    if not features.check("freetype2"):
        raise MissingError("Drawing labels needs Pillow with FreeType: pip install --force-reinstall pillow")
    path = font_file(text)
    chosen = ImageFont.truetype(path, size) if path else ImageFont.load_default(size=size)
    assert isinstance(chosen, ImageFont.FreeTypeFont)
    return chosen


def font_file(text: str) -> Path | None:
    """The file of a font with the letters of the text; None for Pillow's own where Matplotlib's is missing."""
    return _file_of(frozenset(letter for letter in text if ord(letter) > 127 and not letter.isspace()))


@cache
def _file_of(letters: frozenset[str]) -> Path | None:
    default = _DEFAULT if _DEFAULT.exists() else None
    if not letters or (default and _has(default, letters)):
        return default
    for path in _of_the_machine():
        if _has(path, letters):
            return path
    _warn()
    return default


@cache
def _warn() -> None:
    log.warning("No font of this machine has all letters of the names: install one, such as Noto Sans CJK.")


@cache
def _of_the_machine() -> tuple[Path, ...]:
    try:
        from matplotlib.font_manager import findSystemFonts
    except ImportError:
        return ()
    paths = sorted(map(Path, findSystemFonts()))
    return tuple(sorted(paths, key=lambda path: not any(part in path.name.lower() for part in _LIKELY)))


def _has(path: Path, letters: frozenset[str]) -> bool:
    try:
        opened = ImageFont.truetype(path, 20)
        missing = bytes(opened.getmask(_NO_LETTER))
        return all(bytes(opened.getmask(letter)) != missing for letter in letters)
    except (OSError, ValueError):  # fonts of pictures have no size of 20
        return False
