"""What a phrase finder gives, and the word lists that finders use."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

VERSION = 1


@dataclass(frozen=True)
class Phrase:
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
