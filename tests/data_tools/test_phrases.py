"""Referring expressions: noun phrases with attributes and clauses, with spans, in both languages."""

from __future__ import annotations

import gzip
import json
import sys

import pytest

from data_tools.__main__ import main
from data_tools.execution.jobs import InProcess
from data_tools.execution.shards import tar_shards
from data_tools.execution.steps import run_step
from data_tools.phrases.finders import MissingParser, finder
from data_tools.phrases.step import PhrasesStep, find_phrases
from data_tools.shards import Record, write_shard
from pipeline.data.schema import Sample
from tests.data_tools.step_samples import picture
from tests.shared_data import shared

pytest.importorskip("textblob", reason="needs the extra data")
pytest.importorskip("rjieba", reason="needs the extra data")


def texts(caption: str, language: str = "en") -> list[str]:
    return [found.text for found in finder(language)(caption)]


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A cat that is sitting on top of a laptop.", ["A cat that is sitting on top of a laptop", "a laptop"]),
        ("a man skiing down a snowy slope", ["a man skiing down a snowy slope", "a snowy slope"]),
        ("A trash can made of metal.", ["A trash can made of metal"]),
        ("The man is skiing.", ["The man"]),  # a main clause is not attached
        (
            "There is a dog with a black head, black ears, and a white neck.",
            ["a dog with a black head, black ears, and a white neck", "a black head", "black ears", "a white neck"],
        ),
        ("Two red kites. A wooden table!", ["Two red kites", "A wooden table"]),
        ("it", []),
        ("", []),
    ],
)
def test_english_phrases_come_with_their_clauses(caption, phrases):
    assert texts(caption) == phrases


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("一只猫躺在沙发上，旁边有一台笔记本电脑。", ["一只猫躺在沙发上", "一台笔记本电脑"]),
        ("一位拿啤酒的男人坐在马桶上。", ["一位拿啤酒的男人坐在马桶上"]),
        ("在街边，三个蓝标志在一个停车标志下。", ["三个蓝标志在一个停车标志下", "一个停车标志"]),
        ("一张放有几个盘子、碗、玻璃杯和一只龙虾的圆桌", ["一张放有几个盘子、碗、玻璃杯和一只龙虾的圆桌"]),
        ("一个白色的盘子上装着水果，还有一把刀", ["一个白色的盘子", "一把刀"]),
        ("。", []),
        ("", []),
    ],
)
def test_chinese_phrases_come_with_what_stands_before_and_after(caption, phrases):
    assert texts(caption, "zh") == phrases


@pytest.mark.parametrize("language", ["en", "zh"])
def test_spans_are_those_of_the_caption_and_short_forms_lie_in_them(language):
    with gzip.open(shared(f"data/text/captions-{language}.txt.gz"), "rt", encoding="utf-8") as lines:
        captions = [line.strip() for line in lines][::40]
    count = 0
    for caption in captions:
        for found in finder(language)(caption):
            count += 1
            assert caption[found.start : found.end] == found.text
            assert caption[found.short_start : found.short_end] == found.short_text
            assert found.start <= found.short_start < found.short_end <= found.end
    assert count > len(captions)


def test_nine_tenths_of_the_fgovd_phrases_are_found_whole():
    with gzip.open(shared("data/text/fgovd-hard.jsonl.gz"), "rt", encoding="utf-8") as lines:
        phrases = sorted({json.loads(line)["positive"] for line in lines})[::3]
    whole = [any(text.strip(" .") == phrase.strip(" .") for text in texts(phrase)) for phrase in phrases]
    assert sum(whole) >= 0.9 * len(phrases)


def test_the_step_writes_phrases_of_both_captions_once_each(tmp_path, capsys):
    caption = "A red mug stands on a table. It is next to two brown dogs."
    samples = {
        "en": Sample("en", 32, 24, short_caption="A red mug stands on a table", long_caption=caption),
        "zh": Sample("zh", 32, 24, short_caption="一只猫躺在沙发上"),
        "none": Sample("en", 32, 24, short_caption="it"),
    }
    records = [Record(key, picture(n), "png", sample) for n, (key, sample) in enumerate(samples.items())]
    write_shard(tmp_path / "in" / "s-000000.tar", records)
    summary = run_step(PhrasesStep(), tmp_path / "in", tmp_path / "out", executor=InProcess())
    out = {r.key: r.sample.source.get("phrases") for shard in tar_shards(tmp_path / "out") for r in shard.records()}
    assert [(entry["text"], entry["from"]) for entry in out["en"]] == [
        ("A red mug", "long_caption"),
        ("a table", "long_caption"),
        ("two brown dogs", "long_caption"),
    ]
    assert all(caption[slice(*entry["span"])] == entry["text"] for entry in out["en"])
    assert out["zh"][0]["short"] == "一只猫" and out["zh"][0]["span"] == [0, 8]
    assert out["none"] is None
    assert summary.counts["samples_without_phrases"] == 1
    few = run_step(PhrasesStep(max_phrases=1), tmp_path / "in", tmp_path / "few", executor=InProcess())
    assert (few.counts["phrases_found"], few.counts["phrases_beyond_max"]) == (2, 2)
    assert find_phrases(samples["en"], ("short_caption",))[0]["from"] == "short_caption"
    with pytest.raises(ValueError, match="max_phrases is 0"):
        PhrasesStep(max_phrases=0)
    assert main(["phrases", "--caption", "a red mug", "--language", "en"]) == 0
    assert "0:9\ta red mug" in capsys.readouterr().out
    assert main(["phrases", str(tmp_path / "in")]) == 2


@pytest.mark.parametrize(
    ("language", "module", "package"), [("en", "english", "textblob"), ("zh", "chinese", "rjieba")]
)
def test_a_missing_tagger_names_the_extra(monkeypatch, language, module, package):
    monkeypatch.delitem(sys.modules, f"data_tools.phrases.{module}", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingParser, match=rf'{package}.*pip install "fine-grained-vlm\[data\]"'):
        finder.__wrapped__(language)
