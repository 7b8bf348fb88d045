"""A phrase taken apart: which stretches are attributes, and what everything else is.

Both languages give the same structure, so generators and validators need not know which one they hold.
"""

from __future__ import annotations

from typing import NamedTuple

from data_tools.negatives.lexicon import Group


class Slot(NamedTuple):
    """One attribute value in a phrase: ``text[start:end]``, in characters."""

    start: int
    end: int
    attribute: str
    group: Group | None  # None: a count or a part
    value: str  # the value's name, synonyms and shades folded; for counts the number in digits, or "several"
    form: int = 0
    prefix: str = ""
    token: int = 0  # position of its first token, and of the token after its last
    token_end: int = 0

    @property
    def item(self) -> tuple[str, str, str]:
        """``(attribute.group, value, prefix)``."""
        return (self.attribute if self.group is None else self.group.key, self.value, self.prefix)


# A phrase without articles and inflection: a word, or the ``item`` of a slot, each.
Items = tuple[str | tuple[str, str, str], ...]


class Parsed(NamedTuple):
    """A phrase with its attributes in place."""

    text: str
    slots: tuple[Slot, ...]
    items: Items
    tokens: tuple[tuple[str, int, int], ...]  # lower-case word, start, end


def values_of(items: Items) -> tuple[str | tuple[str, str], ...]:
    """The items without shades: what two phrases share when one is true wherever the other is."""
    return tuple(item if isinstance(item, str) else item[:2] for item in items)
