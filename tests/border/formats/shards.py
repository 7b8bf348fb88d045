"""Shards and what lies beside them: records, tars, row indexes, manifests, images."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_tools.sources.images import ImageProblem, check_image
from pipeline.config import DataSettings
from pipeline.data.cache import LocalFolder
from pipeline.data.images import ImageFault, decode_image
from pipeline.data.index import index_folder
from pipeline.data.levels import Levels
from pipeline.data.manifest import IndexProblem, load_manifest, parse_index
from pipeline.data.plan import Plan
from pipeline.data.reader import ReadFault, ShardReader, iterate_shards
from pipeline.data.records import walk_records
from pipeline.data.schema import Sample, SampleError, parse_sample
from tests.border.damage import Damage, damage_bytes, damage_document, damage_tar
from tests.border.formats import Format
from tests.data.shards import (
    clip_members,
    clip_record,
    image_bytes,
    record,
    sample_members,
    write_manifest_of_json,
    write_shards,
    write_tar,
)

BUDGETS = (128, 256)
LEVELS = Levels(BUDGETS)
SHARD = "part-00000.tar"


def sample_problem(sample: Sample) -> str | None:
    """What a record that was taken must not hold."""
    texts = [sample.short_caption, sample.long_caption]
    for region in sample.regions:
        texts += [region.phrase, region.long_phrase, region.category, *region.negatives]
        boxes = region.boxes if sample.frames is not None else (region.box,)
        if boxes is None or len(boxes) != sample.num_frames or (sample.frames is None and None in boxes):
            return f"boxes {boxes} of {sample.num_frames} frames"
        for box in boxes:
            if box is not None and not all(isinstance(v, float) and 0 <= v <= 1 for v in box):
                return f"a box {box}"
        if region.score is not None and not math.isfinite(region.score):
            return f"a score {region.score}"
    for text in texts:
        if text is not None and (not isinstance(text, str) or len(text) > 20_000 or not text.strip()):
            return f"a text {text!r:.60}"
    try:
        parse_sample(sample.to_bytes())
    except (ValueError, OverflowError, RecursionError) as error:
        return f"a record that cannot be written and read back: {type(error).__name__}: {error}"
    return None


def make_record(folder: Path) -> None:
    made = record(1, "zh", regions=3, source={"dataset": "x", "captions": ["一", "b"], "made_by": {"step": 1}})
    made["regions"][0] |= {"score": 0.5, "category": "cat"}
    (folder / "record.json").write_text(json.dumps(made), encoding="utf-8")


def damage_record(rng: random.Random, base: Path) -> Damage:
    return damage_document(rng, "record.json", (base / "record.json").read_bytes())


def read_record(folder: Path) -> Sample:
    return parse_sample((folder / "record.json").read_bytes(), key="k", shard="s.tar")


def make_clip_record(folder: Path) -> None:
    (folder / "record.json").write_text(json.dumps(clip_record(1, "zh", anomaly=[0, 1, 1])), encoding="utf-8")


def make_clips(folder: Path) -> None:
    """An image between two clips."""
    members = clip_members("k00000", 0) + sample_members("k00001", image_bytes(1), record(1, "en", regions=1))
    write_tar(folder / SHARD, members + clip_members("k00002", 2, "zh"))


def read_clips(folder: Path) -> list[Sample]:
    """Walk the tar, index it, plan with clips of two frames, and read each sample of an epoch with its frames."""
    walked: list[Any] = []
    samples = [sample for _, sample in walk_records(folder / SHARD, walked.append, clips=True)]
    _, faults = index_folder(folder, patch_budgets=BUDGETS)
    manifest = load_manifest(folder, BUDGETS, clip_frames=[2])
    settings = DataSettings(shards=[str(folder)], patch_budgets=list(BUDGETS), clip_frames=[2])
    plan = Plan([manifest], settings, 0, 1)
    reader = ShardReader(manifest, LocalFolder(str(folder)), manifest.levels)
    try:
        for number in range(min(plan.steps_per_epoch(0), 8)):
            batch = plan.batch(0, number)
            shard, ordinal = int(batch.shards[0]), int(batch.ordinals[0])
            raw = reader.read(shard, reader.row(shard, batch.language, ordinal))
            for image in raw.images:
                decode_image(image, max_megapixels=1.0)
            samples.append(raw.sample)
            if len(raw.images) != raw.sample.num_frames or raw.sample.num_frames < batch.frames:
                raise AssertionError(f"{raw.key} has {len(raw.images)} frames")
    finally:
        reader.close()
    if walked or faults:
        raise IndexProblem(str((walked or faults)[0]))
    return samples


def make_tar(folder: Path) -> None:
    members: list[tuple[str, bytes]] = []
    for number in range(3):
        members += sample_members(f"k{number:05d}", image_bytes(number), record(number, "en", regions=1))
    write_tar(folder / SHARD, members)


def read_tar(folder: Path) -> Any:
    """Everything that walks a tar: reading without an index, and indexing."""
    faults: list[Any] = []
    samples = [sample for _, _, sample, _ in iterate_shards(folder, on_fault=faults.append)]
    problems: list[str] = []
    try:
        index_folder(folder, patch_budgets=BUDGETS)
    except IndexProblem as error:
        problems.append(str(error))
    if problems:
        raise IndexProblem("; ".join(problems))
    if faults:
        raise IndexProblem(str(faults[0]))
    return samples


def check_samples(samples: list[Sample]) -> str | None:
    return next((problem for problem in map(sample_problem, samples) if problem), None)


def make_indexed(folder: Path) -> None:
    write_shards(folder, [[("en", 128), ("zh", 128), ("en", 256)], [("zh", 256), ("en", 128)]])
    index_folder(folder, patch_budgets=BUDGETS)


def make_indexed_of_json(folder: Path) -> None:
    """With the manifest of format 1, which held all columns in JSON."""
    make_indexed(folder)
    write_manifest_of_json(folder)


def read_indexed(folder: Path) -> list[tuple[str, bytes, Sample]]:
    """Plan an epoch and read every sample of it by its place."""
    manifest = load_manifest(folder, BUDGETS)
    plan = Plan([manifest], DataSettings(shards=[str(folder)], patch_budgets=list(BUDGETS)), 0, 1)
    reader = ShardReader(manifest, LocalFolder(str(folder)), manifest.levels)
    found = []
    try:
        for number in range(min(plan.steps_per_epoch(0), 8)):
            batch = plan.batch(0, number)
            for shard, ordinal in zip(batch.shards, batch.ordinals, strict=True):
                row = reader.row(int(shard), batch.language, int(ordinal))
                raw = reader.read(int(shard), row)
                found.append((raw.key, raw.images[0], raw.sample))
    finally:
        reader.close()
    return found


def read_rows(folder: Path) -> list[tuple[str, bytes, Sample]]:
    """First without the manifest's word for what the index must be, then with it."""
    name = SHARD.replace(".tar", ".index.parquet")
    with contextlib.suppress(IndexProblem):
        index = parse_index((folder / name).read_bytes(), SHARD)
        index.counts(LEVELS)
        index.grouped_rows(LEVELS)
    return read_indexed(folder)


