"""Anomaly scores: prompts, snippets, curves and the two published annotation files, each worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.data.schema import Region
from pipeline.evaluation import EvaluationError, evaluate
from pipeline.evaluation.anomaly_scores import frame_scores, prompts_of, read_prompts, snippet_frames
from pipeline.evaluation.formats.anomaly import read_anomaly, recognise_anomaly
from tests.evaluation.clip_folder import clip, write_clips
from tests.evaluation.fake import FakeModel
from tests.video_files import cut_in_half, write_video

RED, GREEN, GREY = (
    np.full((32, 48, 3), colour, np.uint8) for colour in ((250, 10, 10), (10, 250, 10), (110, 110, 110))
)
PROMPTS = {"normal": ("a green thing",), "abnormal": ("a red thing",)}
LEFT = (0.0, 0.0, 0.5, 1.0)


def test_snippets_cover_every_frame_and_a_frame_has_the_mean_of_those_that_hold_it():
    assert snippet_frames(10, 4, 4) == [range(0, 4), range(4, 8), range(8, 10)]
    assert snippet_frames(6, 4, 2) == [range(0, 4), range(2, 6)]
    assert snippet_frames(3, 16, 16) == [range(0, 3)] and snippet_frames(1, 1, 1) == [range(0, 1)]
    for count in range(1, 40):
        for length, step in ((1, 1), (4, 4), (5, 2), (16, 3)):
            assert set().union(*snippet_frames(count, length, step)) == set(range(count))
    assert frame_scores([1.0, 0.0], snippet_frames(6, 4, 2), 6).tolist() == [1, 1, 0.5, 0.5, 0, 0]
    with pytest.raises(EvaluationError, match="snippet_step is 5, above snippet_frames, 4"):
        snippet_frames(10, 4, 5)


def test_frames_of_shards_are_scored_by_clip_frame_and_tracks_in_both_languages(tmp_path):
    """Grey is nothing, green is normal and red abnormal; two videos of four frames."""
    tracked = Region(None, "a thing", boxes=(LEFT, LEFT, LEFT, LEFT))
    records = [
        clip("one", ["gg", "gg", "rg", "gg"], regions=(tracked,), anomaly=(0, 0, 1, 0), source={"event": "turning"}),
        clip("二", ["rr", "gg", "gg", "gg"], "zh", (tracked,), anomaly=(0, 0, 0, 0)),
        clip("unlabelled", ["r", "r"]),
    ]
    folder = write_clips(tmp_path, records)
    options = {**PROMPTS, "snippet_frames": 1, "max_skipped_share": 0.4}
    result = evaluate(FakeModel(), "anomaly", folder, **options)
    assert result["settings"]["view"] == "tracks"
    # of seven normal frames six are below the abnormal one and one, red too, is its equal: (6 + 0.5) / 7
    assert result["scores"]["auc"] == pytest.approx(6.5 / 7)
    assert result["scores"]["ap"] == pytest.approx(1 / 2)  # the abnormal frame and the red one share the first place
    assert result["scores"]["anomalous_videos"]["auc"] == 1
    assert result["scores"]["by_event"]["turning"]["auc"] == pytest.approx(6.5 / 7)
    assert result["scores"]["by_language"] == {"en": {"auc": 1.0, "ap": 1.0}, "zh": {}}
    assert result["accounting"][0]["skipped"] == {"no_labels": 1} and result["facts"]["ap"]["chance"] == 1 / 8
    whole = evaluate(FakeModel(), "anomaly", folder, view="frame", **options)
    assert whole["scores"]["auc"] == pytest.approx(6 / 7)  # half red is less abnormal than all red
    clips = evaluate(FakeModel(), "anomaly", folder, view="clip", **options)
    assert clips["scores"]["auc"] == pytest.approx(6 / 7) and clips["settings"]["text_path"] == "short"
    # two frames a snippet: green and red of the one, red and green of the other are one score each
    pairs = evaluate(FakeModel(), "anomaly", folder, view="tracks", **options | {"snippet_frames": 2})
    assert pairs["scores"]["auc"] == pytest.approx((4 + 0.5 * 3) / 7)
    assert evaluate(FakeModel(), "anomaly", folder, single_frame=True, max_skipped_share=0.4, **PROMPTS)["settings"][
        "snippet_frames"
    ] == 1  # fmt: skip


@pytest.fixture()
def videos(tmp_path):
    """Forty frames each: red in frames 17 to 32 of a, never in b."""
    pytest.importorskip("av")
    folder = tmp_path / "videos"
    red = [GREEN] * 16 + [RED] * 16 + [GREEN] * 8
    write_video(folder / "Abuse" / "Abuse001_x264.mp4", red)
    write_video(folder / "Testing_Normal" / "Normal_Videos_003_x264.mp4", [GREEN] * 40)
    return folder


def test_ucf_crime_is_scored_by_snippets_of_sixteen_frames_over_all_frames(videos, tmp_path):
    cut_in_half(videos / "Abuse" / "Abuse001_x264.mp4", videos / "Cut002_x264.mp4")
    file = tmp_path / "Temporal_Anomaly_Annotation_for_Testing_Videos.txt"
    file.write_text(
        "Abuse001_x264.mp4  Abuse  21  32  -1  -1  \n"
        "Normal_Videos_003_x264.mp4  Normal  -1  -1  -1  -1\n"
        "Cut002_x264.mp4  Arson  1  5  -1  -1\n"
        "Gone004_x264.mp4  Arson  1  5  -1  -1\n"
        "Abuse001_x264.mp4  Abuse  1  2  -1  -1\n"
        "Abuse005_x264.mp4  Abuse  one  2\n",
        encoding="utf-8",
    )
    assert recognise_anomaly(file) == "ucf-crime"
    options = {**PROMPTS, "videos": videos, "max_skipped_share": 0.7}
    result = evaluate(FakeModel(), "anomaly", file, protocol="anomaly", **options)
    assert result["settings"]["protocol"]["from"] == "anomaly:ucf-crime"
    assert list(result["settings"]["protocol"]["changed"]) == ["max_skipped_share"]
    assert result["settings"]["frames"] == 4
    # frames 21 to 32 are abnormal; the red snippet is frames 17 to 32, so four of 68 normal frames tie with all twelve
    assert result["scores"]["auc"] == pytest.approx((64 + 0.5 * 4) / 68, abs=1e-9)
    assert result["scores"]["ap"] == pytest.approx(12 / 16)
    assert result["scores"]["anomalous_videos"]["auc"] == pytest.approx((24 + 2) / 28)
    assert result["accounting"][0]["skipped"] == {
        "missing_video": 1,
        "duplicate_video": 1,
        "bad_line": 1,
        "unreadable_video": 1,
    }
    by_one = evaluate(FakeModel(), "anomaly", file, snippet_frames=1, **options)
    assert 64 / 68 <= by_one["scores"]["auc"] <= 1  # the four red normal frames are before, among or after the twelve
    with pytest.raises(EvaluationError, match="have no tracks; give --view clip or frame"):
        evaluate(FakeModel(), "anomaly", file, view="tracks", **options)


def test_xd_violence_takes_the_files_of_label_a_as_normal(videos, tmp_path):
    (videos / "Abuse" / "Abuse001_x264.mp4").rename(videos / "Bad.Boys.1995__#01-11_label_B2-0-0.mp4")
    (videos / "Testing_Normal" / "Normal_Videos_003_x264.mp4").rename(videos / "电影__#0_label_A.mp4")
    file = tmp_path / "annotations.txt"
    file.write_text("Bad.Boys.1995__#01-11_label_B2-0-0 17 24 25 32\nBroken__#1_label_B1 3\n", encoding="utf-8")
    assert recognise_anomaly(file) == "xd-violence"
    found = read_anomaly(file, "xd-violence", videos)
    assert [(video.key, sum(video.labels(40))) for video in found.videos] == [
        ("Bad.Boys.1995__#01-11_label_B2-0-0", 16),
        ("电影__#0_label_A", 0),
    ]
    result = evaluate(FakeModel(), "anomaly", file, videos=videos, protocol="anomaly", max_skipped_share=0.4, **PROMPTS)
    assert result["settings"]["protocol"]["from"] == "anomaly:xd-violence"
    assert result["scores"]["ap"] == 1 and result["scores"]["auc"] == 1
    assert result["accounting"][0]["skipped"] == {"bad_line": 1}


def test_prompts_come_from_a_file_by_language_and_averaged_lists(tmp_path):
    file = tmp_path / "prompts.json"
    texts = {"normal": ["绿色", ["绿", "绿草"]], "abnormal": ["红色"]}
    file.write_text(json.dumps({"zh": texts}, ensure_ascii=False), encoding="utf-8")
    assert prompts_of("zh-Hans", read_prompts(file))["normal"] == [["绿色"], ["绿", "绿草"]]
    with pytest.raises(EvaluationError, match="no prompts in 'en', only in zh"):
        prompts_of("en", read_prompts(file))
    file.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    assert prompts_of("en", read_prompts(file))["abnormal"] == [["红色"]]
    file.write_text('{"normal": ["a"]}', encoding="utf-8")
    with pytest.raises(EvaluationError, match="needs normal and abnormal prompts"):
        read_prompts(file)


def test_frames_of_one_kind_alone_and_files_of_another_form_are_refused(tmp_path):
    folder = write_clips(tmp_path / "a", [clip("one", ["g", "r"], anomaly=(0, 0))])
    with pytest.raises(EvaluationError, match="all 2 frames are normal"):
        evaluate(FakeModel(), "anomaly", folder, **PROMPTS)
    (tmp_path / "x.txt").write_text("nothing of the kind\n")
    with pytest.raises(EvaluationError, match="UCF-Crime's or XD-Violence's form"):
        evaluate(FakeModel(), "anomaly", tmp_path / "x.txt", **PROMPTS)
    with pytest.raises(EvaluationError, match="go together"):
        evaluate(FakeModel(), "anomaly", folder, normal=("a",))
