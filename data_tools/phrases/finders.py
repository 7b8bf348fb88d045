"""Which phrase finder a language has. The taggers are an extra, so each is imported when it is first wanted."""

from __future__ import annotations

import functools
from collections.abc import Callable

from data_tools.phrases.interface import Phrase
from pipeline.base.constants import LANGUAGES


class MissingParser(ValueError):
    """The package that tags one language's words is not installed."""


@functools.cache
def finder(language: str) -> Callable[[str], list[Phrase]]:
    """``find(caption) -> phrases`` in the order of their start; loaded once a process.

    Raises:
        MissingParser: the extra with the taggers is not installed, or there is none for ``language``.
    """
    if language not in LANGUAGES:
        raise MissingParser(f"there is no phrase finder for {language!r}, only for {', '.join(LANGUAGES)}")
    try:
        if language == "en":
            from data_tools.phrases.english import EnglishPhrases  # a tagger each: only the one that is used

            return EnglishPhrases().find
        from data_tools.phrases.chinese import ChinesePhrases

        return ChinesePhrases().find
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in {"textblob", "nltk", "rjieba"}:
            raise
        raise MissingParser(
            f"finding {language} phrases needs the package {package}, which is not installed; "
            'install the extra with: pip install "fine-grained-vlm[data]"'
        ) from error
