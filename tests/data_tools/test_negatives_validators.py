"""The validators of negatives, which must catch what a language model may write."""

from __future__ import annotations

import pytest

from data_tools.negatives.validate import Validator


@pytest.mark.parametrize(
    ("phrase", "candidate", "problem"),
    [
        ("A red mug with a wooden handle", "A blue mug with a wooden handle", None),
        ("A red mug with a wooden handle", "A red mug with a plastic handle", None),
        ("A red mug", "A tartan-coloured mug", None),  # a value that no lexicon knows
        ("A red mug", "Two red mugs", None),
        ("A red mug", "A red mug", "same_as_phrase"),
        ("A red mug", "a  RED mug.", "same_as_phrase"),
        ("A red mug", "The red mugs", "same_as_phrase"),
        ("A grey mug", "A gray mug", "same_as_phrase"),
        ("A red mug", "A crimson mug", "same_as_phrase"),
        ("A red mug", "A dark red mug", "synonym"),
        ("A red mug", "A pink mug", "synonym"),
        ("A big dog", "A large dog", "same_as_phrase"),
        ("A big dog", "A huge dog", "synonym"),
        ("A red mug", "A red bowl", "object_changed"),
        ("A red mug", "A blue bowl", "object_changed"),
        ("A red mug on a table", "A blue mug on a chair", "more_than_attributes"),
        ("A red mug", "A mug", "attribute_removed"),
        ("A red mug", "A wooden mug", "other_attribute"),
        ("A red mug", "A blue mug next to a plate of fresh food", "length"),
        ("A red mug on the old table", "A red mug on the old table there", "added_words"),
        ("A red mug", "A blue\nmug", "not_one_line"),
        ("A red mug", "  ", "length"),
        ("A red mug", "A mug that somebody has painted in a colour which is entirely different from red", "length"),
        ("several dogs", "four dogs", "synonym"),
        ("a man standing", "a man sitting", None),
        ("a man standing", "a man leaning", "synonym"),
        ("a cat on a table", "a cat under a table", None),
        ("a cat on a table", "a cat atop a table", "same_as_phrase"),
        ("an open window", "a closed window", None),
        ("a man holding a kite", "a man carrying a kite", "synonym"),
    ],
)
def test_an_english_candidate_is_judged(phrase, candidate, problem):
    assert Validator("en", phrase).problem(candidate) == problem


@pytest.mark.parametrize(
    ("phrase", "candidate", "problem"),
    [
        ("一只红色的猫", "一只蓝色的猫", None),
        ("一只红色的猫", "两只红色的猫", None),
        ("一只红色的猫", "一只红的猫", "same_as_phrase"),
        ("一只红色的猫", "一只大红色的猫", "same_as_phrase"),
        ("一只红色的猫", "一只深红色的猫", "synonym"),
        ("一只红色的猫", "一只粉红色的猫", "synonym"),
        ("一只红色的猫", "一只红色的狗", "more_than_attributes"),
        ("一只红色的猫", "一只蓝色的狗", "more_than_attributes"),
        ("一只红色的猫", "一只猫", "attribute_removed"),
        ("两个男人坐在长椅上", "2个男人坐在长椅上", "same_as_phrase"),
        ("几个男人坐在长椅上", "四个男人坐在长椅上", "synonym"),
        ("两个男人坐在长椅上", "两个男人站在长椅上", None),
        ("两个男人坐在长椅上", "两个男人坐在长椅旁边", None),
        ("一张木制的桌子", "一张木质的桌子", "same_as_phrase"),
        ("一个男人躺在床上", "一个男人睡在床上", "synonym"),
        ("一个男人骑着马", "一个男人牵着马", None),
    ],
)
def test_a_chinese_candidate_is_judged(phrase, candidate, problem):
    assert Validator("zh", phrase).problem(candidate) == problem


@pytest.mark.parametrize(
    ("language", "phrase", "true_phrase", "candidate"),
    [
        ("en", "A red mug", "a blue mug on a shelf", "A blue mug"),
        ("en", "A red mug", "Blue mugs.", "A blue mug"),
        ("en", "A red mug", "a dark blue mug", "A blue mug"),
        ("zh", "一只红色的猫", "一只蓝色的猫躺在沙发上", "一只蓝色的猫"),
        ("zh", "一只红色的猫", "一只深蓝的猫", "一只蓝色的猫"),
    ],
)
def test_what_another_phrase_of_the_image_implies_is_no_negative(language, phrase, true_phrase, candidate):
    assert Validator(language, phrase, [true_phrase]).problem(candidate) == "true_in_image"
    assert Validator(language, phrase).problem(candidate) is None


def test_a_phrase_about_something_else_does_not_make_it_true():
    assert Validator("en", "A red mug", ["a mug beside a blue plate"]).problem("A blue mug") is None


def test_equal_candidates_count_once_whatever_their_spelling():
    validator = Validator("en", "A red mug")
    assert validator.problem("A grey mug") is None
    assert validator.problem("a gray mug.") == "repeated"
    validator = Validator("zh", "一只红色的猫")
    assert validator.problem("一只蓝色的猫") is None
    assert validator.problem("一只蓝的猫。") == "repeated"


def test_the_changed_attributes_are_named():
    validator = Validator("en", "Two brown dogs sitting on a wooden bench")
    assert validator.changed_attributes("Two black dogs sitting on a wooden bench") == ("color",)
    assert validator.changed_attributes("Three brown dogs sitting on a stone bench") == ("count", "material")
    assert Validator("zh", "一只红色的猫").changed_attributes("三只红色的猫") == ("count",)
