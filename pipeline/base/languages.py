"""Languages as BCP-47 tags: ``en``, ``zh``, ``pt-BR``, ``zh-Hant``. Which there are, the data say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

# RFC 5646, section 2.1, without private use and extensions: a language, then script, region and variants.
_TAG = re.compile(
    r"[A-Za-z]{2,3}(-[A-Za-z]{3})?(-[A-Za-z]{4})?(-([A-Za-z]{2}|[0-9]{3}))?(-([A-Za-z0-9]{5,8}|[0-9][A-Za-z0-9]{3}))*"
)
# The first that there were. They keep the first places in every order, so that plans of older runs stay as they were.
FIRST_LANGUAGES = ("en", "zh")
UNDETERMINED = "und"  # BCP-47's own tag: there is no text yet, or nobody knows
LONGEST_TAG = 35  # characters: what RFC 5646, section 4.4.1, asks programs to hold
RULE = "it must be a language tag of BCP-47, as en, zh, de or pt-BR"


def canonical(tag: str) -> str:
    """The tag in the letter case of RFC 5646: ``EN-us`` is ``en-US``, ``ZH-hant`` is ``zh-Hant``.

    Raises:
        ValueError: it is no language tag.
    """
    if len(tag) > LONGEST_TAG or not _TAG.fullmatch(tag):
        raise ValueError(RULE)
    first, *others = tag.split("-")
    cased = [part.title() if len(part) == 4 and part.isalpha() else part.lower() for part in others]
    return "-".join([first.lower(), *(part.upper() if len(part) == 2 else part for part in cased)])


Language = Annotated[str, AfterValidator(canonical)]  # for records and settings read by pydantic


def primary(tag: str) -> str:
    """The language without script and region: ``zh`` of ``zh-Hant``."""
    return tag.partition("-")[0]


def in_order(languages: Iterable[str]) -> tuple[str, ...]:
    """The order in which plans number languages: English and Chinese, then the others by their tags."""
    return (*FIRST_LANGUAGES, *sorted(set(languages) - set(FIRST_LANGUAGES)))
