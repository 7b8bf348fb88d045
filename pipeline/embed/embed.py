"""Embeddings of parts, a Parquet file each, over any number of processes, and the manifest when all are there.

Columns: ``key``; ``path``, ``offset`` and ``length``, where the image's bytes are (length null: the whole file);
``box``, normalised xyxy (null: the whole image); ``text``, its caption or phrase, or null; ``frames``, how many a clip
has, whose middle one is the image (null: no clip); ``embedding``, D numbers of unit norm.
A part that is there is not made again, so a run that was stopped goes on where it was, on any number of processes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import TypeAdapter

from pipeline.base.border import parse_json, read_object, shown, validated
from pipeline.base.files import write_aside, write_json
from pipeline.base.ranks import RankInfo
from pipeline.embed.sources import Part, Row
from pipeline.evaluation.clips import encode_clips, frame_choice
from pipeline.evaluation.features import EncodeSettings
from pipeline.evaluation.formats.items import ClipItem, clip_row
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.progress import ProgressLine
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import EvaluationError

FORMAT = 2
PLAN, MANIFEST = "plan.json", "manifest.json"
DTYPES = {"float32": np.float32, "float16": np.float16}
LEFT_OUT = b"left_out"  # in a file's metadata: how many rows are missing, and why
_COUNTS: TypeAdapter[dict[str, int]] = TypeAdapter(dict[str, int])
MAX_PLAN_BYTES = 256 << 20  # it names every part: a million of them
MOST_PLACES = 5  # named of what was left out, a reason


@dataclass(frozen=True)
class EmbedSettings:
    """``images_at_once``: decoded and held in memory together."""

    dtype: str = "float32"
    batch_size: int = 32
    num_threads: int = 2
    images_at_once: int = 256
    report_every_seconds: float | None = 10.0


@dataclass(frozen=True)
class Embedded:
    """What is there now. ``left_out``: rows that could not be embedded, by reason; of all parts once all are there."""

    parts: int
    of_parts: int
    rows: int
    left_out: dict[str, int]

    @property
    def is_whole(self) -> bool:
        """Whether every part is there."""
        return self.parts == self.of_parts


@torch.no_grad()
def embed(
    model: EvaluationModel,
    parts: Sequence[Part],
    out: Path,
    settings: EmbedSettings | None = None,
    ranks: RankInfo | None = None,
) -> Embedded:
    """Write this process's share of the parts that are missing; the last process to end writes the manifest.

    Raises:
        EvaluationError: ``out`` holds embeddings of another model, other data or another number type.
        OSError: it cannot be written.
    """
    settings, ranks = settings or EmbedSettings(), ranks or RankInfo()
    out.mkdir(parents=True, exist_ok=True)
    _agree_on_plan(model, parts, out, settings)
    missing = [part for part in parts[ranks.rank :: ranks.world_size] if not _file(out, part).is_file()]
    for number, part in enumerate(missing, start=1):
        label = f"rank {ranks.rank}, part {number} of {len(missing)} ({part.name}), images"
        _write_part(model, part, out, settings, ProgressLine(label, 0, settings.report_every_seconds))
    return _finish(parts, out)


def _agree_on_plan(model: EvaluationModel, parts: Sequence[Part], out: Path, settings: EmbedSettings) -> None:
    names = hashlib.sha256("\n".join(part.name for part in parts).encode("utf-8")).hexdigest()[:16]
    plan = {
        "format": FORMAT,
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "model_settings": model.settings(),
        "dtype": settings.dtype,
        "parts": len(parts),
        "names": names,
    }
    plan = parse_json(json.dumps(plan, default=str))
    if (out / PLAN).is_file():
        before = read_object(out / PLAN, MAX_PLAN_BYTES)
        differs = [name for name in plan if name != "model" and before.get(name) != plan[name]]
        if differs:
            raise EvaluationError(
                f"{out} holds other embeddings ({', '.join(differs)} differ); give another --out, or remove it"
            )
        return
    write_json(out / PLAN, plan)


def _file(out: Path, part: Part) -> Path:
    return out / f"{part.name}.parquet"


def _write_part(model: EvaluationModel, part: Part, out: Path, settings: EmbedSettings, progress: ProgressLine) -> None:
    rows, faults = part.read()
    progress.total = len({row.image for row in rows})
    left_out = Counter(kind for kind, _ in faults)
    by_image: dict[Any, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row.image, []).append(row)
    images = list(by_image)
    tables = []
    for start in range(0, len(images), settings.images_at_once):
        some = images[start : start + settings.images_at_once]
        table, lost = _encode(model, some, [row for image in some for row in by_image[image]], settings)
        tables.append(table)
        left_out += lost
        progress.advance(len(some))
    whole = pa.concat_tables(tables) if tables else _table([], np.zeros((0, 1), DTYPES[settings.dtype]))
    whole = whole.replace_schema_metadata({LEFT_OUT: json.dumps(left_out).encode("utf-8")})
    with write_aside(_file(out, part)) as partial:
        pq.write_table(whole, partial)


def _encode(
    model: EvaluationModel, images: list[Any], rows: list[Row], settings: EmbedSettings
) -> tuple[pa.Table, Counter]:
    """The rows of some images and clips; those that are unreadable, or have a box without a vector, are counted."""
    number_of = {image: number for number, image in enumerate(images)}
    clips = [ClipItem(image.key, (image,)) for image in images]  # an image is a clip of one frame
    for row in rows:
        if row.clip is not None:
            clips[number_of[row.image]] = row.clip
    boxed = [row for row in rows if row.box is not None]
    features = encode_clips(
        model,
        clips,
        [clip_row(number_of[row.image], row.boxes or (row.box,)) for row in boxed],
        choice=frame_choice(model, None, False),
        settings=EncodeSettings(settings.batch_size, settings.images_at_once, settings.num_threads),
        ranks=Ranks(),
    )
    left_out: Counter = Counter()
    kept: list[Row] = []
    vectors = []
    for place, row in enumerate([*(row for row in rows if row.box is None), *boxed]):
        region = place - (len(rows) - len(boxed))
        image = number_of[row.image]
        if image in features.faults:
            left_out[features.faults[image]] += 1
        elif row.box is not None and not features.region_valid[region]:
            left_out["box_without_area"] += 1
        else:
            kept.append(row)
            vectors.append(features.embeds[image] if row.box is None else features.regions[region])
    width = features.embeds.shape[1] or 1
    matrix = np.stack([v.numpy() for v in vectors]) if vectors else np.zeros((0, width))
    return _table(kept, matrix.astype(DTYPES[settings.dtype])), left_out


def _table(rows: Sequence[Row], matrix: np.ndarray) -> pa.Table:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
    columns = {
        "key": pa.array([row.image.key for row in rows], pa.string()),
        "path": pa.array([str(row.image.path) for row in rows], pa.string()),
        "offset": pa.array([row.image.offset for row in rows], pa.int64()),
        "length": pa.array([row.image.length for row in rows], pa.int64()),
        "box": pa.array([row.box for row in rows], pa.list_(pa.float32())),
        "frames": pa.array([None if row.clip is None else len(row.clip.frames) for row in rows], pa.int32()),
        "text": pa.array([row.text for row in rows], pa.string()),
        "embedding": vectors,
    }
    return pa.table(columns)


def _finish(parts: Sequence[Part], out: Path) -> Embedded:
    """Count what is there; where that is everything, write the manifest. Two processes would write the same one."""
    files = [_file(out, part) for part in parts]
    there = [file for file in files if file.is_file()]
    left_out: Counter = Counter()
    counts = {}
    for file in there:
        facts = pq.read_metadata(file)
        counts[file.name] = facts.num_rows
        lost: dict[str, int] = validated(_COUNTS, (facts.metadata or {}).get(LEFT_OUT, b"{}"), shown(file), "remove it")
        left_out += Counter(lost)
    result = Embedded(len(there), len(files), sum(counts.values()), dict(left_out))
    if result.is_whole:
        plan = read_object(out / PLAN, MAX_PLAN_BYTES)
        write_json(out / MANIFEST, plan | {"rows": result.rows, "left_out": result.left_out, "files": counts})
    return result
