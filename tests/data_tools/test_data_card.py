"""The data card: the same numbers for people and for programs, and the same card from the same shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.card import write_card
from data_tools.execution.jobs import InProcess
from data_tools.execution.steps import FunctionStep, run_step
from data_tools.negatives.rules import RuleGenerator
from data_tools.negatives.step import NegativesStep
from data_tools.shards import Record, write_shard
from pipeline.data.schema import Region, Sample
from tests.data_tools.step_samples import picture, refuse_third


@pytest.fixture
def shards(tmp_path) -> Path:
    regions = {
        "en": Region((0.0, 0.0, 0.5, 0.5), "A red mug", category="mug | cup"),
        "zh": Region((0.0, 0.0, 0.5, 0.5), "一只红色的猫"),
    }
    for shard in range(2):
        records = []
        for number in range(4):
            language = "zh" if number == 1 else "en"
            sample = Sample(language, 32, 24, short_caption="a mug", regions=(regions[language],))
            records.append(Record(f"{shard}{number}", picture(number), "png", sample))
        write_shard(tmp_path / "in" / f"s-{shard:06d}.tar", records)
    drop = FunctionStep("drop", "1", refuse_third, {"which": "第三"})
    run_step(drop, tmp_path / "in", tmp_path / "dropped", executor=InProcess())
    run_step(NegativesStep(RuleGenerator()), tmp_path / "dropped", tmp_path / "out", executor=InProcess())
    return tmp_path / "out"


def test_the_card_names_counts_steps_generators_and_what_was_dropped(shards, capsys):
    assert main(["card", str(shards)]) == 0
    text = (shards / "DATA_CARD.md").read_text(encoding="utf-8")
    numbers = json.loads((shards / "data_card.json").read_text(encoding="utf-8"))
    assert (numbers["samples"], numbers["languages"]) == (6, {"en": 4, "zh": 2})
    assert numbers["fields"]["negatives"] == 60 and numbers["negatives_by_attribute_from_regions"] == 6
    assert sum(numbers["negatives_by_attribute"].values()) == 60
    assert [step["step"] for step in numbers["steps"]] == ["drop", "negatives"]
    assert numbers["steps"][0]["dropped"] == {"third": 2}
    assert numbers["steps"][1]["settings"]["generator"] == "rules"
    assert "| third | 2 |" in text and "| in Chinese | 2 |" in text and "第三" in text
    assert '"lexicons"' in text and "8 samples in, 6 out" in text


def test_the_same_shards_give_the_same_card(shards, tmp_path):
    first = write_card(shards, tmp_path / "a.md").read_bytes()
    assert write_card(shards, tmp_path / "b.md").read_bytes() == first
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_shards_without_reports_have_a_card_that_says_so(tmp_path, shards, capsys):
    write_shard(tmp_path / "x" / "s-000000.tar", [Record("a", picture(1), "png", Sample("en", 32, 24, "a mug"))])
    text = write_card(tmp_path / "x").read_text(encoding="utf-8")
    assert "other tools made it" in text and "There are no negatives." in text
    assert main(["card", str(tmp_path / "x"), "--out", str(tmp_path / "c.json")]) == 2
    assert "give a name in .md" in capsys.readouterr().err
    assert main(["card", str(tmp_path)]) == 2
