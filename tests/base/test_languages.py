"""Language tags: what is one, in which letter case, and in which order plans number them."""

from __future__ import annotations

import pytest

from pipeline.base.languages import canonical, in_order, primary


@pytest.mark.parametrize(
    ("tag", "wanted"),
    [
        ("en", "en"),
        ("ZH", "zh"),
        ("PT-br", "pt-BR"),
        ("zh-hant", "zh-Hant"),
        ("ZH-HANT-tw", "zh-Hant-TW"),
        ("es-419", "es-419"),
        ("sl-ROZAJ", "sl-rozaj"),
        ("und", "und"),
    ],
)
def test_tags_take_the_letter_case_of_the_standard(tag, wanted):
    assert canonical(tag) == wanted == canonical(wanted)


@pytest.mark.parametrize(
    "tag", ["", "e", "english", "en_US", "en-", "12", "中文", "en us", "en-US-x-" + "a" * 50, "../x", "en\n"]
)
def test_anything_else_is_no_tag(tag):
    with pytest.raises(ValueError, match="BCP-47"):
        canonical(tag)


def test_english_and_chinese_keep_their_places_whatever_comes_in():
    assert in_order([]) == ("en", "zh")
    assert in_order(["zh", "de", "ar", "en", "de"]) == ("en", "zh", "ar", "de")
    assert primary("zh-Hant-TW") == "zh" and primary("de") == "de"
