"""Judging negatives in languages without a lexicon: by their letters alone, for nothing more is known of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from data_tools.negatives.lexicon import has_lexicon
from data_tools.negatives.validate import Validator, length_fits


class Judge(Protocol):
    """What decides whether a candidate is a negative of one phrase."""

    def problem(self, text: str) -> str | None:
        """Why ``text`` is no negative, as a short name to count under; None accepts and remembers it."""

    def changed_attributes(self, text: str) -> tuple[str, ...]:
        """Names of the attributes in which an accepted candidate differs."""


class PlainValidator:
    """Length, one line, and no repetition of the phrase, of a true phrase or of another candidate.

    Synonyms and changed objects pass: who writes negatives of such a language must be trusted to follow the prompt.
    """

    def __init__(self, phrase: str, true_phrases: Iterable[str] = ()) -> None:
        self.phrase = phrase
        self._true = {_folded(text) for text in true_phrases} - {_folded(phrase)}
        self._seen: set[str] = set()

    def problem(self, text: str) -> str | None:
        if not length_fits(self.phrase, text):
            return "length"
        if "\n" in text:
            return "not_one_line"
        folded = _folded(text)
        if folded == _folded(self.phrase):
            return "same_as_phrase"
        if folded in self._seen:
            return "repeated"
        if folded in self._true:
            return "true_in_image"
        self._seen.add(folded)
        return None

    def changed_attributes(self, text: str) -> tuple[str, ...]:
        """Unknown without a lexicon: ``other``."""
        return ("other",)


def judge_for(language: str, phrase: str, true_phrases: Iterable[str] = ()) -> Judge:
    """The judge of candidates for one phrase: with the language's lexicon where there is one."""
    if has_lexicon(language):
        return Validator(language, phrase, true_phrases)
    return PlainValidator(phrase, true_phrases)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".!?。！？")
