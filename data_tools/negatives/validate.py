"""Validators of negatives, the same for every generator.

A candidate must differ from its phrase in attributes only, by values that are not synonyms or neighbours of the true
ones; it must differ from the other candidates, and no phrase that is true in the image may imply it.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable

from data_tools.negatives.chinese import Chinese
from data_tools.negatives.english import English
from data_tools.negatives.interface import grammar
from data_tools.negatives.parsed import Items, values_of

# Function words that may come and go with an attribute: "made of wood" and "wooden"; 的, 着.
FREE_WORDS = frozenset(
    {"of", "in", "the", "made", "out", "color", "colour", "colored", "coloured", "-", "的", "着", "色"}
)
MAX_LENGTH_RATIO = 1.8  # assumption: attributes are a word or two, so more growth means more was rewritten
LENGTH_SLACK = 14  # characters; a short phrase may grow by one long attribute


def length_fits(phrase: str, text: str) -> bool:
    """Whether ``text`` has about the length of the phrase that it alters."""
    longest = max(MAX_LENGTH_RATIO * len(phrase), len(phrase) + LENGTH_SLACK)
    return bool(text.strip()) and len(phrase) / MAX_LENGTH_RATIO - LENGTH_SLACK <= len(text) <= longest


class Validator:
    """Judges candidates for one phrase. Accepted ones are remembered, so a second equal one is refused."""

    def __init__(self, language: str, phrase: str, true_phrases: Iterable[str] = ()) -> None:
        self.grammar: English | Chinese = grammar(language)
        self.positive = self.grammar.parse(phrase)
        self.head = self.grammar.head(self.positive)
        # "a mug" says one mug, so "two mugs" changes its number though it adds a word
        self.implies_one = bool(self.positive.tokens) and self.positive.tokens[0][0] in {"a", "an"}
        self.truths = [values_of(self.positive.items)]
        self.truths += [_values(language, text) for text in true_phrases if text != phrase]
        self._seen = {self.positive.items}

    def problem(self, text: str) -> str | None:
        """Why ``text`` is no negative of the phrase, as a short name to count under; None accepts and remembers it."""
        if not length_fits(self.positive.text, text):
            return "length"
        if "\n" in text:
            return "not_one_line"
        items = self.grammar.items(text)
        if items == self.positive.items:
            return "same_as_phrase"
        if items in self._seen:
            return "repeated"
        problem = self._changes(items)
        if problem is None and any(implied(values_of(items), truth) for truth in self.truths):
            problem = "true_in_image"
        if problem is None:
            self._seen.add(items)
        return problem

    def changed_attributes(self, text: str) -> tuple[str, ...]:
        """Names of the attributes in which an accepted candidate differs, in the order of the phrase."""
        names = []
        for mine, others in _differences(self.positive.items, self.grammar.items(text)):
            slots = [item for item in mine if not isinstance(item, str)]
            slots = slots or [item for item in others if not isinstance(item, str)]
            names += [slot[0].partition(".")[0] for slot in slots]
        return tuple(dict.fromkeys(names)) or ("other",)

    def _changes(self, items: Items) -> str | None:
        changed = False
        for mine, others in _differences(self.positive.items, items):
            problem = self._change(mine, others)
            if problem:
                return problem
            changed = changed or any(not isinstance(item, str) for item in mine + others)
        return None if changed else "nothing_changed"

    def _change(self, mine: tuple, others: tuple) -> str | None:
        """Whether one stretch of the phrase may be replaced by one of the candidate."""
        words = [item for item in mine if isinstance(item, str) and item not in FREE_WORDS]
        if any(word == self.head for word in words):
            return "object_changed"
        if words:
            return "more_than_attributes"
        true_slots = [item for item in mine if not isinstance(item, str)]
        new_slots = [item for item in others if not isinstance(item, str)]
        new_words = [item for item in others if isinstance(item, str) and item not in FREE_WORDS]
        if not true_slots:  # something was added
            counted = [slot[0] for slot in new_slots] == ["count"] and self.implies_one and new_slots[0][1] != "1"
            return "added_words" if new_words or (new_slots and not counted) else None
        if not new_slots and not new_words:
            return "attribute_removed"
        kinds = {slot[0].partition(".")[0] for slot in true_slots}
        for slot in new_slots:
            if slot[0].partition(".")[0] not in kinds:
                return "other_attribute"
        if len(new_words) > 3 * len(true_slots):
            return "more_than_attributes"
        for true, new in zip(true_slots, new_slots, strict=False):
            if true != new and self._near(true, new):
                return "synonym"
        return None

    def _near(self, true: tuple[str, str, str], new: tuple[str, str, str]) -> bool:
        if true[1] == new[1]:
            return True
        if true[0].startswith("count"):
            return "several" in (true[1], new[1]) and max(int(v) for v in (true[1], new[1]) if v != "several") > 2
        groups = (slot.group for slot in self.positive.slots if slot.group is not None)
        group = next((group for group in groups if group.key == true[0]), None)
        return group is not None and true[0] == new[0] and new[1] in group.near.get(true[1], ())


@functools.lru_cache(maxsize=4096)
def _values(language: str, text: str) -> tuple:
    """The values of a true phrase; the phrases of one image are looked at once for each of its regions."""
    return values_of(grammar(language).items(text))


def _differences(mine: Items, others: Items) -> list[tuple[Items, Items]]:
    """Stretches of items that were replaced, as (of the phrase, of the candidate)."""
    if len(mine) == len(others):
        pairs = [(a, b) for a, b in zip(mine, others, strict=True) if a != b]
        # Item by item, if only slots of one attribute changed: the usual case, and no search is needed.
        if all(not isinstance(a, str) and not isinstance(b, str) for a, b in pairs):
            return [((a,), (b,)) for a, b in pairs]
    matcher = difflib.SequenceMatcher(None, mine, others, autojunk=False)
    return [(mine[a:b], others[c:d]) for tag, a, b, c, d in matcher.get_opcodes() if tag != "equal"]


def implied(values: tuple, truth: tuple) -> bool:
    """Whether a phrase holds wherever ``truth`` does: its values are among those of ``truth``, in the same order."""
    if len(values) > len(truth):
        return False
    rest = iter(truth)
    return all(any(value == other for other in rest) for value in values)
