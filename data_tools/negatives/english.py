"""English phrases: where their attributes are, and how a changed one is written (articles, plurals, capitals)."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from data_tools.negatives.lexicon import Lexicon, Meaning, longest_match_table
from data_tools.negatives.parsed import Items, Parsed, Slot

TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+|[^\w\s]")
ARTICLES = frozenset({"a", "an", "the"})
DETERMINERS = ARTICLES | {
    "this",
    "that",
    "his",
    "her",
    "their",
    "its",
    "some",
    "each",
    "another",
    "two",
    "three",
    "one",
}
JOINERS = frozenset({"and", "or", ",", "/", "-", "&"})
MATERIAL_BEFORE = frozenset({"from", "in"})
# A verb or pronoun that agrees in number: counting its subject anew would break the sentence.
AGREEMENT = frozenset("is are was were has have its his her their it they he she itself that's who's each".split())
HAVING = frozenset({"with", "featuring", "having", "has"})  # what a part stands behind
CONSONANT_LETTERS = frozenset("bcdfghjklmnpqrstvwxyz")


class English:
    """Parser and writer of English phrases."""

    def __init__(self, lexicon: Lexicon) -> None:
        data = lexicon.data
        self.lexicon = lexicon
        self.table = longest_match_table(lexicon, lambda text: tuple(TOKEN.findall(text.lower())))
        self.words = {name: frozenset(words) for name, words in data["words"].items()}
        self.boundaries = frozenset(data["boundaries"])
        self.measures = frozenset(data["measures"])
        self.not_verbs = frozenset(data["not_verbs"])
        self.numbers: list[str] = data["count"]["numbers"]
        self.counts = {word: str(number) for number, word in enumerate(self.numbers, start=1)}
        self.counts |= {word: "several" for word in data["count"]["several"]}
        self.plurals: dict[str, str] = data["plurals"]
        self.singulars = {plural: word for word, plural in self.plurals.items() if plural != word}
        self.uncountable = frozenset(data["uncountable"])
        self.vowel_sound = frozenset(word.lower() for word in data["vowel_sound"])
        self.consonant_sound = frozenset(data["consonant_sound"])
        self.lemma = functools.lru_cache(maxsize=65536)(self._lemma)

    def parse(self, text: str) -> Parsed:
        tokens = tuple((match[0], *match.span()) for match in TOKEN.finditer(_lowered(text)))
        words = [token[0] for token in tokens]
        slots = []
        for start, end, meaning, count in self._found(words):
            span = tokens[start][1], tokens[end - 1][2]
            if meaning is None:
                slots.append(Slot(*span, "count", None, count, 0, "", start, end))
            else:
                group = meaning.group
                slots.append(
                    Slot(*span, group.attribute, group, meaning.value, meaning.form, meaning.prefix, start, end)
                )
        return Parsed(
            text, tuple(slots), self._items(words, {slot.token: (slot.token_end, slot.item) for slot in slots}), tokens
        )

    def items(self, text: str) -> Items:
        """``parse(text).items`` alone, which is all that a candidate is judged by."""
        words = TOKEN.findall(_lowered(text))
        found: dict[int, tuple[int, tuple[str, str, str]]] = {}
        for start, end, meaning, count in self._found(words):
            item = ("count", count, "") if meaning is None else (meaning.group.key, meaning.value, meaning.prefix)
            found[start] = end, item
        return self._items(words, found)

    def _items(self, words: list[str], found: dict[int, tuple[int, tuple[str, str, str]]]) -> Items:
        items: list[str | tuple[str, str, str]] = []
        position = 0
        while position < len(words):
            if position in found:
                position, item = found[position]
                items.append(item)
                continue
            word = words[position]
            if word not in ARTICLES and (word.isalnum() or len(word) > 1):
                items.append(self.lemma(word))
            position += 1
        return tuple(items)

    def _found(self, words: list[str]) -> Iterator[tuple[int, int, Meaning | None, str]]:
        """Attributes as (first token, token after the last, meaning, ""), and counts as (…, None, number)."""
        matches: list[tuple[int, int, list[Meaning]]] = []
        position = 0
        while position < len(words):
            entries = self.table.get(words[position])
            length = 1
            if entries is not None:
                length, meanings = next(entries.match(words, position), (1, None))
                if meanings is not None:
                    matches.append((position, position + length, meanings))
            position += length
        taken = {start: end for start, end, meanings in matches if meanings}
        things = {start for start, _, meanings in matches if any(meaning.thing for meaning in meanings)}
        for start, end, meanings in matches:
            for meaning in meanings:
                if self._counts_here(meaning, words, start, end, taken, things):
                    yield start, end, meaning, ""
                    break
        for place, word in enumerate(words):
            if word not in self.counts or not self._is_count(words, place):
                continue
            if not any(start <= place < end for start, end, _ in matches):
                yield place, place + 1, None, self.counts[word]

    def _counts_here(
        self, meaning: Meaning, words: list[str], start: int, end: int, taken: dict[int, int], things: set[int]
    ) -> bool:
        rules = meaning.group.rules
        following = words[end] if end < len(words) else ""
        if "next" in rules:
            place = end
            while place in taken and place not in things:
                place = taken[place]
            # The noun may be the second word of a compound: "an empty coffee cup".
            if not any(word in self.words[rules["next"]] for word in words[place : place + 2]):
                return False
        if "part" in rules:
            ends = not following.isalpha() or following in self.boundaries
            return ends and following != "-" and not HAVING.isdisjoint(words[:start])
        if rules.get("relation") and not (following in DETERMINERS or following in self.counts):
            return False
        if meaning.form == 1 and meaning.group.name == "posture":  # "sits": the finite form, and never a noun
            return start > 0 and words[start - 1] in {"that", "who", "which"}
        if not meaning.ambiguous or following == "-":
            return True
        return self._before_noun(words, end, taken, things) or self._after_of(
            words, start, taken, meaning.group.attribute
        )

    def _before_noun(self, words: list[str], end: int, taken: dict[int, int], things: set[int]) -> bool:
        """Whether a noun follows, directly or after other attributes."""
        place, thing = end, -1
        while place < len(words) and (words[place] in JOINERS or place in taken):
            if place in things:
                thing = place
            place = taken.get(place, place + 1)
        if place < len(words) and words[place].isalpha() and words[place] not in self.boundaries:
            return words[place] not in ARTICLES and (place == end or words[place - 1] not in {",", "and"})
        # "a black glass": the last attribute may be the thing itself, unless it only stands beside: "red and black".
        return thing >= 0 and words[thing - 1] not in JOINERS

    def _after_of(self, words: list[str], start: int, taken: dict[int, int], attribute: str) -> bool:
        """Whether "made of", "in" and the like come before, directly or before other attributes."""
        before = start - 1
        while before >= 0 and (words[before] in JOINERS or before in taken or words[before] in {"a", "an"}):
            before -= 1
        if before < 0:
            return False
        article = words[before + 1] in {"a", "an"}
        if words[before] == "of":
            return (
                before > 0 and words[before - 1] not in self.measures and (not article or words[before - 1] == "made")
            )
        if article:
            return False
        return words[before] in MATERIAL_BEFORE or (attribute == "color" and words[before] in {"is", "are", "painted"})

    def _is_count(self, words: list[str], place: int) -> bool:
        following = words[place + 1] if place + 1 < len(words) else ""
        if not following.isalpha() or following in self.boundaries:
            return False
        return place == 0 or words[place - 1] not in {"a", "an", "the", "these", "those", "-", "one"}

    def head(self, parsed: Parsed) -> str:
        """The object that the phrase is about, in the singular: the last word of its first noun; "" without one."""
        words = [token[0] for token in parsed.tokens]
        found = {slot.token: slot for slot in parsed.slots}
        head, position = -1, 0
        while position < len(words):
            if position in found:
                if head >= 0 and found[position].attribute in {"action", "position"}:
                    break
                position = found[position].token_end
                continue
            word = words[position]
            if not word[0].isalpha():
                if word not in {"-", "'", '"'} and head >= 0:
                    break
            elif word in self.boundaries or self._is_verb(word):
                if head >= 0:
                    break
            elif word not in DETERMINERS:
                head = position
            position += 1
        return self.lemma(words[head]) if head >= 0 else ""

    def _is_verb(self, word: str) -> bool:
        return (word.endswith("ing") or word.endswith("ed")) and len(word) > 4 and word not in self.not_verbs

    # Writing

    def replace(self, parsed: Parsed, slot: Slot, words: str) -> str:
        """The phrase with ``slot`` written as ``words``; article and capital follow."""
        text, start = parsed.text, slot.start
        before = slot.token - 1
        if before >= 0 and parsed.tokens[before][0] in {"a", "an"}:
            _, article_start, article_end = parsed.tokens[before]
            article = text[article_start] + ("n" if self.sounds_like_vowel(words) else "")
            return text[:article_start] + article + text[article_end:start] + words + text[slot.end :]
        if text[start].isupper() and start == parsed.tokens[0][1]:
            words = words[0].upper() + words[1:]
        return text[:start] + words + text[slot.end :]

    def sounds_like_vowel(self, words: str) -> bool:
        first = TOKEN.findall(words.lower())[0]
        return first in self.vowel_sound or (first[0] in "aeiou" and first not in self.consonant_sound)

    def recount(self, parsed: Parsed, slot: Slot | None, number: int | str) -> str | None:
        """The phrase with another number of its object; ``slot`` None: its article "a" or "an" is the number one.

        None where that cannot be written without touching more of the sentence.
        """
        words = [token[0] for token in parsed.tokens]
        if AGREEMENT & set(words) or (slot is None and number == 1):
            return None
        place = slot.token if slot is not None else 0
        noun = self._counted_noun(parsed, place)
        if noun is None:
            return None
        text, (word, noun_start, noun_end) = parsed.text, parsed.tokens[noun]
        singular_before = slot is None or slot.value == "1"
        if singular_before != (number == 1):
            if number == 1 and self.lemma(word) == word and word not in self.plurals.values():
                return None  # not a plural that can be undone
            if number != 1 and self.lemma(word) != word:
                return None  # in the plural already, or a verb: "a man surfs"
            written = self.lemma(word) if number == 1 else self.pluralise(word)
        else:
            written = text[noun_start:noun_end]
        _, start, end = parsed.tokens[place]
        count = self.numbers[number - 1] if isinstance(number, int) else number
        if text[start].isupper():
            count = count.capitalize()
        return text[:start] + count + text[end:noun_start] + written + text[noun_end:]

    def _counted_noun(self, parsed: Parsed, place: int) -> int | None:
        slots = {slot.token: slot for slot in parsed.slots}
        noun, position = None, place + 1
        while position < len(parsed.tokens):
            slot = slots.get(position)
            word = parsed.tokens[position][0]
            if slot is not None and slot.attribute not in {"action", "position"}:
                position = slot.token_end
                continue
            if slot is not None or not word[0].isalpha() or word in self.boundaries or self._is_verb(word):
                break
            noun = position
            position += 1
        if noun is None or parsed.tokens[noun][0] in self.uncountable or not parsed.tokens[noun][0].isalpha():
            return None
        return noun

    def pluralise(self, word: str) -> str:
        if word in self.plurals:
            return self.plurals[word]
        if word.endswith(("s", "x", "z", "ch", "sh")):
            return word + "es"
        if word.endswith("y") and word[-2:-1] in CONSONANT_LETTERS:
            return word[:-1] + "ies"
        if word.endswith("o") and word[-2:-1] in CONSONANT_LETTERS:
            return word + "es"
        return word + "s"

    def _lemma(self, word: str) -> str:
        """The singular of a noun by its spelling, word or not: the same for both numbers."""
        if word in self.singulars:
            return self.singulars[word]
        if len(word) < 3 or word.endswith(("ss", "us", "is", "'s")) or not word.endswith("s"):
            return word
        if word.endswith("ies") and len(word) > 4:
            return word[:-3] + "y"
        if word.endswith(("xes", "zes", "ches", "shes", "sses", "oes", "uses")):
            return word[:-2]
        return word[:-1]


def _lowered(text: str) -> str:
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    # A few capitals grow when lowered, which would shift every span behind them.
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)
