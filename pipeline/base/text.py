"""Text from outside on its way to a terminal, a log or an error."""

from __future__ import annotations

import unicodedata

# Control and format characters move a terminal's cursor, colour what follows or turn its direction; surrogates and
# unassigned code points cannot be written at all.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"})
_KEPT = frozenset("\n\t\u200c\u200d")  # line ends, tabs, and the joiners that Persian and emoji are spelled with


def printable(text: str, max_characters: int | None = None) -> str:
    """``text`` with every character that a terminal would act on shown as its escape, ``\\x1b`` for instance.

    Args:
        max_characters: a longer text is cut there and ends in an ellipsis.
    """
    if max_characters is not None and len(text) > max_characters:
        text = text[:max_characters] + "…"
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if _is_harmless(character) else _escaped(character) for character in text)


def _is_harmless(character: str) -> bool:
    return character in _KEPT or unicodedata.category(character) not in _HIDDEN


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