def check_indexed(found: list[tuple[str, bytes, Sample]]) -> str | None:
    """Every sample is whole, under its own key, and met once."""
    keys = [key for key, _, _ in found]
    if sorted(keys) != [f"k{number:05d}" for number in range(5)]:
        return f"samples {keys}"
    for key, _, sample in found:
        number = int(key[1:])
        if str(number) not in (sample.short_caption or ""):
            return f"{key} has the caption {sample.short_caption!r}"
    return None


def damage_manifest(rng: random.Random, base: Path) -> Damage:
    return damage_document(rng, "manifest.json", (base / "manifest.json").read_bytes())


def damage_index(rng: random.Random, base: Path) -> Damage:
    """Bytes of the file, or a whole parquet file with other content."""
    name = SHARD.replace(".tar", ".index.parquet")
    if rng.random() < 0.5:
        return damage_bytes(rng, name)
    table = pq.read_table(base / name)
    column, row = rng.choice(table.column_names), rng.randrange(len(table))
    kind = rng.choice(("drop", "value", "text", "order", "null", "empty"))
    if kind == "drop":
        table = table.drop_columns([column])
    elif kind == "order":
        table = table.take(list(reversed(range(len(table)))))
    elif kind == "empty":
        table = table.slice(0, 0)
    else:
        values = table[column].to_pylist()
        value = {"null": None, "text": "text"}.get(kind, rng.choice((-1, 0, 1, 2**30, 512, 2**31 - 1)))
        if kind == "value" and isinstance(values[row], str):
            value = rng.choice(("", "k00002", "../x", "fr", "\x1b[2J"))
        values = [str(one) for one in values] if kind == "text" else values
        values[row] = value
        place = table.column_names.index(column)
        numbers = pa.int64() if isinstance(values[row], int) else table[column].type
        table = table.set_column(place, column, pa.array(values, type=None if kind in ("text", "null") else numbers))
    file = io.BytesIO()
    pq.write_table(table, file)
    return Damage(name, [["bytes", file.getvalue().decode("latin-1")]])


