"""Which language a text is in, English or Chinese, where neither its format nor its file says so."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.evaluation.results import EvaluationError

IDEOGRAPH = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002ffff]")


def language_of(texts: Iterable[str]) -> str:
    """``zh`` where more than half of the texts hold a Chinese character, else ``en``."""
    found = [bool(IDEOGRAPH.search(text)) for text in texts]
    return "zh" if 2 * sum(found) > len(found) else "en"


def the_one_language(asked: str, present: Iterable[str], where: str) -> str:
    """The language of a set whose records name theirs; ``asked`` ``auto`` takes the only one there is.

    Raises:
        EvaluationError: the set holds several, and none was asked for; or not the one that was.
    """
    languages = sorted(set(present))
    if asked != "auto":
        if languages and asked not in languages:
            raise EvaluationError(f"--language is {asked}, but {where} holds {' and '.join(languages)}; ask for that")
        return asked
    if len(languages) > 1:
        raise EvaluationError(f"{where} holds {' and '.join(languages)}; say which with --language")
    return languages[0] if languages else "en"
