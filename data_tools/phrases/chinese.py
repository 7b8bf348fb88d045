"""Chinese referring expressions, by patterns over the parts of speech that rjieba (jieba's dictionary) gives.

Attributes and relative clauses stand before a Chinese noun; what the thing does or where it is follows as a predicate:
一只猫躺在沙发上. The short form of a phrase is its noun with what stands before it; the whole has the predicate too.
Each word becomes one letter:

Q number with classifier, N noun, J adjective, R adverb, V verb, P preposition, F place word, U 着 and 了, D 的,
C 和 and 、, X anything that ends a phrase.
"""

from __future__ import annotations

import re

import rjieba

from data_tools.negatives.interface import grammar
from data_tools.phrases.interface import Phrase, words

LETTERS = {
    "m": "Q", "q": "Q", "r": "Q", "n": "N", "j": "N", "l": "N", "e": "N", "o": "N", "g": "N", "i": "J", "a": "J",
    "b": "J", "z": "J", "v": "V", "p": "P", "f": "F", "s": "F", "t": "F", "d": "R", "c": "C",
}  # fmt: skip
STOPS = frozenset("，。！？；：,.!?;:\n…（）()“”\"'《》 ")
FIXED = {
    "的": "D", "地": "R", "着": "U", "了": "U", "过": "U", "、": "C", "在": "P", "正在": "P", "正": "P", "用": "P",
    "站": "V", "坐": "V", "躺": "V", "跳": "V", "骑": "V", "有": "V", "是": "V", "放着": "V", "小": "J", "大": "J",
    "男人": "N", "女人": "N", "们": "N", "狗": "N", "上": "F", "里": "F", "下": "F", "中": "F", "旁": "F", "一旁": "F",
    "又": "R", "一起": "R", "一样": "R", "一边": "R", "一直": "R", "一下": "R", "群": "Q", "只": "Q", "这只": "Q",
    "那只": "Q",
}  # fmt: skip
ATTRIBUTES = frozenset({"color", "material", "pattern", "size", "shape", "state"})
# Pronouns like 他 are no determiners; 这个 and 每个 are.
PRONOUNS = frozenset("我你他她它我们你们他们她们它们自己谁什么这里那里这儿那儿其他")

_BEFORE = r"(?:R*J+(?:C?R*J+)*D?|N+D)"
_RELATIVE = r"(?:R*J?[VP][^DX]{0,12}?D)"
_OPEN_RELATIVE = r"(?:R*V[^DXQ]{0,12}?D)"  # without a classifier to open it, it must be short of one altogether
_START = r"(?:^|(?<=X))"
NOUN_PHRASE = re.compile(
    rf"(?:Q+{_RELATIVE}?{_BEFORE}*(?:V(?=N))?|(?:{_START}|(?<=P)){_OPEN_RELATIVE}{_BEFORE}*|(?<![CNJDR]){_BEFORE}+)N+"
    rf"|{_START}N+(?=R*[VP])"
)
PREDICATE = re.compile(r"R*(?:V|P)[^X]+")


class ChinesePhrases:
    """Finds the referring expressions of Chinese captions."""

    def __init__(self) -> None:
        data = words("zh")
        self.not_objects = frozenset(data["not_objects"])
        self.no_clause = frozenset(data["no_clause"])
        self.grammar = grammar("zh")

    def find(self, caption: str) -> list[Phrase]:
        tokens, position = [], 0
        for word, name in rjieba.tag(caption):
            tokens.append((word, name, position, position + len(word)))
            position += len(word)
        if not tokens:
            return []
        letters = self._letters(caption, tokens)
        found = []
        for match in NOUN_PHRASE.finditer(letters):
            first, last = match.start(), match.end() - 1
            if tokens[last][0] in self.not_objects:
                continue
            start, short_end = tokens[first][2], tokens[last][3]
            end = short_end
            clause = PREDICATE.match(letters, match.end())
            if clause is not None and not self._other_clause(tokens[clause.start()][0]):
                end = tokens[clause.end() - 1][3]
            elif len(tokens[last][0]) > 1 and tokens[last][0][-1] in "上里下":
                end = short_end = short_end - 1  # 桌面上 is one word to jieba; the thing is 桌面
            if end == short_end and set(match[0]) == {"N"}:
                continue  # a bare noun refers to nothing in particular
            found.append(Phrase(caption[start:end], start, end, caption[start:short_end], start, short_end))
        return found

    def _other_clause(self, word: str) -> bool:
        """Whether the predicate is not about the noun: 有, 是, or a place that jieba joins with the verb (上放)."""
        return word in self.no_clause or (len(word) > 1 and word[0] in "上里下中")

    def _letters(self, caption: str, tokens: list[tuple[str, str, int, int]]) -> str:
        letters = []
        for word, name, _, _ in tokens:
            letter = FIXED.get(word) or LETTERS.get(name[:1], "N" if name not in {"x", "w"} else "X")
            if word[0] in STOPS:
                letter = "X"
            elif name.startswith("u") and word not in FIXED:
                letter = "V" if name == "uz" else "D" if word.endswith("的") else "U"
            elif name in {"vn", "an", "zg"}:
                letter = "N"
            elif letter == "Q" and word in PRONOUNS:
                letter = "X"
            elif name == "x" and word.isalnum():
                letter = "N"
            elif letter == "N" and len(word) > 1 and word.endswith("在"):
                letter = "V"  # jieba's dictionary has 坐在 as a noun
            elif letter == "N" and len(word) > 1 and word.endswith("的"):
                letter = "J"
            letters.append(letter)
        spans = [(slot.start, slot.end) for slot in self.grammar.parse(caption).slots if slot.attribute in ATTRIBUTES]
        for number, (_, _, start, end) in enumerate(tokens):
            if any(begin <= start and end <= stop for begin, stop in spans):
                letters[number] = "J"
        return "".join(letters)
