"""What a phrase finder gives, and which one a language has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

VERSION = 1


class MissingParser(ValueError):
    """The package that tags one language's words is not installed."""


@dataclass(frozen=True)
class Found:
    """A referring expression, ``text == caption[start:end]``; ``short_*`` is its noun with attributes, no clauses."""

    text: str
    start: int
    end: int
    short_text: str
    short_start: int
    short_end: int

    def to_json(self, field: str) -> dict[str, Any]:
        """The entry of ``source.phrases``: spans count characters of the caption ``from``."""
        record: dict[str, Any] = {"text": self.text, "span": [self.start, self.end], "from": field}
        if self.short_text != self.text:
            record |= {"short": self.short_text, "short_span": [self.short_start, self.short_end]}
        return record


@functools.cache
def words(part: str) -> Any:
    """The word lists of the language ``part``, or the file's ``version``."""
    text = resources.files("data_tools.phrases").joinpath("words.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)[part]


@functools.cache
def finder(language: str) -> Callable[[str], list[Found]]:
    """``find(caption) -> phrases`` in the order of their start; loaded once a process.

    Raises:
        MissingParser: the extra with the taggers is not installed.
    """
    try:
        if language == "en":
            from data_tools.phrases.english import EnglishPhrases

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
