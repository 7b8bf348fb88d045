"""Words of captions that a mirrored or recoloured picture would make untrue, in English and Chinese.

Conservative: a word that may mean a side or a colour counts as one. Texts in another language count as naming
everything, because nobody has listed their words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.base.languages import primary

SIDES = {
    "en": (
        r"\b((left|right)(-?(most|hand|handed|ward|wards|side))?|(counter|anti)?-?clockwise|east(ern)?|west(ern)?|"
        r"mirror(ed)?|says?|saying|reads?|reading|text|letters?|letterings?|words?|writing|written|numbers?|digits?|"
        r"logos?|labell?ed|signs?)\b"
    ),
    "zh": r"[左右东西镜]|时针|文字|字样|字母|写着|写有|印着|数字|标志|标识|标牌|招牌|“",
}
COLOURS = {
    "en": (
        r"\b((dark|light|bright|pale|deep)(-|er\b|ly\b)?\w*|colou?r\w*|red\w*|orange\w*|yellow\w*|green\w*|blue\w*|"
        r"cyan|teal|turquoise|navy|purple|violet|magenta|pink\w*|brown\w*|beige|tan|olive|maroon|gold\w*|silver\w*|"
        r"black\w*|white\w*|gr[ae]y\w*|blond\w*|brunette|sunny|night\w*|dim\w*|faded|vivid|sepia|monochrome|shadow\w*)\b"
    ),
    "zh": r"[红橙黄绿青蓝紫粉棕褐黑白灰金银彩色亮暗深浅夜]",
}
PATTERNS = {
    kind: {language: re.compile(pattern, re.IGNORECASE) for language, pattern in patterns.items()}
    for kind, patterns in (("side", SIDES), ("colour", COLOURS))
}


def names_any(kind: str, texts: Iterable[str], language: str) -> bool:
    """Whether a text names a ``side`` (or writing, which a mirror turns) or a ``colour`` (or light)."""
    pattern = PATTERNS[kind].get(primary(language))
    return pattern is None or any(pattern.search(text) for text in texts)
