"""Clips through the builder's steps, the report and the card: read back as they were, changed in texts alone."""

from __future__ import annotations

import pytest

from data_tools.card import write_card
from data_tools.execution.jobs import InProcess
from data_tools.execution.shards import Drop, TarShard
from data_tools.execution.steps import run_step
from data_tools.negatives.rules import RuleGenerator
from data_tools.negatives.step import NegativesStep
from data_tools.report.page import page
from data_tools.report.statistics import collect
from data_tools.shards import Record, ShardError, write_shard
from data_tools.verify import verify
from pipeline.data.schema import Region
from tests.evaluation.clip_folder import clip, write_clips

LEFT = (0.0, 0.0, 0.5, 1.0)


def regions(phrase):
    return (Region(None, phrase, boxes=(LEFT, None, LEFT)),)


@pytest.fixture()
def folder(tmp_path):
    records = [
        clip("one", ["r", "g", "b"], regions=regions("a red mug")),
        clip("二", ["g"] * 3, "zh", regions("一只红色的猫")),
    ]
    return write_clips(tmp_path / "in", records)


def test_a_step_keeps_the_frames_and_changes_the_texts(folder, tmp_path):
    run_step(NegativesStep(RuleGenerator()), folder, tmp_path / "out", executor=InProcess())
    before, after = (list(TarShard(path / "clips-000000.tar").records()) for path in (folder, tmp_path / "out"))
    for one, other in zip(before, after, strict=True):
        assert one.frames == other.frames and one.sample.frames == other.sample.frames
        assert one.sample.regions[0].boxes == other.sample.regions[0].boxes
        assert not one.sample.regions[0].negatives and other.sample.regions[0].negatives
    assert not verify(tmp_path / "out", allow_duplicates=True, workers=0)[1]


def test_the_card_and_the_report_show_the_middle_frame_and_count_clips(folder):
    card = write_card(folder).read_text(encoding="utf-8")
    statistics = collect(folder, 4)
    assert statistics.fields["clips"] == 2 and statistics.fields["frames of clips"] == 6
    assert statistics.fields["regions"] == 2 and not statistics.faults
    assert [len(chosen.sample.regions) for chosen in statistics.chosen] == [0, 0]  # absent in the middle frame
    assert "of these clips" in page(statistics) and "of these clips" in card


def test_frames_and_times_of_different_number_are_not_written_and_not_read(tmp_path):
    whole = clip("one", ["r", "g"])
    with pytest.raises(ShardError, match="1 frames for 2 times"):
        write_shard(tmp_path / "a.tar", [Record("one", b"", "png", whole.sample, frames=whole.frames[:1])])
    write_shard(tmp_path / "a.tar", [clip("one", ["r", "g"])])
    data = (tmp_path / "a.tar").read_bytes().replace(b"one.001.png", b"one.002.png")
    head = data.index(b"one.002.png")
    checksum = sum(data[head : head + 148]) + 8 * 32 + sum(data[head + 156 : head + 512])
    (tmp_path / "a.tar").write_bytes(data[: head + 148] + b"%06o\0 " % checksum + data[head + 156 :])
    (found,) = TarShard(tmp_path / "a.tar").records()
    assert isinstance(found, Drop) and found.reason == "missing_frame" and "without gaps" in found.detail
