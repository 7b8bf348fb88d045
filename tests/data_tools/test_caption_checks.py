"""What is wrong with a caption is found by its text, and real captions pass."""

from __future__ import annotations

import gzip
from collections import Counter

import pytest

from data_tools.captions.checks import caption_problem
from data_tools.captions.command import prompts_for
from data_tools.captions.prompts import FOLDER, load_caption_prompt
from tests.shared_data import shared

ENGLISH = "A small red bus stands in front of a stone house, and two people in long coats walk to its open door."
CHINESE = "一辆红色的小巴士停在石头房子前面，两个穿着长外套的人正走向敞开的车门，门旁有一只白猫。"


@pytest.mark.parametrize(
    ("text", "language", "problem"),
    [
        (ENGLISH, "en", None),
        (CHINESE, "zh", None),
        (CHINESE + "”", "zh", None),
        ("The woman's face cannot be seen because she looks away from the camera, to the sea.", "en", None),
        ("I'm sorry, but I can't help with the description of this image.", "en", "refusal"),
        ("As an AI, I see no picture here, so I would ask you for another one.", "en", "refusal"),
        ("抱歉，我无法查看这张图片，因此不能为您描述其中的内容。", "zh", "refusal"),
        ("Sure! Here is a description of the image: a red bus stands in front of a house.", "en", "preamble"),
        ("以下是这张图片的描述：一辆红色的小巴士停在石头房子前面，车门敞开。", "zh", "preamble"),
        ("**Objects**\n- a red bus\n- a house of stone with a blue door and two windows.", "en", "markup"),
        (
            "Le petit bus rouge est devant une maison en pierre avec des gens qui marchent vers la porte.",
            "en",
            "wrong_language",
        ),
        (CHINESE, "en", "wrong_language"),
        (ENGLISH, "zh", "wrong_language"),
        ("赤いバスが石の家の前に止まっていて、二人の人がドアに向かって歩いています。", "zh", "wrong_language"),
        ("A red bus in front of a house. " * 5, "en", "repetition"),
        ("一辆红色的小巴士停在房子前面。" * 4, "zh", "repetition"),
        ("The bus is red red red red red and it stands in front of a house.", "en", "repetition"),
        ("A small red bus stands in front of a stone house, and two people in long", "en", "cut_off"),
        ("一辆红色的小巴士停在石头房子前面，两个穿着长外套的", "zh", "cut_off"),
        ("A red bus. " * 3000, "en", "too_long"),
        ("一辆红色的巴士。" * 3000, "zh", "too_long"),
        ("A bus.", "en", "too_short"),
        ("巴士。", "zh", "too_short"),
    ],
)
def test_problems_are_named(text, language, problem):
    assert caption_problem(text, language, load_caption_prompt(f"long-{language}-1").text) == problem


def test_echoes_of_the_prompt_are_found():
    for language in ("en", "zh"):
        prompt = load_caption_prompt(f"long-{language}-1").text
        assert caption_problem(prompt, language, prompt) == "prompt_echo"
    assert (
        caption_problem(
            "Write one paragraph in English that says what can be seen in this image.",
            "en",
            load_caption_prompt("long-en-1").text,
        )
        == "prompt_echo"
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_real_captions_pass_and_the_refusals_among_them_do_not(language):
    with gzip.open(shared(f"data/text/captions-{language}.txt.gz"), "rt", encoding="utf-8") as stream:
        captions = [line.strip() for line in stream][:5000]
    problems = Counter(caption_problem(text, language, field="short_caption") for text in captions)
    assert problems[None] >= 0.998 * len(captions), problems
    assert set(problems) <= {None, "wrong_language", "refusal"}
    unable = [text for text in captions if "I am unable" in text or "我看不到" in text]
    assert unable and all(caption_problem(text, language, field="short_caption") == "refusal" for text in unable)


def test_prompts_are_named_by_their_content(tmp_path):
    for path in FOLDER.glob("*.txt"):
        assert load_caption_prompt(path.stem).name.startswith(path.stem + "@")
    own = tmp_path / "own.txt"
    own.write_text("Say it.", encoding="utf-8")
    assert prompts_for(["long_caption"], [f"long_caption/zh={own}"])["long_caption", "zh"].text == "Say it."
    assert prompts_for(["long_caption"], [f"long_caption/DE={own}"])["long_caption", "de"].text == "Say it."
    with pytest.raises(ValueError, match="FIELD/LANGUAGE=NAME"):
        prompts_for(["long_caption"], [f"short_caption/fr={own}"])
    with pytest.raises(ValueError, match="BCP-47"):
        prompts_for(["long_caption"], [f"long_caption/french={own}"])
    with pytest.raises(ValueError, match="neither a file nor"):
        load_caption_prompt("long-fr-1")