IMAGES = ("JPEG", "PNG", "WEBP")


def make_image(folder: Path) -> None:
    for number, kind in enumerate(IMAGES):
        (folder / f"{kind}.image").write_bytes(image_bytes(number, (96, 64), kind))
    picture = Image.open(io.BytesIO(image_bytes(0, (96, 64), "PNG")))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "EXIF.image", "JPEG", exif=exif)


# Beginnings of files that Pillow would hand to other decoders, one of them to a program.
OTHER_KINDS = (
    *("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "%PDF-1.4\n", "GIF89a\x0a\0\x0a\0\0\0\0", "BM\0\0"),
    *("P6\n99999 99999\n255\n", "II*\0\x08\0\0\0", "<svg xmlns='http://www.w3.org/2000/svg'/>"),
    *("\x89PNG\r\n\x1a\n", "\xff\xd8\xff", "RIFF\xff\xff\xff\xffWEBPVP8 "),
)


def damage_image(rng: random.Random, base: Path) -> Damage:
    file = f"{rng.choice((*IMAGES, 'EXIF'))}.image"
    if rng.random() < 0.15:
        return Damage(file, [["bytes", rng.choice(OTHER_KINDS)]])
    if rng.random() < 0.3:  # the header, where sizes are
        return Damage(file, [["flip", rng.random() * 0.03, rng.randint(1, 255)] for _ in range(rng.randint(1, 4))])
    return damage_bytes(rng, file)


def read_images(folder: Path) -> list[Any]:
    """As training, indexing and building read them; the first fault is the case's."""
    found: list[Any] = []
    for path in sorted(folder.glob("*.image")):
        data = path.read_bytes()
        found += [decode_image(data, max_megapixels=1.0), decode_image(data, 1.0, target=(16, 16))]
        check_image(data, path.name)
    return found


DATA_ERRORS = (IndexProblem, ReadFault)
FORMATS = {
    "record": Format("sample records (JSON)", make_record, damage_record, read_record, (SampleError,), sample_problem),
    "tar": Format(
        "tars of samples", make_tar, lambda rng, base: damage_tar(rng, SHARD), read_tar, (IndexProblem,), check_samples
    ),
    "clip_record": Format(
        "records of clips (JSON)", make_clip_record, damage_record, read_record, (SampleError,), sample_problem
    ),
    "clips": Format(
        "tars of clips",
        make_clips,
        lambda rng, base: damage_tar(rng, SHARD),
        read_clips,
        (IndexProblem, ReadFault, ImageFault),
        check_samples,
    ),
    "index": Format("row indexes (parquet)", make_indexed, damage_index, read_rows, DATA_ERRORS, check_indexed),
    "manifest": Format(
        "manifests of format 1", make_indexed_of_json, damage_manifest, read_indexed, DATA_ERRORS, check_indexed, 512
    ),
    "manifest_columns": Format(
        "manifests", make_indexed, damage_manifest, read_indexed, DATA_ERRORS, check_indexed, 512
    ),
    "image": Format("images", make_image, damage_image, read_images, (ImageFault, ImageProblem)),
}
