"""English referring expressions: noun phrases with what is attached to them, by patterns over parts of speech.

The tags are those of TextBlob's pattern tagger, which needs no downloaded model; attribute words are recognised by the
lexicon of the negatives. Each word becomes one letter, and the patterns below are regular expressions over the letters:

D determiner, C number, J adjective or attribute, N noun, E past participle, G -ing form, V finite verb, P preposition,
R adverb or particle, W relative pronoun, A and/or, M comma, H hyphen, X anything that ends a phrase.
"""

from __future__ import annotations

import re

from textblob.en import tag

from data_tools.negatives.english import TOKEN
from data_tools.negatives.interface import grammar
from data_tools.phrases.interface import Phrase, words

LETTERS = {
    "DT": "D", "PRP$": "D", "PDT": "D", "CD": "C", "JJ": "J", "JJR": "J", "JJS": "J", "NN": "N", "NNS": "N",
    "NNP": "N", "NNPS": "N", "FW": "N", "VBN": "E", "VBG": "G", "VBZ": "V", "VBP": "V", "VBD": "V", "VB": "V",
    "MD": "V", "IN": "P", "TO": "P", "RB": "R", "RBR": "R", "RP": "R", "WDT": "W", "WP": "W", "WRB": "W", "CC": "A",
}  # fmt: skip
PUNCTUATION = {",": "M", "-": "H", "–": "H", "'": "H", '"': "H", "/": "H", "&": "A"}
ATTRIBUTES = frozenset({"color", "material", "pattern", "transparency", "size", "shape", "state"})
SENTENCE_END = re.compile(r"[.!?;:\n]+")

_MODIFIER = r"(?:R*[JEC](?:H[JENG])*(?:(?:MA|M|A)(?=R*[JEC])|[MA](?=N))?)"
_NOUNS = r"N(?:H?[NC]|E(?=N))*(?:HN)*"
# An -ing form is a modifier only after a determiner: "a serving tray", but not "holding hands".
NOUN_PHRASE = rf"(?:D{{1,2}}C?(?:G(?=[JN]))?|C)?(?:{_MODIFIER}|N(?=[J]))*{_NOUNS}"
_LIST = rf"{NOUN_PHRASE}(?:(?:MA|M|A)(?:P)?{NOUN_PHRASE}(?!R*V))*"
_ADJECTIVES = r"J+(?:(?:MA|M|A)J+)*(?!N)"
_PLACE = rf"R*P(?:P|R)*(?:{_LIST}|{_ADJECTIVES})"
_ING = rf"G(?:R|E|J)*(?:{_LIST})?"
_PARTICIPLE = rf"E(?:R|{_ADJECTIVES})*"
_ADJECTIVE = r"J(?=P)"  # "full of", "similar to": an adjective behind its noun
_SAID = rf"V+(?:R|{_ADJECTIVES}|G|E)*(?:AR*[JE](?!N))*(?:{_LIST})?"
_RELATIVE = rf"(?:P?WN?(?:{_SAID}|D?{_NOUNS}V(?:{_LIST})?)|AV+(?=[EGP]))"
ATTACHED = rf"(?:(?:MA|M|A)?(?:{_PLACE}|{_ING}(?:{_PLACE})?|{_PARTICIPLE}|{_RELATIVE}|{_ADJECTIVE}|R(?=[GEPM])))"
BASE = re.compile(NOUN_PHRASE)
CLAUSES = re.compile(rf"{ATTACHED}*")


