"""What is wrong with a caption, as far as its text tells: refusal, echo, repetition, cut end, wrong language, mark-up.

The thresholds were set on real captions (`tests/data_tools/test_captions.py` keeps them honest): almost none of
those may fail.
"""

from __future__ import annotations

import re
import unicodedata

from data_tools.text.language import SPACELESS, text_language
from pipeline.base.constants import LANGUAGES
from pipeline.base.languages import primary
from pipeline.data.schema import MAX_TEXT_LENGTH

# First person only: "her face cannot be seen" is a description, "I cannot see her face" is not.
REFUSALS = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|i can(?:'|no)?t|i can not|(?:i am|i'?m) (?:not able|unable)"
    r"|as an ai|as a language model|i (?:do not|don'?t) (?:see|have)|no image (?:was|is|has been)"
    r"|please (?:provide|upload|share)|unable to (?:process|view|assist|describe))\b"
    r"|抱歉|对不起|很遗憾|作为(?:一个|一名)?(?:ai|人工智能|语言模型)|我(?:无法|不能|没有办法|看不到|没法)|请(?:提供|上传|发送)|未能?提供图",
    re.IGNORECASE,
)
PREAMBLES = re.compile(
    r"^(sure|certainly|of course|okay|ok|here(?:'s| is| are)|caption|description|answer|the caption)\b[^.]{0,80}[:!]"
    r"|^(当然|好的|没问题|以下是|下面是|描述[:：]|答案[:：]|这是(?:一段|对|关于))",
    re.IGNORECASE,
)
MARKUP = re.compile(r"^\s*(?:[-*•#]|\d+[.)、])\s|\*\*|```|<[a-z/|][^>]*>|https?://", re.MULTILINE | re.IGNORECASE)
SENTENCE_ENDS = ".!?。！？…।؟۔"
CLOSERS = "\"'”’」』)）】]"
ECHO_WORDS, ECHO_CHARACTERS = 8, 14  # a run this long shared with the prompt is no accident
LOOP_UNITS = {False: 5, True: 7}  # words; True: characters: the length of a run that must not come again and again
LOOP_REPEATS = 3
MIN_UNITS = {"long_caption": {False: 8, True: 12}, "short_caption": {False: 2, True: 3}}


def caption_problem(text: str, language: str, prompt: str = "", field: str = "long_caption") -> str | None:
    """The first rule that ``text`` breaks, or None: ``refusal``, ``preamble``, ``markup``, ``wrong_language``,
    ``prompt_echo``, ``repetition``, ``too_short``, ``too_long`` (for the record) or ``cut_off``."""
    if len(text) > MAX_TEXT_LENGTH:
        return "too_long"
    text = unicodedata.normalize("NFC", text).strip()
    if REFUSALS.search(text):
        return "refusal"
    if PREAMBLES.search(text):
        return "preamble"
    if MARKUP.search(text):
        return "markup"
    if _echoes(text, prompt):
        return "prompt_echo"
    spaceless = primary(language) in SPACELESS
    units = _units(text, spaceless)
    # Of other languages than these two no rule is known here; what a model answered in is for the report to show.
    wrong = primary(language) in LANGUAGES and text_language(text, primary(language)) != primary(language)
    if len(units) < MIN_UNITS[field][spaceless]:
        return "wrong_language" if wrong else "too_short"
    if wrong:
        return "wrong_language"
    if _loops(units, LOOP_UNITS[spaceless]):
        return "repetition"
    if field == "long_caption" and text.rstrip(CLOSERS)[-1:] not in SENTENCE_ENDS:
        return "cut_off"
    return None


def _units(text: str, spaceless: bool) -> list[str]:
    """Words, or characters."""
    if spaceless:
        return [character for character in text if character.isalnum()]
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def _echoes(text: str, prompt: str) -> bool:
    for spaceless, length in ((False, ECHO_WORDS), (True, ECHO_CHARACTERS)):
        asked, answered = _units(prompt, spaceless), _units(text, spaceless)
        if spaceless:  # Latin letters are judged as words
            asked, answered = ([c for c in units if not c.isascii()] for units in (asked, answered))
        runs = {tuple(asked[i : i + length]) for i in range(len(asked) - length + 1)}
        if any(tuple(answered[i : i + length]) in runs for i in range(len(answered) - length + 1)):
            return True
    return False


def _loops(units: list[str], length: int) -> bool:
    """True if a run of ``length`` units occurs ``LOOP_REPEATS`` times, or one unit follows itself four times."""
    seen: dict[tuple[str, ...], int] = {}
    for start in range(len(units) - length + 1):
        run = tuple(units[start : start + length])
        seen[run] = seen.get(run, 0) + 1
        if seen[run] >= LOOP_REPEATS:
            return True
    return any(len(set(units[i : i + 4])) == 1 for i in range(len(units) - 3))
