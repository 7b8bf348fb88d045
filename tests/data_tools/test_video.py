"""Videos into shards of clips: frames by their times, tracks by their frames, and everything left out named."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from data_tools.__main__ import main
from data_tools.sources import video_shards
from data_tools.sources.tracks import MotTracks, Problems, read_coco_vid
from pipeline.data.images import decode_image
from pipeline.data.manifest import load_manifest
from pipeline.data.records import walk_folder, walk_records
from pipeline.data.video import VideoFault, read_video
from tests.video_files import cut_in_half, grey, write_audio, write_video

pytest.importorskip("av")
LEVELS = [20 + 9 * number for number in range(24)]  # of grey: tells which frame a picture is


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """2.4 seconds at 10 frames a second, each frame of its own grey."""
    folder = tmp_path_factory.mktemp("videos")
    frames = [grey(level) for level in LEVELS]
    write_video(folder / "a.mp4", frames)
    write_video(folder / "sub" / "红.avi", frames)
    write_video(folder / "c.mkv", frames)
    write_video(folder / "d.webm", frames)
    uneven = [0.0, 0.1, 0.2, 0.9, 1.0, 1.6, 2.2]  # a variable rate
    write_video(folder / "uneven.mp4", [grey(LEVELS[n]) for n in range(7)], uneven)
    noise = np.random.default_rng(0).integers(0, 255, (24, 48, 64, 3), dtype=np.uint8)
    whole = write_video(folder / "noise.mkv", list(noise))
    cut_in_half(folder / "a.mp4", folder / "half.mp4")
    cut_in_half(whole, folder / "half.mkv")
    write_audio(folder / "sound.mp4")
    (folder / "page.mp4").write_text("<html>")
    (folder / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    return folder


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def drops(out):
    reports = sorted((out / "reports").glob("*.json"))
    return [drop for path in reports for drop in json.loads(path.read_text(encoding="utf-8"))["dropped"]]


def build(videos, table, out, *more):
    words = ["build", "video", "--videos", videos, "--table", table, "--out", out, "--workers", "0", *more]
    return main([str(word) for word in words])


def clips_of(folder):
    found = {}
    for tar in walk_folder(folder):
        for member, sample in walk_records(tar, clips=True):
            members = member.frame_members()
            with open(tar, "rb") as stream:
                pixels = []
                for one in members:
                    stream.seek(one.offset)
                    pixels.append(np.asarray(decode_image(stream.read(one.size))).mean())
            found[member.key] = (sample, [int(np.argmin(np.abs(np.array(LEVELS) - level))) for level in pixels])
    return found


def test_every_container_gives_the_same_clips_cut_by_time(videos, tmp_path):
    texts = {
        "a.mp4": "The picture grows lighter.",
        "sub/红.avi": "画面慢慢变亮。",
        "c.mkv": "The light goes on.",
        "d.webm": "灯亮了。",
    }
    rows = [{"file": name, "text": text, "lang": "zh" if text.endswith("。") else "en"} for name, text in texts.items()]
    table = write_rows(tmp_path / "t.csv", rows)
    more = ["--video", "file", "--short-caption", "text", "--language-column", "lang"]
    assert build(videos, table, tmp_path / "out", *more, "--rate", "5", "--frames", "5") == 0
    clips = clips_of(tmp_path / "out")
    assert [key for key in clips] == [f"t-{n:08d}-{part:03d}" for n in range(4) for part in range(3)]
    for number in range(4):
        parts = [clips[f"t-{number:08d}-{part:03d}"] for part in range(3)]
        assert [frames for _, frames in parts] == [[0, 2, 4, 6, 8], [10, 12, 14, 16, 18], [20, 22]]
        assert parts[1][0].frames == pytest.approx((0, 0.2, 0.4, 0.6, 0.8), abs=2e-3)
        assert parts[1][0].source["frame_numbers"] == [10, 12, 14, 16, 18]
        assert (parts[0][0].width, parts[0][0].height) == (64, 48)
    assert [clips[f"t-{n:08d}-000"][0].language for n in range(4)] == ["en", "zh", "en", "zh"]
    assert load_manifest(tmp_path / "out").languages == ("en", "zh")


def test_frames_of_a_variable_rate_are_taken_by_their_times(videos, tmp_path):
    table = write_rows(tmp_path / "t.csv", [{"video": "uneven.mp4", "short_caption": "uneven"}])
    assert build(videos, table, tmp_path / "out", "--language", "en", "--rate", "2", "--frames", "8") == 0
    ((sample, frames),) = clips_of(tmp_path / "out").values()
    assert frames == [0, 3, 4, 5, 6]  # the first at or after 0, 0.5, 1, 1.5 and 2 seconds
    assert sample.frames == pytest.approx((0, 0.9, 1.0, 1.6, 2.2), abs=2e-3)


def test_a_caption_of_a_part_gives_clips_of_that_part(videos, tmp_path):
    rows = [
        {"video": "a.mp4", "long_caption": "the middle", "start": 0.5, "end": 1.5, "key": "mid"},
        {"video": "a.mp4", "long_caption": "all", "start": "", "end": "", "key": "all"},
        {"video": "a.mp4", "long_caption": "wrong", "start": 2, "end": 1, "key": "wrong"},
        {"video": "a.mp4", "long_caption": "late", "start": 60, "end": 61, "key": "late"},
    ]
    table = write_rows(tmp_path / "t.csv", rows)
    assert build(videos, table, tmp_path / "out", "--language", "en", "--rate", "4", "--frames", "4") == 0
    clips = clips_of(tmp_path / "out")
    assert clips["mid"][1] == [5, 8, 10, 13] and clips["all-000"][1] == [0, 3, 5, 8]
    assert sorted((drop["key"], drop["reason"]) for drop in drops(tmp_path / "out")) == [
        ("late", "no_frames"),
        ("wrong", "bad_times"),
    ]


def test_every_video_that_cannot_be_used_is_named_and_the_others_are_built(videos, tmp_path):
    bad = {
        "half.mp4": "unreadable_video",  # an mp4 has its table at the end
        "sound.mp4": "no_video_stream",
        "page.mp4": "unreadable_video",
        "list.mp4": "unreadable_video",  # a playlist is no way to another file
        "gone.mp4": "missing_video",
        "notes.txt": "unknown_container",
        "../secret.mp4": "video_outside",
        "": "missing_video",
    }
    rows = [{"video": name, "short_caption": "x"} for name in ("a.mp4", *bad, "half.mkv")]
    rows.append({"video": "c.mkv", "short_caption": " "})
    table = write_rows(tmp_path / "t.csv", rows)
    assert build(videos, table, tmp_path / "out", "--language", "en", "--rate", "10", "--frames", "4") == 0
    reasons = sorted(drop["reason"] for drop in drops(tmp_path / "out"))
    half = "cut_video" if "cut_video" in reasons else "damaged_video"  # whether the decoder noticed is FFmpeg's
    assert reasons == sorted([*bad.values(), "no_caption", half])
    keys = set(clips_of(tmp_path / "out"))
    half = f"t-{len(bad) + 1:08d}"
    assert f"{half}-000" in keys and f"{half}-005" not in keys  # whole clips before the damage, none after it
    assert {f"t-00000000-{part:03d}" for part in range(6)} <= keys


def test_a_clip_whose_frames_change_their_size_is_left_out(monkeypatch, videos, tmp_path):
    """Containers can do it; their writers do not, so the decoder is made to."""

    def changing(path):
        for frame in read_video(path):
            picture = frame.image().resize((32, 24)) if frame.number > 13 else frame.image()
            yield type("Frame", (), {"number": frame.number, "seconds": frame.seconds, "image": lambda p=picture: p})

    monkeypatch.setattr(video_shards, "read_video", changing)
    table = write_rows(tmp_path / "t.csv", [{"video": "a.mp4", "short_caption": "x"}])
    assert build(videos, table, tmp_path / "out", "--language", "en", "--rate", "10", "--frames", "8") == 0
    assert list(clips_of(tmp_path / "out")) == ["t-00000000-000", "t-00000000-002"]
    assert [(drop["key"], drop["reason"]) for drop in drops(tmp_path / "out")] == [("t-00000000-001", "unequal_frames")]


def test_tracks_of_both_forms_give_the_same_boxes_and_frames_that_are_not_there_are_counted(videos, tmp_path):
    mot = tmp_path / "mot"
    mot.mkdir()
    lines = [f"{frame + 1},7,{frame},10,16,12,1,1,1" for frame in range(0, 30)]
    lines += ["5,8,0,0,10,10,0,1,1", "x,1,2", "3,9,-20,0,10,10,1,2,1"]
    (mot / "a.txt").write_text("\n".join(lines))
    classes = tmp_path / "classes.txt"
    classes.write_text("1\t行人\n2\tbus\n", encoding="utf-8")
    vid = {
        "videos": [{"id": 1, "name": "a.mp4"}],
        "categories": [{"id": 1, "name": "行人"}],
        "images": [{"id": n + 1, "video_id": 1, "frame_id": n} for n in range(30)],
        "annotations": [
            {"id": n, "image_id": n + 1, "category_id": 1, "instance_id": 7, "bbox": [n, 10, 16, 12]} for n in range(30)
        ]
        + [{"id": 99, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}, {"id": 100, "bbox": "x"}],
    }
    (tmp_path / "vid.json").write_text(json.dumps(vid, ensure_ascii=False), encoding="utf-8")
    table = write_rows(tmp_path / "t.csv", [{"video": "a.mp4", "short_caption": "人"}])
    more = ["--language", "zh", "--rate", "5", "--frames", "6"]
    assert build(videos, table, tmp_path / "a", *more, "--tracks", mot, "--track-classes", classes) == 0
    assert build(videos, table, tmp_path / "b", *more, "--tracks", tmp_path / "vid.json") == 0
    mot_clips, vid_clips = clips_of(tmp_path / "a"), clips_of(tmp_path / "b")
    for key, (sample, frames) in mot_clips.items():
        (region,) = sample.regions
        assert region.phrase == "行人" and vid_clips[key][0].regions[0].boxes == region.boxes
        assert region.boxes == tuple(pytest.approx((n / 64, 10 / 48, (n + 16) / 64, 22 / 48), abs=1e-5) for n in frames)
    told = {drop["reason"]: drop["detail"] for drop in drops(tmp_path / "a")}
    assert told["boxes_without_frame"].startswith("6 times") and "line 32" in told["track_line"]
    assert set(told) == {"boxes_without_frame", "track_line", "box_outside"}
    assert {drop["reason"] for drop in drops(tmp_path / "b")} == {"boxes_without_frame", "track_annotation"}


def test_phrases_of_tracks_come_from_a_table_and_absent_tracks_are_null(videos, tmp_path):
    mot = tmp_path / "mot"
    (mot / "a" / "gt").mkdir(parents=True)
    (mot / "a" / "gt" / "gt.txt").write_text("\n".join(f"{n + 1},1,5,5,20,20,1,-1,1" for n in range(6)))
    phrases = tmp_path / "phrases.jsonl"
    told = [{"video": "a", "track": 1, "phrase": "the box that goes", "negatives": ["the box that stays"]},
            {"video": "a.mp4", "track": 5, "phrase": "nobody"}]  # fmt: skip
    phrases.write_text("".join(json.dumps(row) + "\n" for row in told))
    table = write_rows(tmp_path / "t.csv", [{"video": "a.mp4", "short_caption": "a"}])
    more = ["--language", "en", "--rate", "5", "--frames", "6", "--tracks", mot, "--track-phrases", phrases]
    assert build(videos, table, tmp_path / "out", *more) == 0
    sample, frames = clips_of(tmp_path / "out")["t-00000000-000"]
    (region,) = sample.regions
    assert (region.phrase, region.negatives) == ("the box that goes", ("the box that stays",))
    assert [box is None for box in region.boxes] == [frame > 5 for frame in frames]
    assert not clips_of(tmp_path / "out")["t-00000000-001"][0].regions
    assert [drop["reason"] for drop in drops(tmp_path / "out")] == ["phrase_without_track"]


def test_a_video_stays_on_one_side_and_a_second_start_does_nothing(videos, tmp_path):
    rows = [{"video": name, "short_caption": f"{name} {n}"} for name in ("a.mp4", "c.mkv", "d.webm", "sub/红.avi")
            for n in range(2)]  # fmt: skip
    table = write_rows(tmp_path / "t.csv", rows)
    more = ["--language", "en", "--rate", "2", "--frames", "5", "--held-out", "0.5"]
    assert build(videos, table, tmp_path / "out", *more) == 0
    sides = [{sample.source["video"] for sample, _ in clips_of(tmp_path / "out" / side).values()}
             for side in ("train", "held-out")]  # fmt: skip
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 4 and all(sides)
    tar = next((tmp_path / "out" / "train").glob("*.tar"))
    before = tar.stat().st_mtime_ns
    assert build(videos, table, tmp_path / "out", *more) == 0
    assert tar.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--video", "fil"], "did you mean 'file'?"),
        (["--rate", "0"], "--rate is 0"),
        (["--frames", "1"], "from 2 to 512"),
        (["--tracks", "gone"], "gone does not exist"),
        (["--track-phrases", "t.csv"], "give --tracks too"),
        (["--held-out", "2"], "--held-out is 2.0"),
    ],
)
def test_wrong_options_are_named(videos, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    table = write_rows(tmp_path / "t.csv", [{"file": "a.mp4", "short_caption": "x"}])
    video = [] if "--video" in words else ["--video", "file"]
    assert build(videos, table, "out", "--language", "en", *video, *words) == 2
    assert told in capsys.readouterr().err


def test_a_video_breaks_off_with_its_name_after_what_could_be_read(videos):
    frames = []
    with pytest.raises(VideoFault) as fault:
        for frame in read_video(videos / "half.mkv"):
            frames.append(frame.number)
    assert fault.value.kind in ("cut_video", "damaged_video") and "half.mkv" in str(fault.value)
    assert frames == list(range(len(frames))) and 0 < len(frames) < 24


def test_tracks_of_a_file_of_another_form_are_refused_and_bad_lines_survived(tmp_path):
    (tmp_path / "a.txt").write_bytes(
        b"1,1,0,0,5,5\n\xff\xfe\n1e400,1,0,0,5,5\n2,1,nan,0,5,5\n-3,1,0,0,5,5\n4,1,0,0,5,5,0\n"
    )
    problems = Problems()
    (track,) = MotTracks(tmp_path, {}).of("a.mp4", problems)
    assert dict(track.boxes) == {0: (0, 0, 5, 5)} and problems.counts == {"track_line": 4}
    (tmp_path / "x.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="--tracks .*COCO-VID"):
        read_coco_vid(tmp_path / "x.json", problems)
