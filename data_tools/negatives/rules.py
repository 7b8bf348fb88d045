"""Negatives by rule: one attribute of the phrase is replaced by another value of its group in the lexicon.

Needs nothing but the lexicons. The choice goes round the attributes of the phrase, so that each is changed about as
often as the others; two are changed at a time only where single changes do not make enough.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_tools.negatives.interface import Negative, Outcome, Request, grammar
from data_tools.negatives.lexicon import has_lexicon, load_lexicon
from data_tools.negatives.parsed import Parsed, Slot
from data_tools.negatives.validate import Validator
from pipeline.base.constants import LANGUAGES
from pipeline.base.languages import primary

VERSION = 1
SMALL_NUMBERS = 5
MAX_PAIRS = 40  # double changes tried; assumption: if so many fail, the rest fail too


class RuleGenerator:
    """The rule-based `Generator`: equal requests, equal outcomes."""

    batch_size, costs = 1, False

    def describe(self) -> dict[str, Any]:
        lexicons = {language: load_lexicon(language).version for language in LANGUAGES}
        return {"generator": "rules", "version": VERSION, "lexicons": lexicons}

    def generate(self, requests: Sequence[Request], note: Callable[[int, Outcome], None]) -> None:
        for number, request in enumerate(requests):
            note(number, self.one(request))

    def one(self, request: Request) -> Outcome:
        outcome = Outcome()
        if not has_lexicon(request.language):
            outcome.reason = f"no_lexicon_{request.language}"
            return outcome
        validator = Validator(request.language, request.phrase, request.true_phrases)
        chooser = random.Random(request.seed)
        changes = Changes(validator.positive, request.language, chooser)
        for text, attributes in changes:
            problem = validator.problem(text)
            if problem:
                outcome.rejected[problem] += 1
                continue
            outcome.negatives.append(Negative(text, attributes))
            if len(outcome.negatives) == request.wanted:
                return outcome
        outcome.reason = "few_alternatives" if changes.num_slots else "no_attribute"
        return outcome


class Changes:
    """All changed forms of a phrase as (text, changed attributes): single ones first, then pairs."""

    def __init__(self, parsed: Parsed, language: str, chooser: random.Random) -> None:
        self.parsed, self.language, self.chooser = parsed, language, chooser
        self.grammar = grammar(language)
        self.slots = [slot for slot in parsed.slots if self._changeable(slot)]
        self.num_slots = len(self.slots)
        # What the phrase already says of some other part is left out: "a black and black dog" says nothing.
        self.present = {(slot.attribute, slot.value) for slot in parsed.slots}

    def _changeable(self, slot: Slot) -> bool:
        return slot.group is None or bool(slot.group.options.get(slot.value))

    def __iter__(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield from self._round([slot for slot in self.slots if slot.attribute != "part"])
        yield from self._implied()
        # Parts come late: what the phrase does not name, the object may have all the same.
        yield from self._round([slot for slot in self.slots if slot.attribute == "part"])
        yield from self._pairs()

    def _round(self, slots: list[Slot]) -> Iterator[tuple[str, tuple[str, ...]]]:
        counted = [slot for slot in slots if slot.group is None]
        sources = [(slot, self._texts(slot)) for slot in slots if slot.group is not None]
        if counted:  # all counts share one turn: nearly every noun of a caption has one
            sources.append((counted[0], self._all_counts(counted)))
        self.chooser.shuffle(sources)
        while sources:
            left = []
            for slot, texts in sources:
                text = next(texts, None)
                if text is not None:
                    yield text, (slot.attribute,)
                    left.append((slot, texts))
            sources = left

    def _texts(self, slot: Slot) -> Iterator[str]:
        for words in self._words(slot):
            yield self.grammar.replace(self.parsed, slot, words)

    def _words(self, slot: Slot) -> Iterator[str]:
        options = slot.group.options[slot.value] if slot.group is not None else []
        for option in self.chooser.sample(options, len(options)):
            if (slot.attribute, option.name) not in self.present:
                yield option.form(slot.form)

    def _all_counts(self, slots: list[Slot]) -> Iterator[str]:
        sources = [self._counts(slot) for slot in slots]
        while sources:
            texts = [(source, next(source, None)) for source in sources]
            sources = [source for source, text in texts if text is not None]
            yield from (text for _, text in texts if text is not None)

    def _counts(self, slot: Slot | None) -> Iterator[str]:
        """Small numbers first: they are what a picture shows, and the harder to tell from the true one."""
        written = self.grammar.lexicon.data["count"]["written"]
        small = self.chooser.sample(written[:SMALL_NUMBERS], SMALL_NUMBERS)
        for number in [*small, *written[SMALL_NUMBERS:]]:
            if slot is not None and str(number) == slot.value:
                continue
            text = self.grammar.recount(self.parsed, slot, number)
            if text is not None:
                yield text

    def _implied(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Changes of what the phrase says without a word of its own: the one of "a dog"."""
        if primary(self.language) != "en" or not self.parsed.tokens:
            return
        if self.parsed.tokens[0][0] in {"a", "an"}:
            for text in self._counts(None):
                yield text, ("count",)

    def _pairs(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Two attributes changed: the later one first, so that the earlier one's place in the text stays."""
        slots = sorted((slot for slot in self.slots if slot.group is not None), key=lambda slot: slot.start)
        pairs = [(a, b) for i, a in enumerate(slots) for b in slots[i + 1 :]]
        if not pairs:
            return
        for _ in range(MAX_PAIRS):
            first, second = self.chooser.choice(pairs)
            later, earlier = next(self._words(second), None), next(self._words(first), None)
            if later is None or earlier is None:
                continue
            changed = self.grammar.parse(self.grammar.replace(self.parsed, second, later))
            same = next((slot for slot in changed.slots if slot.start == first.start and slot.end == first.end), None)
            if same is not None:
                text = self.grammar.replace(changed, same, earlier)
                yield text, tuple(dict.fromkeys((first.attribute, second.attribute)))
