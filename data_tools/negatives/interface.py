"""What every generator of negatives takes and gives."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from data_tools.negatives.chinese import Chinese
from data_tools.negatives.english import English
from data_tools.negatives.lexicon import load_lexicon
from pipeline.base.languages import primary

NEGATIVES_A_PHRASE = 10  # as in FineHARD and FG-OVD: one true phrase among eleven


@dataclass(frozen=True)
class Request:
    """One phrase that wants negatives. ``true_phrases`` are the other phrases that hold in the same image."""

    phrase: str
    language: str
    true_phrases: tuple[str, ...] = ()
    seed: int = 0
    wanted: int = NEGATIVES_A_PHRASE


@dataclass(frozen=True)
class Negative:
    """An altered phrase and the attributes changed in it: one, or two where one at a time was not enough."""

    text: str
    attributes: tuple[str, ...]


@dataclass
class Outcome:
    """``negatives`` passed the validators. ``rejected`` counts what did not, by reason.

    ``reason`` says why there are fewer than wanted, "" when there are enough; ``failure`` is set where a later run may
    do better, because a server did not answer.
    """

    negatives: list[Negative] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    reason: str = ""
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        negatives = [[negative.text, list(negative.attributes)] for negative in self.negatives]
        return {"negatives": negatives, "rejected": dict(self.rejected), "reason": self.reason}

    @classmethod
    def from_json(cls, data: Any) -> Outcome | None:
        """What ``to_json`` gave; None for anything else, as a damaged journal holds it."""
        try:
            stored = _STORED.validate_python(data)
        except ValidationError:
            return None
        negatives = [Negative(text, tuple(attributes)) for text, attributes in stored.negatives]
        return cls(negatives, Counter(stored.rejected), stored.reason)


@dataclass(frozen=True)
class _Stored:
    negatives: list[tuple[str, list[str]]]
    rejected: dict[str, int]
    reason: str


_STORED: TypeAdapter[_Stored] = TypeAdapter(_Stored)


class Generator(Protocol):
    """Ten validated negatives a request where possible."""

    batch_size: int  # records read ahead, so that many requests can be under way
    costs: bool  # answers are worth keeping when a run is cut short

    def describe(self) -> dict[str, Any]:
        """Name, version and whatever else the negatives depend on: their provenance."""

    def generate(self, requests: Sequence[Request], note: Callable[[int, Outcome], None]) -> None:
        """Call ``note(number, outcome)`` once for each request, as soon as its outcome is final."""


def grammar(language: str) -> English | Chinese:
    """The parser and writer of ``language``, whatever its script and region; loaded once a process."""
    return _grammar(primary(language))


@functools.cache
def _grammar(language: str) -> English | Chinese:
    lexicon = load_lexicon(language)
    return English(lexicon) if language == "en" else Chinese(lexicon)


def phrase_seed(seed: int, key: str, number: int, phrase: str) -> int:
    """A seed that depends on the sample and the phrase only, never on order or on the number of workers."""
    digest = hashlib.blake2b(f"{seed}\0{key}\0{number}\0{phrase}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def outcomes(generator: Generator, requests: Sequence[Request]) -> list[Outcome]:
    """All outcomes in the order of the requests."""
    found: dict[int, Outcome] = {}
    generator.generate(requests, found.__setitem__)
    return [found[number] for number in range(len(requests))]
