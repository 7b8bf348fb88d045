"""What comes from outside is shown as text, whatever it would do to a terminal."""

from __future__ import annotations

import pytest

from pipeline.base.text import printable


@pytest.mark.parametrize(
    "text", ["a red bus", "一只白猫。", "e\u0301té, Straße", "two\nlines\tand a tab", "می\u200cخواهم", ""]
)
def test_plain_text_of_any_language_stays_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("back\rto the start", "back\\rto the start"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("half an emoji \ud83d", "half an emoji \\ud83d"),
    ],
)
def test_what_a_terminal_would_act_on_is_shown_as_its_escape(text, shown):
    assert printable(text) == shown
    shown.encode("utf-8")


def test_a_long_text_is_cut():
    assert printable("图" * 500, 10) == "图" * 10 + "…"
