"""Attribute lexicons: YAML files of values that can stand in for one another, compiled for matching.

`load_lexicon("en")` gives a `Lexicon`: for every surface form what it means (`Meaning`), and for every meaning the
values that may replace it. The fields of the files are explained at the top of ``lexicons/en.yaml``.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, NamedTuple

import yaml

from pipeline.base.constants import LANGUAGES
from pipeline.base.languages import primary


@dataclass(frozen=True)
class Option:
    """A value as it may be written: ``forms[i]`` replaces a form ``i``; ``name`` is the value, shades left out."""

    name: str
    forms: tuple[str, ...]

    def form(self, number: int) -> str:
        return self.forms[min(number, len(self.forms) - 1)]


@dataclass
class Group:
    """Values of one attribute that can stand in for one another, and the conditions on where a word counts."""

    attribute: str
    name: str
    rules: dict[str, Any]
    options: dict[str, list[Option]] = field(default_factory=dict)  # value -> what may replace it
    near: dict[str, frozenset[str]] = field(default_factory=dict)  # value -> values that may be true beside it

    def __post_init__(self) -> None:
        self.key = f"{self.attribute}.{self.name}"


class Meaning(NamedTuple):
    """What a surface form stands for: ``value`` of ``group`` in its form number ``form``, in the shade ``prefix``."""

    group: Group
    value: str
    form: int
    prefix: str = ""
    ambiguous: bool = False  # the word is often an object by itself
    after: str = ""  # characters of which one must follow
    thing: bool = False  # what other attributes may describe: "top" in "a black top"


class Lexicon:
    """One language's lexicon. ``surfaces`` maps a lower-case surface form to its meanings, in the file's order."""

    def __init__(self, language: str, text: str) -> None:
        data = yaml.safe_load(text)
        self.language = language
        self.version = f"{language}-{data['version']}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
        self.data = data
        self.surfaces: dict[str, list[Meaning]] = {}
        self.groups: list[Group] = []
        for attribute, groups in data["attributes"].items():
            for name, rules in groups.items():
                self._add(Group(attribute, name, rules))
        self.protected = frozenset(data["protected"])

    def _add(self, group: Group) -> None:
        rules, values = group.rules, group.rules["values"]
        sets = [set(near) for near in rules.get("near", ())]
        sets += [{name, other} for name, others in rules.get("beside", {}).items() for other in others]
        vague = set(rules.get("vague", ()))
        unknown = set().union(vague, *sets) - set(values)
        if unknown:
            raise ValueError(
                f"lexicon {self.language}: {group.key} says what {sorted(unknown)} are near to, which are no values "
                "of it; add them or correct the spelling"
            )
        self.groups.append(group)
        for name in values:
            near = set().union(*(some for some in sets if name in some)) | {name} | vague
            group.near[name] = frozenset(values if name in vague else near)
        for name, value in values.items():
            options = []
            for other, rule in values.items():
                if other not in group.near[name] and rule.get("written", True):
                    options += self._written(other, rule, rules)
            group.options[name] = options
            if value.get("match", True):
                self._recognise(group, name, value)

    def _join(self, prefix: str, word: str) -> str:
        return f"{prefix} {word}" if self.language == "en" else prefix + word

    def _written(self, name: str, rule: dict, rules: dict) -> list[Option]:
        forms = tuple(rule.get("forms", [name]))
        options = [Option(name, forms)]
        if not rule.get("plain") and rule.get("shades", True):
            for prefix in rules.get("written_prefixes", ()):
                options.append(Option(name, tuple(self._join(prefix, form) for form in forms)))
        return options

    def _recognise(self, group: Group, name: str, value: dict) -> None:
        rules = group.rules
        forms = list(value.get("forms", [name]))
        # Synonyms count as the first form, the one that can stand anywhere.
        surfaces = [(form, number) for number, form in enumerate(forms)] + [(word, 0) for word in value.get("=", ())]
        for surface, number in surfaces:
            ambiguous = bool(rules.get("noun")) or surface in rules.get("nouns", ())
            after = value.get("after", rules.get("after", ""))
            thing = ambiguous or "next" in rules or "part" in rules
            prefixes = [""] if value.get("plain") else ["", *rules.get("prefixes", ())]
            for prefix in prefixes:
                meaning = Meaning(group, name, number, prefix, ambiguous, after, thing)
                for full in self._spellings(prefix, surface):
                    self.surfaces.setdefault(full.lower(), []).append(meaning)

    def _spellings(self, prefix: str, surface: str) -> list[str]:
        if not prefix:
            return [surface]
        joined = prefix + surface
        return [joined] if self.language == "zh" else [f"{prefix} {surface}", f"{prefix}-{surface}", joined]


def has_lexicon(language: str) -> bool:
    """Whether a lexicon ships for this tag, whatever its script and region."""
    return primary(language) in LANGUAGES


@functools.cache
def load_lexicon(language: str) -> Lexicon:
    """The lexicon that ships with the package.

    Raises:
        ValueError: there is none for ``language``, or its file contradicts itself.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language is {language!r}; there are lexicons for {', '.join(LANGUAGES)} alone")
    path = resources.files("data_tools.negatives").joinpath("lexicons", f"{language}.yaml")
    return Lexicon(language, path.read_text(encoding="utf-8"))


@dataclass
class Entries:
    """What may begin with one token."""

    alone: list[Meaning] | None = None  # the token by itself; None where it is not in the lexicon
    longer: dict[str, list[int]] = field(default_factory=dict)  # second token -> lengths, longest first
    meanings: dict[tuple[str, ...], list[Meaning]] = field(default_factory=dict)

    def match(self, tokens: Sequence[str], start: int) -> Iterator[tuple[int, list[Meaning]]]:
        """``(length, meanings)`` of the entries that stand at ``tokens[start:]``, longest first."""
        if start + 1 < len(tokens):
            for length in self.longer.get(tokens[start + 1], ()):
                meanings = self.meanings.get(tuple(tokens[start : start + length]))
                if meanings is not None:
                    yield length, meanings
        if self.alone is not None:
            yield 1, self.alone


def longest_match_table(lexicon: Lexicon, split: Callable[[str], tuple[str, ...]]) -> dict[str, Entries]:
    """First token -> `Entries`. A protected word has no meanings; it wins over an attribute of the same spelling."""
    table: dict[str, Entries] = {}
    words = {split(surface): meanings for surface, meanings in lexicon.surfaces.items()}
    words |= {split(word): [] for word in lexicon.protected}
    for tokens, meanings in words.items():
        entries = table.setdefault(tokens[0], Entries())
        if len(tokens) == 1:
            entries.alone = meanings
            continue
        entries.meanings[tokens] = meanings
        lengths = {*entries.longer.get(tokens[1], ()), len(tokens)}
        entries.longer[tokens[1]] = sorted(lengths, reverse=True)
    return table
