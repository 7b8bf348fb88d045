"""Fonts that can write a text: Chinese needs one that not every machine has."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

FONT_VARIABLE = "PICTURE_FONT"
# Parts of file names of fonts with Chinese, in the order they are tried before all others.
CHINESE_FONTS = ("notosanscjk", "notosanssc", "sourcehansans", "wqy", "droidsansfallback", "pingfang", "msyh", "simhei")
REPLACEMENT = "□"


def find_font(text: str) -> str | None:
    """Path of a font with every character of ``text``: the environment's PICTURE_FONT first; None if there is none."""
    needed = frozenset(ord(character) for character in text if not character.isspace())
    return next((path for path in _candidates() if needed <= _characters(path)), None)


def can_draw(text: str) -> bool:
    """Whether a font of this machine has every character of ``text``."""
    return find_font(text) is not None


def drawable(text: str) -> tuple[str, str]:
    """``(text, font path)``, characters that no font here has replaced by □ and warned of once."""
    path = find_font(text)
    if path is not None:
        return text, path
    # One message for all texts, so that Python's filter shows it once.
    warnings.warn(
        "no font on this machine has all characters of the phrases, so pictures show □ for some; install one (Debian: "
        f"fonts-noto-cjk) or set {FONT_VARIABLE} to a font file",
        stacklevel=1,
    )
    fallback = next(path for path in _candidates() if ord(REPLACEMENT) in _characters(path))
    return replace_unknown(text, fallback), fallback


def replace_unknown(text: str, path: str) -> str:
    """``text`` with □ for each character that the font does not have."""
    known = _characters(path)
    return "".join(c if c.isspace() or ord(c) in known else REPLACEMENT for c in text)


def load_font(path: str, height: int) -> ImageFont.FreeTypeFont:
    """The font of a file for Pillow, ``height`` in pixels."""
    return ImageFont.truetype(path, height)


def _candidates() -> Iterator[str]:
    if os.environ.get(FONT_VARIABLE):
        yield os.environ[FONT_VARIABLE]
    yield font_manager.findfont("DejaVu Sans")  # comes with matplotlib
    yield from _installed()


@functools.lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    def order(path: str) -> tuple[int, str]:
        name = Path(path).name.lower().replace("-", "").replace("_", "")
        return next((n for n, part in enumerate(CHINESE_FONTS) if part in name), len(CHINESE_FONTS)), path

    return tuple(sorted(font_manager.findSystemFonts(), key=order))


@functools.lru_cache(maxsize=256)
def _characters(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a damaged or bitmap font is passed over
        return frozenset()
