"""Shards of clips from a folder of videos, a table of captions and, where there are some, tracks.

examples:
  python -m data_tools build video --videos movies --table captions.csv --video file --short-caption text \\
      --language en --rate 2 --frames 8 --out shards/clips
  python -m data_tools build video --videos 视频 --table captions.jsonl --long-caption 描述 --language zh \\
      --tracks coco_vid.json --held-out 0.05 --out shards/clips
  python -m data_tools build video --videos MOT17 --table captions.csv --language en --tracks MOT17/train \\
      --track-phrases phrases.csv --out shards/mot

The table is CSV, TSV, JSON lines, JSON or Parquet. Columns that have a part's own name (video, short_caption,
long_caption, language, start, end, key, source) need no option; start and end are seconds of the part that the caption
is of. A clip takes --rate frames a second by the video's own times, at most --frames of them; what is longer is cut
into several clips of the same caption. Tracks are MOT's text files (a folder) or COCO-VID's JSON (a file); a track's
phrase is that of --track-phrases (columns video, track, phrase; long_phrase, negatives and category if you like), else
its class. Videos are read by PyAV: pip install 'fine-grained-vlm[video]'. What is left out is in OUT/reports with its
reason. With --held-out, OUT/train and OUT/held-out are written; all clips of a video stay on one side.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.execution.command import print_summary
from data_tools.execution.options import ExecutionOptions, options_from
from data_tools.execution.shard_work import WORK
from data_tools.execution.steps import run_shards
from data_tools.shard_size import ShardSize, add_shard_size_arguments, shard_size
from data_tools.sources.pairs import add_language_arguments
from data_tools.sources.table import TableData, place_of, table_files
from data_tools.sources.tracks import (
    COCO_VID_FIRST_FRAME,
    MOT_FIRST_FRAME,
    MotTracks,
    PhrasedTracks,
    Problems,
    Tracks,
    read_coco_vid,
    video_key,
)
from data_tools.sources.video_clips import Cutting
from data_tools.sources.video_rows import NumberedRow, VideoColumns, VideoRowReader, track_phrases
from data_tools.sources.video_shards import CountClips, VideoShard
from data_tools.text.detection import check_language
from pipeline.base.border import quoted, read_lines
from pipeline.data.video import MISSING

PARTS = ("video", "short_caption", "long_caption", "start", "end", "key")
BYTES_A_FRAME = 40_000  # assumption, of JPEGs of 640 x 480; a shard is cut before any frame is seen


@dataclass(frozen=True)
class VideoOptions:
    """The videos, their table, which column is what, and how clips are cut."""

    videos: Path
    table: tuple[Path, ...]
    columns: tuple[tuple[str, str | None], ...]
    cutting: Cutting = Cutting()
    language: str | None = None
    among: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    tracks: Path | None = None
    track_phrases: Path | None = None
    track_classes: Path | None = None
    track_first_frame: int | None = None
    held_out: float = 0.0
    size: ShardSize = ShardSize()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--videos", required=True, type=Path, metavar="DIR", help="folder that the table's paths start from"
    )
    parser.add_argument("--table", nargs="+", required=True, type=Path, metavar="FILE", help="of captions")
    group = parser.add_argument_group("columns")
    for part in PARTS:
        group.add_argument("--" + part.replace("_", "-"), metavar="COLUMN")
    group.add_argument("--language-column", metavar="COLUMN", help="of language tags, instead of --language")
    group.add_argument("--keep", nargs="+", default=[], metavar="COLUMN", help="to keep in the records' source")
    add_language_arguments(parser, required=False)
    cut = parser.add_argument_group("clips")
    cut.add_argument("--rate", type=float, default=Cutting.rate, help="frames a second (default: %(default)g)")
    cut.add_argument("--frames", type=int, default=Cutting.num_frames, help="of a clip, at most (default: %(default)s)")
    cut.add_argument("--least-frames", type=int, default=Cutting.least_frames, help="of a clip (default: %(default)s)")
    cut.add_argument(
        "--short-side", type=int, metavar="PIXELS", help="make larger frames smaller (default: as they are)"
    )
    tracks = parser.add_argument_group("tracks")
    tracks.add_argument("--tracks", type=Path, metavar="PATH", help="a folder of MOT's files, or a COCO-VID JSON")
    tracks.add_argument("--track-phrases", type=Path, metavar="FILE", help="a table of video, track and phrase")
    tracks.add_argument(
        "--track-classes", type=Path, metavar="FILE", help="of MOT's class numbers: NUMBER<tab>NAME a line"
    )
    tracks.add_argument(
        "--track-first-frame", type=int, metavar="N",
        help=f"number of a video's first frame (default: MOT {MOT_FIRST_FRAME}, COCO-VID {COCO_VID_FIRST_FRAME})",
    )  # fmt: skip
    parser.add_argument("--held-out", type=float, default=0.0, metavar="SHARE", help="of the videos (default: 0)")
    add_shard_size_arguments(parser)


def read_options(arguments: argparse.Namespace) -> VideoOptions:
    """The parsed options as a record.

    Raises:
        ValueError: a file is missing, PyAV is not installed, a number is out of range, or a language is no tag.
    """
    among, language = tuple(arguments.among), arguments.language
    if language is not None:
        language = check_language(language, among)
    columns = (*((part, getattr(arguments, part)) for part in PARTS), ("language", arguments.language_column))
    cutting = Cutting(arguments.rate, arguments.frames, arguments.least_frames, arguments.short_side)
    options = options_from(
        arguments, VideoOptions, columns=columns, cutting=cutting, language=language, among=among,
        keep=tuple(arguments.keep), table=tuple(arguments.table), size=shard_size(arguments),
    )  # fmt: skip
    given = (options.videos, *options.table, options.tracks, options.track_phrases, options.track_classes)
    for path in given:
        if path is not None and not path.exists():
            raise ValueError(f"{path} does not exist; give an existing file or folder")
    if not options.videos.is_dir():
        raise ValueError(f"--videos is {options.videos}, which is no folder; give the folder that holds the videos")
    if not 0 <= options.held_out < 1:
        raise ValueError(f"--held-out is {options.held_out}; it must be a share from 0 to below 1")
    if options.tracks is None and (options.track_phrases or options.track_classes):
        raise ValueError("--track-phrases and --track-classes name tracks; give --tracks too")
    if importlib.util.find_spec("av") is None:
        raise ValueError(MISSING)
    return options


def build(options: VideoOptions, out: Path, execution: ExecutionOptions) -> int:
    """Write the clips to ``out``, or to its folders train and held-out.

    Raises:
        ValueError: the table or the tracks cannot be read, or a column is missing.
    """
    files, kind = table_files(options.table)
    cache = str(out / WORK / "table")
    table, present = TableData(files, kind, "train", cache, False).rows_and_columns()
    columns = VideoColumns.chosen(dict(options.columns), options.keep, present)
    if options.language is not None and dict(options.columns)["language"] is None:
        columns = VideoColumns(**{**vars(columns), "language": None})
    if columns.language is None and options.language is None:
        raise ValueError("which language are the captions in? Give --language TAG, or --language-column COLUMN")
    reader = VideoRowReader.of(columns, options.table[0].stem, options.language, options.among)
    by_video, problems = reader.by_video(table)
    tracks = _tracks(options, cache, problems)
    sides = [("train", False), ("held-out", True)] if options.held_out else [("", False)]
    settings = {
        "columns": {name: value for name, value in vars(columns).items() if value},
        "language": options.language,
        "among": list(options.among),
        "cutting": vars(options.cutting),
        "tracks": [str(path) for path in (options.tracks, options.track_phrases, options.track_classes) if path],
        "track_first_frame": options.track_first_frame,
        "held_out": options.held_out,
    }
    status = 0
    for side, wants_held_out in sides:
        mine = {video: rows for video, rows in by_video.items() if _is_held_out(video, options) == wants_held_out}
        of_table = Problems() if wants_held_out else problems
        shards = _shards(side or "video", mine, options, reader, tracks, of_table)
        summary = run_shards(
            shards, CountClips(settings), out / side, executor=execution.make_executor(),
            retry_failed=execution.retry_failed, overwrite=execution.overwrite, title=side or "video",
        )  # fmt: skip
        status = print_summary(summary) or status
        if not summary.unfinished and not summary.samples_out and not wants_held_out:
            raise ValueError(f"no clip could be made; {out / side / 'reports'} name the reason of each row")
    return status


def _is_held_out(video: str, options: VideoOptions) -> bool:
    return place_of(video_key(video).encode("utf-8", "replace")) < options.held_out


def _shards(
    side: str,
    by_video: Mapping[str, Sequence[NumberedRow]],
    options: VideoOptions,
    reader: VideoRowReader,
    tracks: Tracks | None,
    problems: Problems,
) -> list[VideoShard]:
    """The videos in groups: as many as a shard has room for, all rows of a video in one."""
    videos, total = list(by_video), sum(map(len, by_video.values()))
    most = options.size.most_samples(total, options.cutting.num_frames * BYTES_A_FRAME)
    groups: list[list[str]] = [[]]
    held = 0
    for video in videos:
        if groups[-1] and held + len(by_video[video]) > most:
            groups.append([])
            held = 0
        groups[-1].append(video)
        held += len(by_video[video])
    files = tuple(path for path in (*options.table, options.track_phrases, options.track_classes) if path is not None)
    return [
        VideoShard(
            f"{side}-{number:06d}",
            options.videos,
            {video: tuple(by_video[video]) for video in group},
            reader,
            options.cutting,
            None if tracks is None else tracks.only(group),
            files,
            problems if number == 0 else Problems(),
        )
        for number, group in enumerate(groups)
    ]


def _tracks(options: VideoOptions, cache: str, problems: Problems) -> Tracks | None:
    """The tracks that were asked for; entries that are left out go to ``problems``.

    Raises:
        ValueError: a file is not of its form.
    """
    if options.tracks is None:
        return None
    first = options.track_first_frame
    found: Tracks
    if options.tracks.is_dir():
        classes = _classes(options.track_classes) if options.track_classes else {}
        found = MotTracks(options.tracks, classes, MOT_FIRST_FRAME if first is None else first)
    elif options.track_classes is not None:
        raise ValueError("--track-classes names MOT's class numbers; COCO-VID's file has categories of its own")
    else:
        found = read_coco_vid(options.tracks, problems, COCO_VID_FIRST_FRAME if first is None else first)
    if options.track_phrases is None:
        return found
    return PhrasedTracks(found, track_phrases(options.track_phrases, cache, problems), options.track_phrases)


def _classes(path: Path) -> dict[str, str]:
    names = {}
    for line in read_lines(path):
        number, tab, name = line.decode("utf-8", "replace").strip().partition("\t")
        if line.strip() and (not tab or not number.strip().isdigit() or not name.strip()):
            raise ValueError(f"{path}: {quoted(line)} is no class; write NUMBER<tab>NAME a line")
        names[number.strip()] = name.strip()
    return names
