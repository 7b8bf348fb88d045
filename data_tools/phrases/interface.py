"""What a phrase finder gives, and the word lists that finders use."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.data.schema import Sample

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


class StoredPhrase(BaseModel):
    """An entry of ``source.phrases`` as it is read back; other tools may have written anything there."""

    model_config = ConfigDict(strict=True, populate_by_name=True)

    text: str
    span: Annotated[tuple[int, int], Field(strict=False)] | None = None
    field: str = Field("", alias="from")
    short: str | None = None


def found_phrases(sample: Sample) -> list[StoredPhrase]:
    """The phrases that the phrase step left; entries of another form are passed over."""
    entries = sample.source.get("phrases")
    found = []
    for entry in entries if isinstance(entries, list) else []:
        with contextlib.suppress(ValidationError):
            found.append(StoredPhrase.model_validate(entry))
    return found


@functools.cache
def words(part: str) -> Any:
    """The word lists of the language ``part``, or the file's ``version``."""
    text = resources.files("data_tools.phrases").joinpath("words.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)[part]
