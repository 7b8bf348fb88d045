"""Clip scenes: reproducible, truthful about motion in both languages, and fair: one frame tells no direction."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_tools.__main__ import main
from data_tools.scenes.clips.layout import NUM_FRAMES, NUM_VIDEO_FRAMES, SIDE, make_clip
from data_tools.scenes.clips.make import make_clip_record
from data_tools.scenes.clips.motions import ABNORMAL, DIRECTIONS, MOTIONS, Motion, normal_path
from pipeline.data.records import walk_folder, walk_records

NUM_CHECKED = 120


@pytest.fixture(scope="module")
def clips():
    return [make_clip(0, "train", number) for number in range(NUM_CHECKED)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("clips") / "data"
    arguments = ["scenes", "--clips", "--out", str(out), "--train-clips", "8", "--test-clips", "10"]
    assert main([*arguments, "--anomaly-videos", "4", "--workers", "1"]) == 0
    return out


def steps_of(mover):
    places = [place for place in mover.places if place is not None]
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(places, places[1:], strict=False)]


def test_the_same_settings_give_the_same_bytes_and_a_finished_folder_is_left_alone(folder, tmp_path, capsys):
    arguments = ["scenes", "--clips", "--train-clips", "8", "--test-clips", "10", "--anomaly-videos", "4"]
    assert main([*arguments, "--out", str(tmp_path / "two"), "--workers", "2"]) == 0
    for name in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        assert (tmp_path / "two" / name).read_bytes() == (folder / name).read_bytes(), name
    capsys.readouterr()
    assert main([*arguments, "--out", str(folder)]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_options_of_the_other_kind_and_folders_of_the_other_kind_are_refused(folder, capsys):
    assert main(["scenes", "--out", str(folder), "--train-clips", "8"]) == 2
    assert "--train-clips is of clips; give --clips too" in capsys.readouterr().err
    assert main(["scenes", "--clips", "--out", str(folder), "--train-images", "8"]) == 2
    assert main(["scenes", "--out", str(folder), "--train-images", "8", "--test-images", "8"]) == 2
    assert "names other settings" in capsys.readouterr().err
    assert main(["scenes", "--clips", "--out", str(folder), "--test-clips", "1"]) == 2


def test_every_object_moves_as_its_motion_says_and_stays_in_the_picture(clips):
    seen = set()
    for clip in clips:
        assert len(clip.anomaly) == NUM_FRAMES and any(clip.anomaly) == (clip.event is not None)
        for mover in clip.movers:
            seen.add(mover.motion.name)
            inside = [mover.diameter // 2 <= v <= SIDE - mover.diameter // 2 for p in mover.places if p for v in p]
            assert all(inside)
            steps = steps_of(mover)
            moving = [step != (0, 0) for step in steps]
            if mover.motion.direction is not None:
                x, y = DIRECTIONS[mover.motion.direction]
                assert all((np.sign(a), np.sign(b)) == (x, y) for (a, b), m in zip(steps, moving, strict=True) if m)
            expected = {
                "steady": all(moving),
                "stopping": moving[0] and not moving[-1] and moving == sorted(moving, reverse=True),
                "starting": not moving[0] and moving[-1] and moving == sorted(moving),
                "still": not any(moving),
                "turning": len({(np.sign(a), np.sign(b)) for a, b in steps if (a, b) != (0, 0)}) >= 2,
                "appearing": mover.places[0] is None and mover.places[-1] is not None and not any(moving),
            }
            assert expected.get(mover.motion.course, True), (mover.motion, steps)
    assert {motion.course for motion in MOTIONS} == {name.partition("-")[0] for name in seen}


def test_a_collision_bounces_one_back_and_knocks_the_other_away(clips):
    found = [clip for clip in clips if clip.event == "colliding"]
    assert found
    for clip in found:
        striker = next(mover for mover in clip.movers if mover.motion.course == "colliding")
        struck = next(mover for mover in clip.movers if mover.motion.course == "hit")
        contact = min(
            range(NUM_FRAMES),
            key=lambda f: sum(abs(a - b) for a, b in zip(striker.places[f], struck.places[f], strict=True)),
        )
        gap = max(abs(a - b) for a, b in zip(striker.places[contact], struck.places[contact], strict=True))
        assert gap <= (striker.diameter + struck.diameter) // 2 + 1 and clip.anomaly[contact]
        ways = [tuple(np.sign(step)) for step in steps_of(striker) if step != (0, 0)]
        assert ways[0] == (-ways[-1][0], -ways[-1][1])
        assert tuple(np.sign(steps_of(struck)[-1])) in (ways[0], (0, 0))


def test_a_motion_and_the_one_backwards_are_drawn_as_often_and_from_the_same_places():
    """What lets a frame or a mean over frames tell nothing: mean places of a motion and of its mirror agree."""
    rng = np.random.default_rng(0)
    room = (12, 12, SIDE - 12, SIDE - 12)
    for motion in (Motion("steady", "left"), Motion("stopping", "up"), Motion("starting", "right")):
        mean = [
            np.mean([normal_path(one, NUM_FRAMES, room, rng) for _ in range(600)], axis=0)
            for one in (motion, motion.reversed)
        ]
        assert np.abs(mean[0] - mean[1][::-1]).max() < 5  # of 96 pixels, means of 600
        assert motion.reversed.reversed == motion


def test_records_say_in_the_clips_language_what_happens_and_negatives_are_wrong(folder):
    split = {name: [s for tar in walk_folder(folder / name) for s in walk_records(tar, clips=True)]
             for name in ("train", "test")}  # fmt: skip
    languages = [sample.language for _, sample in split["train"]]
    assert languages == ["en", "zh"] * 4
    for _, sample in split["train"]:
        assert sample.num_frames == NUM_FRAMES and len(sample.anomaly) == NUM_FRAMES
        for region in sample.regions:
            assert len(region.boxes) == NUM_FRAMES and len(set(region.negatives)) == 10
            assert region.phrase not in region.negatives
            words = " ".join((region.phrase, *region.negatives, sample.short_caption))
            assert any("一" <= character <= "鿿" for character in words) == (sample.language == "zh")


def test_test_rows_have_ten_wrong_phrases_and_the_motion_backwards_among_them(folder):
    for name, motions in (("motion", 10), ("mixed", 5), ("looks", 0)):
        lines = (folder / "test" / "phrases" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) >= 10
        for row in map(json.loads, lines):
            phrases = [*row["pos_expression"], *row["neg_expression"]]
            assert len(set(phrases)) == 11 and len(row["boxes"]) == NUM_FRAMES
            assert row["neg_attribute"].count("motion") == motions
            motion = Motion(*row["motion"].split("-"))
            if motions and motion.reversed is not None:
                assert motion.reversed.words(row["language"]).strip("的") in row["neg_expression"][0]


def test_videos_of_the_anomaly_set_are_long_and_labelled_where_something_happens(folder):
    found = [sample for tar in walk_folder(folder / "anomaly") for _, sample in walk_records(tar, clips=True)]
    assert [sample.num_frames for sample in found] == [NUM_VIDEO_FRAMES] * 4
    for number, sample in enumerate(found):
        assert any(sample.anomaly) == ("event" in sample.source)
        record = make_clip_record(0, "anomaly", number)
        assert record.sample == sample and len(record.frames) == NUM_VIDEO_FRAMES
    prompts = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))["anomaly_prompts"]
    assert {language: [len(prompts[language][side]) for side in ("normal", "abnormal")] for language in prompts} == {
        "en": [len(MOTIONS) - len(ABNORMAL), len(ABNORMAL)],
        "zh": [len(MOTIONS) - len(ABNORMAL), len(ABNORMAL)],
    }
