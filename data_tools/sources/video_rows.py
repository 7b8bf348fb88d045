"""Rows of a table of captions of videos: which column is what, and every reason for which a row is left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.execution.shards import Drop
from data_tools.sources.table import TableData, table_files
from data_tools.sources.table_rows import Columns, RowProblem, RowReader, cell_list, check_present
from data_tools.sources.tracks import Problems, video_key
from data_tools.sources.video_clips import Row
from pipeline.base.border import quoted, shown

MAX_SECONDS = 1e7  # of a part's beginning: four months
NumberedRow = tuple[int, Mapping[str, Any]]
PHRASE_PARTS = ("long_phrase", "category")


@dataclass(frozen=True)
class VideoColumns(Columns):
    """The column of each part of a row; None: the table has none."""

    image: str | None = None
    regions: str | None = None
    video: str | None = "video"
    start: str | None = "start"
    end: str | None = "end"

    def check(self, present: Sequence[str]) -> None:
        if self.video is None:
            raise ValueError(f"which column holds the videos? Give --video COLUMN; the table has: {', '.join(present)}")
        self.check_captions(present)


@dataclass(frozen=True)
class VideoRowReader(RowReader):
    """Makes rows of a table's. The fields of ``RowReader`` that are of images are not read."""

    columns: VideoColumns

    @classmethod
    def of(cls, columns: VideoColumns, dataset: str, language: str | None, among: tuple[str, ...]) -> VideoRowReader:
        return cls(columns, dataset, Path(), language, among, "pixels", "xywh")

    def by_video(self, table: Iterable[Mapping[str, Any]]) -> tuple[dict[str, list[NumberedRow]], Problems]:
        """The rows of each video, in the table's order; rows that name none are left out and counted."""
        found: dict[str, list[NumberedRow]] = {}
        problems = Problems()
        for number, row in enumerate(table):
            video = row[self.columns.video or ""]
            if not isinstance(video, str) or not video.strip() or "\0" in video:
                problems.add("missing_video", f"row {number}: its video is {quoted(video)}")
                continue
            found.setdefault(video.strip(), []).append((number, dict(row)))
        return found, problems

    def row(self, values: Mapping[str, Any], number: int) -> Row | Drop:
        """A row, or why it is left out."""
        key = self._key(values, number)
        try:
            captions = {name: self._text(values, name) for name in ("short_caption", "long_caption")}
            texts = {name: text for name, text in captions.items() if text}
            if not texts:
                raise RowProblem("no_caption", "its captions are empty")
            language = self._language(values, next(iter(texts.values())))
            start, end = self._seconds(values, "start") or 0.0, self._seconds(values, "end")
            if end is not None and not start < end:
                raise RowProblem("bad_times", f"it begins at {start:g} s and ends at {end:g} s; start < end must hold")
            fields = {**texts, "language": language, "source": self._source(values, number)}
        except RowProblem as problem:
            return Drop(key, problem.kind, f"row {number}: {shown(problem)}")
        return Row(key, fields, start, end)

    def _seconds(self, values: Mapping[str, Any], part: str) -> float | None:
        column = getattr(self.columns, part)
        value = values[column] if column is not None else None
        if value is None or value == "" or isinstance(value, float) and math.isnan(value):
            return None  # the empty cell of a column of numbers
        try:
            seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            seconds = math.nan
        if not 0 <= seconds <= MAX_SECONDS:
            raise RowProblem("bad_times", f"{column} is {quoted(value)}; it must be seconds from the beginning")
        return seconds


def track_phrases(path: Path, cache: str, problems: Problems) -> dict[str, dict[str, dict[str, Any]]]:
    """Phrases by video and track, of a table with the columns video, track and phrase; bad rows go to ``problems``.

    Raises:
        ValueError: it cannot be read, or lacks a column.
    """
    data = TableData(*table_files((path,)), "train", cache, False)
    table, present = data.rows_and_columns()
    for column in ("video", "track", "phrase"):
        check_present({column: column}, present)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for number, row in enumerate(table):
        video, track, phrase = row["video"], row["track"], row["phrase"]
        usable = isinstance(video, str) and isinstance(phrase, str) and bool(phrase.strip())
        if not usable or not isinstance(track, int | str) or isinstance(track, bool):
            problems.add("track_phrase", f"{path.name} row {number}: video, track and phrase are needed")
            continue
        try:
            negatives = cell_list(row.get("negatives"), "negatives")
        except RowProblem as problem:
            problems.add("track_phrase", f"{path.name} row {number}: {problem}")
            continue
        texts = {name: row[name] for name in PHRASE_PARTS if isinstance(row.get(name), str) and row[name].strip()}
        told = {"phrase": phrase.strip(), "negatives": tuple(map(str, negatives)), **texts}
        found.setdefault(video_key(video), {})[str(track)] = told
    return found
