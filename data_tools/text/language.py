"""Which language a text is in, as far as script and commonest words tell."""

from __future__ import annotations

import re

# Words without which hardly an English sentence of some length goes, and other Latin-script languages do.
ENGLISH_WORDS = frozenset(
    "the a an of in on at is are and with to by from there his her its it that this two one near while up".split()
)
MIN_WORDS_FOR_LANGUAGE = 10
SPACELESS = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo", "yue"})  # written without spaces between words


def text_language(text: str, expected: str) -> str:
    """``zh``, ``en`` or ``other``; texts too short to tell are taken for ``expected`` if their script fits."""
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return "other"
    han = sum("\u4e00" <= c <= "\u9fff" or "\u3400" <= c <= "\u4dbf" for c in letters)
    latin = sum(c.isascii() for c in letters)
    if any("\u3040" <= c <= "\u30ff" or "\uac00" <= c <= "\ud7af" for c in letters):
        return "other"  # Japanese or Korean
    if han >= 0.6 * len(letters):
        return "zh"
    if latin < 0.9 * len(letters):
        return "other"
    words = re.findall(r"[a-z']+", text.lower())
    common = sum(word in ENGLISH_WORDS for word in words)
    return "en" if len(words) < MIN_WORDS_FOR_LANGUAGE or common >= 0.05 * len(words) else "other"