class EnglishPhrases:
    """Finds the referring expressions of English captions."""

    def __init__(self) -> None:
        data = words("en")
        self.not_objects = frozenset(data["not_objects"])
        self.classes: dict[str, str] = data["classes"]
        self.prepositions = sorted((tuple(text.split()) for text in data["prepositions"]), key=len, reverse=True)
        self.grammar = grammar("en")
        materials = self.grammar.lexicon.surfaces.items()
        self.materials = {word for word, found in materials if any(m.group.attribute == "material" for m in found)}

    def find(self, caption: str) -> list[Phrase]:
        found, start = [], 0
        for end in [*(match.start() for match in SENTENCE_END.finditer(caption)), len(caption)]:
            found += self._in_sentence(caption[start:end], start)
            start = end + 1
        return found

    def _in_sentence(self, sentence: str, offset: int) -> list[Phrase]:
        tokens = [(match[0], *match.span()) for match in TOKEN.finditer(sentence)]
        if not tokens:
            return []
        letters, places = self._letters(sentence, tokens)
        found, position = [], 0
        while (base := BASE.search(letters, position)) is not None:
            position = base.end()
            first, last = places[base.start()][0], places[base.end() - 1][1]
            if not self._names_object(tokens, letters[base.start() : base.end()], first, last):
                continue
            clauses = CLAUSES.match(letters, base.end())
            end = clauses.end() if clauses is not None else base.end()
            if end == base.end() and base.end() - base.start() == 1:
                continue  # one bare noun refers to nothing in particular
            spans = tokens[first][1], tokens[last][2], tokens[places[end - 1][1]][2]
            found.append(
                Phrase(
                    sentence[spans[0] : spans[2]], offset + spans[0], offset + spans[2],
                    sentence[spans[0] : spans[1]], offset + spans[0], offset + spans[1],
                )
            )  # fmt: skip
        return found

    def _names_object(self, tokens: list[tuple[str, int, int]], letters: str, first: int, last: int) -> bool:
        head = tokens[last][0].lower()
        return head not in self.not_objects and len(head) > 1 and "N" in letters

    def _letters(self, sentence: str, tokens: list[tuple[str, int, int]]) -> tuple[str, list[tuple[int, int]]]:
        """One letter a word or fixed group of words, and the (first, last) token of each letter."""
        lower = [token[0].lower() for token in tokens]
        tags = tag(" ".join(token[0] for token in tokens), tokenize=False)
        if len(tags) == len(tokens):
            letters = [LETTERS.get(name, "X") for _, name in tags]
        else:  # the tagger drops signs it does not know
            by_word = dict(tags)
            letters = [LETTERS.get(by_word.get(token[0], ""), "X") for token in tokens]
        for slot in self.grammar.parse(sentence).slots:
            if slot.attribute in ATTRIBUTES:
                letters[slot.token : slot.token_end] = "J" * (slot.token_end - slot.token)
        for number, word in enumerate(lower):
            if word in PUNCTUATION:
                letters[number] = PUNCTUATION[word]
            elif word in self.classes and letters[number] != "J":
                letters[number] = self.classes[word]
            elif word.endswith("ed") and letters[number] == "V":
                letters[number] = "E"
            elif not word[0].isalnum():
                letters[number] = "X"
            elif letters[number] == "X" and word.isalpha():
                letters[number] = "N"
        self._correct(lower, letters)
        return self._grouped(lower, letters)

    def _correct(self, lower: list[str], letters: list[str]) -> None:
        """Nouns that the tagger, which sees few captions, takes for verbs, and attributes that are the noun itself."""
        for number, letter in enumerate(letters):
            before = letters[number - 1] if number else ""
            after = letters[number + 1] if number + 1 < len(letters) else ""
            if letter == "V" and (before in {"D", "J", "H"} or after == "H") and self.classes.get(lower[number]) != "V":
                letters[number] = "N"
            elif letter == "G" and before in {"D", "J"} and after not in {"J", "N", "D", "H"}:
                letters[number] = "N"
        for number, letter in enumerate(letters):
            after = letters[number + 1] if number + 1 < len(letters) else ""
            if (
                letter != "J"
                or after in {"J", "N", "H"}
                or (after in {"A", "M"} and letters[number + 2 :][:1] == ["J"])
            ):
                continue
            start = number
            while start and letters[start - 1] in {"J", "C", "A", "M"}:
                start -= 1
            opened = letters[start - 1] if start else ""
            if opened == "D" or (opened == "P" and lower[number] in self.materials):
                letters[number] = "N"  # "a glass", "made of white metal"

    def _grouped(self, lower: list[str], letters: list[str]) -> tuple[str, list[tuple[int, int]]]:
        joined, places, position = [], [], 0
        while position < len(lower):
            size = next((len(p) for p in self.prepositions if tuple(lower[position : position + len(p)]) == p), 0)
            joined.append("P" if size else letters[position])
            places.append((position, position + max(size, 1) - 1))
            position += max(size, 1)
        return "".join(joined), places
