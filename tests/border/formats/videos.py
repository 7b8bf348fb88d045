"""What is read of videos: the files themselves, captions and tracks for the builder, annotations for evaluation."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from data_tools.sources.tracks import MotTracks, Problems, Track, read_coco_vid
from data_tools.sources.video_clips import Row
from data_tools.sources.video_rows import VideoColumns, VideoRowReader
from pipeline.base.border import BorderError, parse_json
from pipeline.data.schema import parse_sample
from pipeline.data.video import VideoFault, read_video
from pipeline.evaluation.anomaly_scores import read_prompts
from pipeline.evaluation.formats.anomaly import read_anomaly, recognise_anomaly
from pipeline.evaluation.formats.clips import read_clip_rows
from pipeline.evaluation.formats.items import ClipItem, ClipRow, ImageItem
from pipeline.evaluation.results import EvaluationError
from tests.border.damage import Damage, damage_bytes, damage_document
from tests.border.formats import Format
from tests.video_files import grey, write_video

VIDEOS = ("a.mp4", "a.mkv")  # the two kinds of container; each file that is opened costs decoder threads
NUM_FRAMES, SIZE = 4, (32, 24)


def make_videos(folder: Path) -> None:
    for name in VIDEOS:
        write_video(folder / name, [grey(20 * number + 20, SIZE) for number in range(NUM_FRAMES)])


def damage_videos(rng: random.Random, base: Path) -> Damage:
    return damage_bytes(rng, rng.choice(VIDEOS))


def read_videos(folder: Path) -> list[tuple[int, float, tuple[int, int]]]:
    """Number, time and size of each frame; the first fault of any file is raised when all were read."""
    found, faults = [], []
    for name in VIDEOS:
        try:
            found += [(frame.number, frame.seconds, frame.image().size) for frame in read_video(folder / name, 1.0)]
        except VideoFault as fault:
            faults.append(fault)
    if faults:
        raise faults[0]
    return found


def check_videos(found: list[tuple[int, float, tuple[int, int]]]) -> str | None:
    wrong = [one for one in found if not (0 <= one[0] < 10_000 and 0 <= one[1] < 1e9 and min(one[2]) > 0)]
    return f"the frame {wrong[0]}" if wrong else None


def make_tracks(folder: Path) -> None:
    (folder / "a.txt").write_text("1,1,5,5,20,20,1,1,1\n2,1,6,5,20,20,1,1,1\n2,2,0,0,9,9,0,2,1\n")
    vid = {
        "videos": [{"id": 1, "name": "a.mp4"}],
        "images": [{"id": n, "video_id": 1, "frame_id": n} for n in range(3)],
        "annotations": [{"image_id": n, "category_id": 7, "instance_id": 4, "bbox": [1, 2, 3, 4]} for n in range(3)],
        "categories": [{"id": 7, "name": "行人"}],
    }
    (folder / "vid.json").write_text(json.dumps(vid, ensure_ascii=False), encoding="utf-8")


def damage_tracks(rng: random.Random, base: Path) -> Damage:
    if rng.random() < 0.4:
        return damage_bytes(rng, "a.txt")
    return damage_document(rng, "vid.json", (base / "vid.json").read_bytes())


def read_tracks(folder: Path) -> list[Track]:
    problems = Problems()
    mot = MotTracks(folder, {"1": "行人"}).of("a.mp4", problems)
    found = [*mot, *read_coco_vid(folder / "vid.json", problems).of("a.mp4", problems)]
    if problems.counts:
        raise ValueError(next(iter(problems.first.values())))
    return found


def check_tracks(found: list[Track]) -> str | None:
    for track in found:
        for number, box in track.boxes.items():
            if not (0 <= number <= 10_000_000 and len(box) == 4 and all(abs(value) < 1e300 for value in box)):
                return f"the box {box} at {number}"
        if not (track.category is None or isinstance(track.category, str)):
            return f"the category {track.category!r:.60}"
    return None


def make_rows(folder: Path) -> None:
    row = {"video": "a.mp4", "short_caption": "一只猫", "language": "zh", "start": 0.5, "end": "2", "key": "k1"}
    row |= {"source": {"dataset": "x"}, "long_caption": "A long one."}
    (folder / "row.json").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")


def read_row(folder: Path) -> Row | None:
    row = parse_json((folder / "row.json").read_bytes())
    if not isinstance(row, dict):
        raise BorderError("no row")  # the datasets package gives rows, whatever the file
    columns = VideoColumns.chosen({}, [], list(row))
    reader = VideoRowReader.of(columns, "table", "en", ())
    by_video, problems = reader.by_video([row])
    if problems.counts:
        raise ValueError(next(iter(problems.first.values())))
    ((number, values),) = next(iter(by_video.values()))
    found = reader.row(values, number)
    return found if isinstance(found, Row) else None


def check_row(row: Row | None) -> str | None:
    if row is None:
        return None
    try:
        parse_sample({**row.fields, "width": 1, "height": 1, "frames": [0.0]})
    except ValueError:
        return None  # a clip of it is dropped with this reason
    ends = row.end is None or row.start < row.end
    return None if row.start >= 0 and ends else f"the times {row.start} to {row.end}"


FILES = ("ucf.txt", "xd.txt", "prompts.json", "rows.jsonl")


def make_annotations(folder: Path) -> None:
    (folder / "videos").mkdir()
    for name in ("Abuse001_x264.mp4", "坏.B__#1_label_B1.mp4", "好__#2_label_A.mp4"):
        (folder / "videos" / name).write_bytes(b"")
    (folder / FILES[0]).write_text("Abuse001_x264.mp4  Abuse  165  240  -1  -1\n" * 2)
    (folder / FILES[1]).write_text("坏.B__#1_label_B1 3 9 20 40\n", encoding="utf-8")
    prompts = {"zh": {"normal": ["正常", ["好", "平静"]], "abnormal": ["异常"]}}
    (folder / FILES[2]).write_text(json.dumps(prompts, ensure_ascii=False), encoding="utf-8")
    row = {"clip": "k1", "boxes": [[1, 1, 9, 9], None], "pos_expression": ["猫"], "neg_expression": ["狗", "a dog"]}
    row |= {"width": 64, "height": 48, "neg_attribute": ["motion", "shape"], "motion": "still", "language": "zh"}
    (folder / FILES[3]).write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")


def damage_annotations(rng: random.Random, base: Path) -> Damage:
    name = rng.choice(FILES)
    if name.endswith(".txt") or rng.random() < 0.2:
        return damage_bytes(rng, name)
    return damage_document(rng, name, (base / name).read_bytes())


def read_annotations(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"events": [], "prompts": read_prompts(folder / FILES[2])}
    for name in FILES[:2]:
        form = recognise_anomaly(folder / name)
        for video in read_anomaly(folder / name, form, folder / "videos").videos:
            found["events"].append(sum(video.labels(50)))
    clips = [ClipItem("k1", (ImageItem("a", folder), ImageItem("b", folder)))]
    found["rows"] = read_clip_rows(folder / FILES[3], clips).rows
    return found


def check_annotations(found: dict[str, Any]) -> str | None:
    if not all(0 <= frames <= 50 for frames in found["events"]):
        return f"labels of {found['events']}"
    rows: list[ClipRow] = found["rows"]
    for row in rows:
        if len(row.boxes) != 2 or not all(isinstance(text, str) and text.strip() for text in row.texts):
            return f"the row {row!r:.100}"
    return None


NAMED = (BorderError, ValueError, OSError)
FORMATS = {
    "videos": Format("video files", make_videos, damage_videos, read_videos, (VideoFault,), check_videos, 512),
    "tracks": Format("MOT's and COCO-VID's tracks", make_tracks, damage_tracks, read_tracks, NAMED, check_tracks, 1024),
    "video_rows": Format(
        "captions of videos",
        make_rows,
        lambda rng, base: damage_document(rng, "row.json", (base / "row.json").read_bytes()),
        read_row,
        NAMED,
        check_row,
    ),
    "anomaly": Format(
        "events of anomalies, prompts, rows of clips",
        make_annotations,
        damage_annotations,
        read_annotations,
        (EvaluationError,),
        check_annotations,
        1024,
    ),
}
