"""Chinese phrases: where their attributes are, and how a changed one is written (classifiers, 两, short forms)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_tools.negatives.lexicon import Lexicon, Meaning, longest_match_table
from data_tools.negatives.parsed import Items, Parsed, Slot

NOISE = re.compile(r"[\s，。、；：！？,.;:!?“”\"'（）()]")
RELATION_REACH = 14  # characters between 在 and its 上; assumption: longer ones belong to another clause


class Chinese:
    """Parser and writer of Chinese phrases. A token is one character."""

    def __init__(self, lexicon: Lexicon) -> None:
        data = lexicon.data
        self.lexicon = lexicon
        self.table = longest_match_table(lexicon, tuple)
        self.numbers: list[str] = data["count"]["numbers"]
        same = data["count"]["same"]
        self.counts = {word: str(number) for number, word in enumerate(self.numbers, start=1)}
        self.counts |= {word: self.counts[value] for word, value in same.items()}
        self.counts |= {word: "several" for word in data["count"]["several"]}
        self.several: str = data["count"]["several"][0]
        classifiers = "".join(dict.fromkeys(data["count"]["classifiers"]))
        words = "|".join(sorted(self.counts, key=len, reverse=True))
        self.count_pattern = re.compile(rf"({words})(?=[{classifiers}])")
        self.not_before = tuple(data["count"]["not_before"])
        self.before_bare = frozenset(data["before_bare"])
        self.tails = frozenset(data["tails"]) | frozenset(data["stops"])
        self.stops = frozenset(data["stops"])
        self.pronouns = tuple(data["pronouns"])

    def parse(self, text: str) -> Parsed:
        slots = sorted([*self._counts(text), *self._slots(text)], key=lambda slot: slot.start)
        items: list[str | tuple[str, str, str]] = []
        kept: list[Slot] = []
        position = 0
        for slot in slots:
            if slot.start < position:
                continue
            items += NOISE.sub("", text[position : slot.start])
            items.append(slot.item)
            kept.append(slot)
            position = slot.end
        items += NOISE.sub("", text[position:])
        return Parsed(text, tuple(kept), tuple(items), ())

    def items(self, text: str) -> Items:
        """``parse(text).items`` alone."""
        return self.parse(text).items

    def head(self, parsed: Parsed) -> str:
        """Always "": a Chinese noun is never an attribute here, so every noun is kept, the object's with them."""
        return ""

    def _counts(self, text: str) -> Iterator[Slot]:
        for match in self.count_pattern.finditer(text):
            if text[: match.start()].endswith(self.not_before) or text[match.end() - 1 : match.end() + 1] == "一面":
                continue
            if match[0] == "一" and text[match.end() + 1 : match.end() + 2] == text[match.end()]:
                continue  # 一个个: one after another
            yield Slot(match.start(), match.end(), "count", None, self.counts[match[0]])

    def _slots(self, text: str) -> Iterator[Slot]:
        position = 0
        while position < len(text):
            end = position + 1
            entries = self.table.get(text[position])
            for length, meanings in entries.match(text, position) if entries is not None else ():
                stop = position + length
                if not meanings:
                    end = stop
                    break
                meaning = next((m for m in meanings if self._counts_here(m, text, position, stop)), None)
                if meaning is not None:
                    group, end = meaning.group, stop
                    yield Slot(position, end, group.attribute, group, meaning.value, meaning.form, meaning.prefix)
                    break
            position = end

    def _counts_here(self, meaning: Meaning, text: str, start: int, end: int) -> bool:
        rules = meaning.group.rules
        following = text[end : end + 1]
        if meaning.after and following not in meaning.after or (meaning.after and not following):
            return False
        if following and following in rules.get("not_followed_by", ""):
            return False
        one_character = end - start == 1
        if rules.get("bare") and (one_character or meaning.form == 1) and not self._bare_fits(text, start, end):
            return False
        if "before" in rules and not text[:start].endswith(tuple(rules["before"])):
            return False
        if rules.get("tail") and not self._is_place(text, start, end):
            return False
        if meaning.form == 1 and "short_next" in rules and not text.startswith(tuple(rules["short_next"]), end):
            return False
        if meaning.ambiguous:  # 玻璃, 条纹, 圆: an attribute only in front of a noun or of 的
            if not following or following in self.stops or following in "上下里旁边后前中是在有":
                return False
            if one_character and not self._bare_fits(text, start, end):
                return False
        if meaning.group.name == "eating" and one_character:
            return start == 0 or text[start - 1] in "在着正人孩子女男熊马牛羊猫狗象"
        return True

    def _bare_fits(self, text: str, start: int, end: int) -> bool:
        following = text[end : end + 1]
        if not following or following in self.stops:
            return False
        return start == 0 or text[start - 1] in self.before_bare or text[start - 1] in "大小黑白红黄蓝绿很"

    def _is_place(self, text: str, start: int, end: int) -> bool:
        """Whether 上, 里 and the like close a place that 在 opened, or that the phrase begins with."""
        following = text[end : end + 1]
        if following and following not in self.tails:
            return False
        clause = text[max(0, start - RELATION_REACH) : start]
        for stop in self.stops - {"、"}:
            clause = clause.rpartition(stop)[2]
        opened = clause.rpartition("在")
        return bool(opened[1]) and len(opened[2]) > 0

    # Writing

    def replace(self, parsed: Parsed, slot: Slot, words: str) -> str:
        """The phrase with ``slot`` written as ``words``."""
        return parsed.text[: slot.start] + words + parsed.text[slot.end :]

    def recount(self, parsed: Parsed, slot: Slot | None, number: int | str) -> str | None:
        """The phrase with another number before the classifier; None where a pronoun depends on the number."""
        if slot is None or any(word in parsed.text for word in self.pronouns):
            return None
        return self.replace(parsed, slot, self.numbers[number - 1] if isinstance(number, int) else self.several)
