"""Telling the language of a text among those that a data set is known to hold, by the package lingua (an extra)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.base.languages import canonical, primary

if TYPE_CHECKING:
    from lingua import LanguageDetector

# Of all confidence among the candidates. Assumption: below it, a caption of two words says nothing.
MIN_CONFIDENCE = 0.6
AUTO = "auto"


def check_language(language: str, among: Sequence[str]) -> str:
    """The value of ``--language`` in its standard spelling: a tag, or ``auto`` with the languages to tell apart.

    Raises:
        ValueError: it is no tag, ``auto`` has fewer than two candidates, or lingua does not know one.
    """
    if language != AUTO:
        try:
            return canonical(language)
        except ValueError as error:
            raise ValueError(f"--language is {language!r}; {error}, or auto with --among") from error
    if len(set(among)) < 2:
        raise ValueError(
            "--language auto needs the languages to tell apart, at least two: --among en de zh. A caption of a few "
            "words fits many languages, so nothing is guessed among all of them"
        )
    _detector(tuple(among))
    return AUTO


def detect(text: str, among: Sequence[str]) -> str | None:
    """The tag of ``among`` that the text is in; None where it is not clear.

    Raises:
        ValueError: lingua is not installed, or does not know a language.
    """
    detector, tags = _detector(tuple(among))
    best = detector.compute_language_confidence_values(text)[0]
    return tags[best.language.iso_code_639_1.name.lower()] if best.value >= MIN_CONFIDENCE else None


@functools.cache
def _detector(among: tuple[str, ...]) -> tuple[LanguageDetector, dict[str, str]]:
    try:
        from lingua import IsoCode639_1, LanguageDetectorBuilder
    except ImportError as error:
        raise ValueError(
            "--language auto needs the package lingua, which is not installed; install the extra with: "
            'pip install "fine-grained-vlm[languages]", or give the captions\' language'
        ) from error
    known = {name.lower(): getattr(IsoCode639_1, name) for name in dir(IsoCode639_1) if len(name) == 2}
    tags = {primary(canonical(tag)): canonical(tag) for tag in among}
    if strange := sorted(set(tags) - set(known)):
        raise ValueError(f"--among names {', '.join(strange)}, which lingua cannot detect; it knows {' '.join(known)}")
    if len(tags) < len(set(among)):
        raise ValueError(f"--among is {' '.join(among)}; two of these are one language to lingua, name it once")
    builder = LanguageDetectorBuilder.from_iso_codes_639_1(*(known[code] for code in tags))
    return builder.build(), tags
