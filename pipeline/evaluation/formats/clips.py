"""Clips of this project's own shards, and rows of phrases about their regions.

A row of a JSONL file: ``{"clip": key, "boxes": [[x, y, w, h] in pixels or null, …] one a frame, "pos_expression": [..],
"neg_expression": [..], "width", "height"}`` and, in the scenes' files, ``language``, ``combination``, ``motion`` and
``neg_attribute``, as FG-OVD's of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.base.border import quoted
from pipeline.data.records import Fault, TarSample, walk_folder, walk_records
from pipeline.data.schema import Sample
from pipeline.evaluation.formats.fgovd import is_pixel_box, is_size, json_rows, row_phrases
from pipeline.evaluation.formats.items import ClipItem, ClipRow, clip_row, normalise_box
from pipeline.evaluation.formats.shards import item_of, stop_at_damage
from pipeline.evaluation.results import Accounting, EvaluationError

Box = tuple[float, float, float, float]
ROW_FIELDS = ("clip", "boxes", "pos_expression", "neg_expression", "width", "height")


@dataclass(frozen=True)
class ClipSample:
    """A clip's record and the places of its frames."""

    clip: ClipItem
    sample: Sample


@dataclass
class ClipFolder:
    """All clips of a folder of tars, in the order of the files. ``faults``: (reason, place) of what was left out."""

    clips: list[ClipSample]
    faults: list[tuple[str, str]] = field(default_factory=list)

    @property
    def items(self) -> list[ClipItem]:
        return [one.clip for one in self.clips]


@dataclass
class ClipSet:
    """Rows about regions of clips."""

    clips: list[ClipItem]
    rows: list[ClipRow]
    accounting: Accounting


def read_clips(folder: str | Path) -> ClipFolder:
    """The clips of every ``*.tar`` of ``folder``; images among them are left out as ``not_a_clip``.

    Raises:
        EvaluationError: no such folder, no tar in it, a file that is no whole tar, or no clip in them.
    """
    try:
        tars = walk_folder(folder)
    except FileNotFoundError as error:
        raise EvaluationError(
            f"{folder} holds no shard (*.tar); give a folder of clips that data_tools wrote"
        ) from error
    found = ClipFolder([])

    def note(fault: Fault) -> None:
        stop_at_damage(fault, Path(folder))
        found.faults.append((fault.kind, str(fault)))

    for path in tars:
        for member, sample in walk_records(path, note, clips=True):
            if sample.frames is None:
                found.faults.append(("not_a_clip", f"{path.name}: {member.key}"))
            else:
                found.clips.append(ClipSample(clip_item(member, sample, path), sample))
    if not found.clips:
        raise EvaluationError(f"{folder} holds no clip; give shards of clips (data_tools build video, scenes --clips)")
    return found


def clip_item(found: TarSample, sample: Sample, path: Path) -> ClipItem:
    """The places of a clip's frames in its tar."""
    frames = tuple(
        item_of(f"{found.key}.{number:03d}", path, member) for number, member in enumerate(found.frame_members())
    )
    return ClipItem(found.key.rpartition("/")[2], frames, sample.frames or (), sample.anomaly)


def clip_phrases(folder: ClipFolder) -> ClipSet:
    """Regions with wrong phrases of the records, as rows."""
    found = ClipSet(folder.items, [], Accounting("regions"))
    for reason, place in folder.faults:
        found.accounting.skip(reason, place)
    for clip, one in enumerate(folder.clips):
        for position, region in enumerate(one.sample.regions):
            where = f"{one.clip.key}: regions[{position}]"
            if not region.negatives:  # not a row of this task
                found.accounting.note("regions_without_negatives", where)
            elif not any(box is not None for box in region.boxes or ()):
                found.accounting.skip("absent_in_every_frame", where)
            else:
                found.accounting.take()
                tags = {"language": one.sample.language}
                texts = (region.phrase, *region.negatives)
                found.rows.append(clip_row(clip, region.boxes or (), texts, tags=tags))
    return found


def read_clip_rows(file: Path, clips: Sequence[ClipItem]) -> ClipSet:
    """Every row of a JSONL file about clips.

    Rows that cannot be scored are skipped under a reason: ``not_json``, ``missing_field``, ``missing_clip``,
    ``frame_boxes``, ``bad_box``, ``box_outside_image``, ``absent_in_every_frame``, ``empty_phrase``, ``no_negatives``.
    """
    number_of = {clip.key: number for number, clip in enumerate(clips)}
    found = ClipSet(list(clips), [], Accounting("rows"))
    for where, record in json_rows(file, found.accounting):
        row = _row(record, where, clips, number_of, found.accounting)
        if row is not None:
            found.accounting.take()
            found.rows.append(row)
    return found


def _row(
    record: Any, where: str, clips: Sequence[ClipItem], number_of: dict[str, int], accounting: Accounting
) -> ClipRow | None:
    """The row; None, and counted, where it cannot be scored."""
    if not isinstance(record, dict) or any(record.get(name) is None for name in ROW_FIELDS):
        absent = [name for name in ROW_FIELDS if not isinstance(record, dict) or record.get(name) is None]
        accounting.skip("missing_field", f"{where}: {', '.join(absent)}")
        return None
    if not isinstance(record["clip"], str) or record["clip"] not in number_of:
        accounting.skip("missing_clip", f"{where}: {quoted(record['clip'])}")
        return None
    clip = number_of[record["clip"]]
    frames, given = len(clips[clip].frames), record["boxes"]
    if not isinstance(given, list) or len(given) != frames:
        told = len(given) if isinstance(given, list) else quoted(given)
        accounting.skip("frame_boxes", f"{where}: {told} boxes for {frames} frames")
        return None
    boxes = _boxes(record, where, accounting)
    if boxes is None:
        return None
    phrases = row_phrases(record, where, accounting)
    if phrases is None:
        return None
    phrases.note(where, accounting)
    tags = phrases.tags | {name: record[name] for name in ("motion",) if isinstance(record.get(name), str)}
    return clip_row(clip, boxes, phrases.texts, tags=tags)


def _boxes(record: dict[str, Any], where: str, accounting: Accounting) -> list[Box | None] | None:
    sizes = record["width"], record["height"]
    if not all(box is None or is_pixel_box(box) for box in record["boxes"]) or not all(map(is_size, sizes)):
        accounting.skip("bad_box", f"{where}: {quoted(record['boxes'])} of {quoted(sizes)}")
        return None
    boxes: list[Box | None] = []
    for given in record["boxes"]:
        box, clipped = (None, False) if given is None else normalise_box(given, *sizes)
        if given is not None and box is None:
            accounting.skip("box_outside_image", f"{where}: {given} of {sizes[0]}x{sizes[1]}")
            return None
        accounting.note("box_clipped", f"{where}: {given}", int(clipped))
        boxes.append(box)
    if not any(box is not None for box in boxes):
        accounting.skip("absent_in_every_frame", where)
        return None
    return boxes
