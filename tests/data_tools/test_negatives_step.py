"""Negatives over shards: with rules on real images, and with a language model behind a server that misbehaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.execution.jobs import InProcess
from data_tools.execution.local import LocalExecutor
from data_tools.execution.shards import tar_shards
from data_tools.execution.steps import run_step
from data_tools.model_server.client import ModelServer
from data_tools.negatives.prompts import load_negatives_prompt
from data_tools.negatives.rules import RuleGenerator
from data_tools.negatives.server import ServerGenerator
from data_tools.negatives.step import NegativesStep
from data_tools.shards import Record, write_shard
from pipeline.data.schema import Region, Sample
from tests.data_tools.openai_server import FakeServer, question_of
from tests.data_tools.step_samples import contents, picture
from tests.shared_data import shared

PHRASES = {
    "en": ("A red plastic mug with a wooden handle", "two brown dogs sitting on a bench", "tv"),
    "zh": ("一个红色的塑料杯子", "两只棕色的狗坐在长椅上", "电视"),
}
BOXES = ((0.0, 0.0, 0.5, 0.5), (0.2, 0.2, 0.9, 0.8), (0.5, 0.5, 1.0, 1.0))
COLORS = {
    "en": "blue green yellow purple black white grey brown orange pink crimson red".split(),
    "zh": "蓝色 绿色 黄色 紫色 黑色 白色 灰色 棕色 橙色 粉色 大红色 红色".split(),
}


def write_region_shards(folder: Path, num_shards: int = 2, samples: int = 3) -> Path:
    for shard in range(num_shards):
        records = []
        for number in range(samples):
            language = "zh" if number % 2 else "en"
            regions = tuple(Region(box, text) for box, text in zip(BOXES, PHRASES[language], strict=True))
            sample = Sample(language, 32, 24, short_caption=regions[1].phrase, regions=regions)
            records.append(Record(f"{shard:03d}{number:03d}", picture(number + 7 * shard), "png", sample))
        write_shard(folder / f"s-{shard:06d}.tar", records)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_region_shards(tmp_path_factory.mktemp("regions"))


def samples_of(folder: Path) -> dict[str, Sample]:
    return {record.key: record.sample for shard in tar_shards(folder) for record in shard.records()}


def good_answer(body: dict, attempt: int) -> str:
    """As a model would: one word of the phrase changed, ten times or a few more; no attribute, nothing of use."""
    question = body["messages"][0]["content"]
    for language, phrases in PHRASES.items():
        phrase = next((text for text in phrases if f": {text}\n" in question or f"：{text}\n" in question), None)
        if phrase is not None:
            word = {"en": "brown" if "brown" in phrase else "red", "zh": "棕色" if "棕色" in phrase else "红色"}[
                language
            ]
            wrong = [color for color in COLORS[language] if color != word]
            return json.dumps({"negatives": [phrase.replace(word, color) for color in wrong]}, ensure_ascii=False)
    raise AssertionError(question)


def server_step(url: str, **options) -> NegativesStep:
    options = {"concurrency": 2, "max_retries": 2, "backoff_seconds": 0.01, "timeout_seconds": 5} | options
    return NegativesStep(ServerGenerator(ModelServer(url, "model", **options)), minimum=8)


# Rules


def test_coco_with_rules_makes_verified_shards_and_a_report(tmp_path, capsys):
    coco = shared("data/coco-mini")
    build = ["build", "coco", "--images", coco / "images", "--captions", coco / "captions.json"]
    build += ["--instances", coco / "instances.json", "--fgovd", coco / "fgovd" / "hard.jsonl"]
    assert main([str(part) for part in [*build, "--out", tmp_path / "coco", "--workers", "0"]]) == 0
    out = tmp_path / "negatives"
    command = ["negatives", str(tmp_path / "coco"), "--out", str(out), "--replace-existing", "--workers", "0"]
    assert main(command) == 0
    assert main(["verify", str(out), "--workers", "0"]) == 0
    assert main(["report", str(out), "--out", str(tmp_path / "report.html"), "--samples", "3"]) == 0
    assert main(["card", str(out)]) == 0
    samples = samples_of(out)
    assert len(samples) == 238
    detailed = [r for s in samples.values() for r in s.regions if r.phrase.startswith(("A ", "An "))]
    assert len(detailed) >= 90
    assert sum(len(region.negatives) == 10 for region in detailed) >= 0.9 * len(detailed)
    assert not [r for s in samples.values() for r in s.regions if r.phrase == r.category and r.negatives]
    card = (out / "DATA_CARD.md").read_text(encoding="utf-8")
    assert "regions_without_negatives_no_attribute" in card and "| color |" in card


def test_results_do_not_depend_on_the_executor_and_both_languages_are_filled(shards, tmp_path):
    step = NegativesStep(RuleGenerator())
    summary = run_step(step, shards, tmp_path / "a", executor=InProcess())
    run_step(step, shards, tmp_path / "b", executor=LocalExecutor(1))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    samples = samples_of(tmp_path / "a")
    for sample in samples.values():
        assert [len(region.negatives) for region in sample.regions] == [10, 10, 0]
        assert sample.source["negatives"]["regions"] == [0, 1]
        assert sample.source["negatives"]["lexicons"][sample.language].startswith(f"{sample.language}-")
    assert summary.counts["regions_with_all_negatives"] == 12
    assert summary.counts["regions_without_negatives_no_attribute"] == 6


def test_negatives_that_are_there_stay_unless_they_are_to_be_replaced(tmp_path):
    own = ("A blue mug", "A green mug")
    region = Region(BOXES[0], "A red mug", negatives=own)
    sample = Sample("en", 32, 24, short_caption="A red mug", regions=(region,), source={"negatives": {"by": "hand"}})
    write_shard(tmp_path / "in" / "s-000000.tar", [Record("k", picture(1), "png", sample)])
    kept = run_step(NegativesStep(RuleGenerator()), tmp_path / "in", tmp_path / "kept", executor=InProcess())
    assert samples_of(tmp_path / "kept")["k"] == sample
    assert kept.counts == {"regions_left_as_they_were": 1}
    step = NegativesStep(RuleGenerator(), replace_existing=True)
    run_step(step, tmp_path / "in", tmp_path / "new", executor=InProcess())
    made = samples_of(tmp_path / "new")["k"]
    assert len(made.regions[0].negatives) == 10
    assert made.source["negatives"]["generator"] == "rules"


def test_a_region_with_fewer_than_the_minimum_keeps_none(tmp_path):
    sample = Sample("en", 32, 24, short_caption="a", regions=(Region(BOXES[0], "the open door"),))
    write_shard(tmp_path / "in" / "s-000000.tar", [Record("k", picture(1), "png", sample)])
    run_step(NegativesStep(RuleGenerator(), minimum=2), tmp_path / "in", tmp_path / "none", executor=InProcess())
    assert samples_of(tmp_path / "none")["k"].regions[0].negatives == ()
    run_step(NegativesStep(RuleGenerator(), minimum=1), tmp_path / "in", tmp_path / "one", executor=InProcess())
    assert samples_of(tmp_path / "one")["k"].regions[0].negatives == ("the closed door",)
    with pytest.raises(ValueError, match="minimum is 11"):
        NegativesStep(RuleGenerator(), minimum=11)


def test_phrases_found_in_the_caption_count_as_true(tmp_path):
    free = NegativesStep(RuleGenerator())
    sample = Sample("en", 32, 24, short_caption="a", regions=(Region(BOXES[0], "A red mug"),))
    write_shard(tmp_path / "in" / "s-000000.tar", [Record("k", picture(1), "png", sample)])
    run_step(free, tmp_path / "in", tmp_path / "free", executor=InProcess())
    forbidden = samples_of(tmp_path / "free")["k"].regions[0].negatives[:3]
    phrases = [{"text": text, "span": [0, 1], "from": "short_caption"} for text in forbidden]
    sample = replace(sample, source={"phrases": phrases})
    write_shard(tmp_path / "in2" / "s-000000.tar", [Record("k", picture(1), "png", sample)])
    run_step(free, tmp_path / "in2", tmp_path / "out2", executor=InProcess())
    assert not set(forbidden) & set(samples_of(tmp_path / "out2")["k"].regions[0].negatives)


# The language model


def test_good_answers_become_negatives_with_their_provenance(shards, tmp_path):
    with FakeServer(good_answer) as fake:
        summary = run_step(server_step(fake.url), shards, tmp_path / "out", executor=InProcess())
    assert summary.ok
    for sample in samples_of(tmp_path / "out").values():
        # Eleven colours, of which the lexicon knows some to be near the true one.
        assert [len(region.negatives) >= 8 for region in sample.regions] == [True, True, False]
        assert not {"crimson", "大红"} & set(" ".join(sample.regions[0].negatives).split())
        source = sample.source["negatives"]
        assert (source["generator"], source["model"]) == ("server", "model")
        assert source["prompts"][f"negatives/{sample.language}"].startswith(f"negatives-{sample.language}-1@")
    body = fake.requests[0]
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["negatives"]
    assert any(f"- {phrase}\n" in question_of(body) for phrase in (*PHRASES["en"], *PHRASES["zh"]))  # the others


def test_what_the_validators_refuse_is_asked_for_once_more(tmp_path):
    phrase = "A red mug"
    sample = Sample("en", 32, 24, short_caption="a", regions=(Region(BOXES[0], phrase),))
    write_shard(tmp_path / "in" / "s-000000.tar", [Record("k", picture(1), "png", sample)])
    bad = ["A red bowl", "A crimson mug", "A blue mug", "a blue mug", "A mug", 7]
    good = [f"A {color} mug" for color in "black green yellow grey brown orange gold silver white".split()]

    def answer(body: dict, attempt: int) -> str:
        return json.dumps({"negatives": good if len(body["messages"]) > 1 else bad})

    with FakeServer(answer) as fake:
        summary = run_step(server_step(fake.url), tmp_path / "in", tmp_path / "out", executor=InProcess())
    assert len(fake.requests) == 2
    assert "A crimson mug" in question_of(fake.requests[1]) and "A blue mug\n" not in question_of(fake.requests[1])
    assert samples_of(tmp_path / "out")["k"].regions[0].negatives == ("A blue mug", *good)
    refused = {name.removeprefix("candidates_refused_"): n for name, n in summary.counts.items() if "refused" in name}
    wanted = {"object_changed": 1, "same_as_phrase": 1, "repeated": 1, "attribute_removed": 1, "not_text": 1}
    assert refused == wanted


@pytest.mark.parametrize(
    ("reply", "reason", "failed"),
    [
        ("I cannot do that.", "bad_json", False),
        ('{"negatives": "none"}', "few_valid", False),
        ("[]", "few_valid", False),
        ({"text": '{"negatives": ["A blue', "finish_reason": "length"}, "cut_off", False),
        ({"text": ""}, "empty", False),
        ({"status": 400}, "rejected", False),
        ({"status": 500}, "status_500", True),
        ({"raw": b"<html>busy</html>"}, "bad_body", True),
    ],
)
def test_a_bad_answer_leaves_the_region_without_and_says_why(tmp_path, reply, reason, failed):
    sample = Sample("en", 32, 24, short_caption="a", regions=(Region(BOXES[0], "A red mug"),))
    write_shard(tmp_path / "in" / "s-000000.tar", [Record("k", picture(1), "png", sample)])
    with FakeServer(lambda body, attempt: reply) as fake:
        summary = run_step(server_step(fake.url), tmp_path / "in", tmp_path / "out", executor=InProcess())
    assert summary.ok is not failed and bool(summary.failed) is failed
    assert summary.counts[f"regions_without_negatives_{reason}"] == 1
    assert samples_of(tmp_path / "out")["k"] == sample
    if failed:  # --retry-failed asks again, and only for what failed
        with FakeServer(lambda body, attempt: json.dumps({"negatives": [f"A {c} mug" for c in COLORS["en"]]})) as fake:
            step = server_step(fake.url)
            again = run_step(step, tmp_path / "in", tmp_path / "out", executor=InProcess(), retry_failed=True)
        assert again.ok and len(samples_of(tmp_path / "out")["k"].regions[0].negatives) >= 8


def test_passing_faults_are_tried_again_and_change_nothing(shards, tmp_path):
    with FakeServer(good_answer) as fake:
        run_step(server_step(fake.url), shards, tmp_path / "calm", executor=InProcess())
    chooser = random.Random(0)

    def troubled(body: dict, attempt: int):
        if attempt == 1:
            return chooser.choice([{"status": 429, "headers": {"Retry-After": "0"}}, {"status": 500}, {"raw": b"{"}])
        return good_answer(body, attempt)

    with FakeServer(troubled) as fake:
        run_step(server_step(fake.url, max_retries=5), shards, tmp_path / "troubled", executor=InProcess())
    assert contents(tmp_path / "calm") == contents(tmp_path / "troubled")


def test_kill_9_and_run_again_gives_the_same_shards_and_repeats_no_answered_request(tmp_path):
    shards = write_region_shards(tmp_path / "in", num_shards=2, samples=5)

    def slow(body: dict, attempt: int):
        return {"text": good_answer(body, attempt), "sleep_seconds": 0.02}

    def command(url: str, out: Path) -> list[str]:
        options = ["--generator", "server", "--server", url, "--model", "m", "--concurrency", "2", "--minimum", "8"]
        return [
            sys.executable,
            "-m",
            "data_tools",
            "negatives",
            str(shards),
            "--out",
            str(out),
            *options,
            "--workers",
            "0",
        ]

    with FakeServer(slow) as fake:
        assert subprocess.run(command(fake.url, tmp_path / "calm"), env=dict(os.environ)).returncode == 0
        undisturbed = Counter(json.dumps(body["messages"]) for body in fake.requests)
    with FakeServer(slow) as fake:
        process = subprocess.Popen(command(fake.url, tmp_path / "out"), stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while len(fake.requests) < sum(undisturbed.values()) // 2 and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert subprocess.run(command(fake.url, tmp_path / "out")).returncode == 0
        # Only the phrases under way at the kill, two at a time with two questions each, are asked about once more.
        assert len(fake.requests) <= sum(undisturbed.values()) + 4
    assert contents(tmp_path / "calm") == contents(tmp_path / "out")


def test_prompts_can_be_replaced_but_must_have_their_places(tmp_path, capsys):
    prompt = tmp_path / "mine.txt"
    prompt.write_text("Phrase: {phrase}; write {count}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lacks \{true_phrases\}"):
        load_negatives_prompt("negatives", "en", prompt)
    arguments = ["negatives", str(tmp_path), "--out", str(tmp_path / "o"), "--generator", "server"]
    assert main(arguments) == 2
    assert "--server" in capsys.readouterr().err
    assert main([*arguments, "--server", "http://localhost/v1", "--model", "m", "--negatives-prompt", "x=y"]) == 2
    assert "PURPOSE/LANGUAGE=FILE" in capsys.readouterr().err
    assert main(["negatives"]) == 2
