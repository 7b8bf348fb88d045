"""The phrases step: referring expressions of a sample's captions, for boxes to be found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_tools.execution.shards import with_source
from data_tools.execution.steps import Drop, Record, Shard, Step
from data_tools.phrases.finders import finder
from data_tools.phrases.interface import VERSION, words
from pipeline.base.constants import LANGUAGES
from pipeline.base.languages import primary
from pipeline.data.schema import Sample

FIELDS = ("long_caption", "short_caption")


class PhrasesStep(Step):
    """Writes ``source.phrases``, each ``{"text", "span", "from"}``, and ``short``, ``short_span`` where they differ.

    A phrase that occurs twice is kept once, from the first of ``fields`` that has it. At most ``max_phrases`` stay.
    """

    name, version = "phrases", str(VERSION)

    def __init__(self, fields: tuple[str, ...] = FIELDS, max_phrases: int = 30) -> None:
        if max_phrases < 1:
            raise ValueError(f"max_phrases is {max_phrases}; it must be at least 1")
        self.fields, self.max_phrases = fields, max_phrases

    def settings(self) -> dict[str, Any]:
        return {"fields": list(self.fields), "max_phrases": self.max_phrases, "words": words("version")}

    def open(self, worker: int) -> None:
        for language in LANGUAGES:
            finder(language)

    def apply(self, records: list[Record], shard: Shard) -> list[Record | Drop]:
        return [self._found(record, shard) for record in records]

    def _found(self, record: Record, shard: Shard) -> Record:
        if primary(record.sample.language) not in LANGUAGES:
            shard.count(f"samples_without_phrase_finder_{record.sample.language}")
            return record
        phrases = find_phrases(record.sample, self.fields)
        shard.count("phrases_found", min(len(phrases), self.max_phrases))
        if len(phrases) > self.max_phrases:
            shard.count("phrases_beyond_max", len(phrases) - self.max_phrases)
        if not phrases:
            shard.count("samples_without_phrases")
            return record
        return replace(record, sample=with_source(record.sample, phrases=phrases[: self.max_phrases]))


def find_phrases(sample: Sample, fields: tuple[str, ...] = FIELDS) -> list[dict[str, Any]]:
    """Phrases of the captions named, each once, in the order of fields and of their start."""
    found: dict[str, dict[str, Any]] = {}
    for field in fields:
        caption = getattr(sample, field)
        if caption is not None:
            for phrase in finder(primary(sample.language))(caption):
                found.setdefault(phrase.text.casefold(), phrase.to_json(field))
    return list(found.values())
