"""The index beside the shards: where every sample's bytes are, and how many samples of each group a shard holds.

``SHARD.tar`` gets ``SHARD.index.parquet`` (one row a sample) and the folder gets a manifest (columns over shards and
their pieces: counts by language and patch budget, sizes, checksums). Training plans from the manifest alone and opens
the row index of a shard only when it reads samples of it. Samples with a fault are left out and counted here by kind.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from pipeline.base.border import validated
from pipeline.base.constants import PATCH_BUDGETS
from pipeline.base.files import write_aside, write_bytes
from pipeline.base.languages import in_order
from pipeline.data.columns import (
    PIECE_BYTES,
    SHARD_NUMBERS,
    ShardSummary,
    columns_bytes,
    frames_of,
    piece_rows,
    piece_table,
    shards_digest,
    size_codes,
    size_type,
    with_languages,
    without_clips,
)
from pipeline.data.index_rows import read_rows
from pipeline.data.levels import ANY_CLIP, Levels
from pipeline.data.manifest import FORMAT, MANIFEST_NAME, Manifest, load_manifest
from pipeline.data.records import Fault
from pipeline.data.shard_index import IndexProblem, ShardIndex, index_name, parse_index, read_index

__all__ = [
    "Fault",
    "IndexProblem",
    "Manifest",
    "ShardIndex",
    "index_folder",
    "index_shard",
    "load_manifest",
    "read_index",
]
FAULTS_NAME = "index-faults.jsonl"  # one line a sample that was left out: kind, shard, key, message


def index_path(shard: Path) -> Path:
    return shard.with_name(index_name(shard.name))


def index_folder(
    folder: str | Path,
    workers: int = 1,
    *,
    patch_budgets: Sequence[int] = PATCH_BUDGETS,
    force: bool = False,
    on_shard: Callable[[str, int, int], None] | None = None,
    max_megapixels: float = 100.0,
    piece_bytes: int = PIECE_BYTES,
) -> tuple[Manifest, list[Fault]]:
    """Index every ``*.tar`` of ``folder`` and write its manifest; returns the manifest and what was left out.

    Shards whose index is newer than they are and matches their length are not read again unless ``force``.
    ``on_shard(name, number done, number of shards)`` is called after each.

    Args:
        piece_bytes: about how many bytes of a shard a remote reader fetches at once.

    Raises:
        IndexProblem: no folder, no shard in it, or not one usable sample.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise IndexProblem(f"shard folder {folder} does not exist; give the folder that holds the .tar files")
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        packed = next(folder.glob("*.tar.*z*"), None)
        hint = f"unpack {packed.name} first: samples are read by their offsets" if packed else "build shards into it"
        raise IndexProblem(f"shard folder {folder} holds no .tar file; {hint}")
    work = partial(
        _index_unless_fresh,
        patch_budgets=tuple(patch_budgets),
        force=force,
        max_megapixels=max_megapixels,
        piece_bytes=piece_bytes,
    )
    summaries: list[ShardSummary] = []
    pool = ProcessPoolExecutor(workers) if workers > 1 else None
    try:
        for summary in pool.map(work, shards) if pool else map(work, shards):
            summaries.append(summary)
            if on_shard:
                on_shard(summary.name, len(summaries), len(shards))
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    faults = [Fault(**fault) for summary in summaries for fault in summary.faults]
    if faults:
        lines = "".join(json.dumps(vars(fault), ensure_ascii=False) + "\n" for fault in faults)
        write_bytes(folder / FAULTS_NAME, lines.encode())
    else:
        (folder / FAULTS_NAME).unlink(missing_ok=True)
    if not any(summary.samples for summary in summaries):
        raise IndexProblem(_nothing_usable(folder, faults))
    write_manifest(folder, summaries, patch_budgets)
    return load_manifest(folder), faults


def write_manifest(folder: Path, summaries: Sequence[ShardSummary], patch_budgets: Sequence[int]) -> None:
    """Write the columns under a name of their own, then ``manifest.json``, which names them; remove older columns."""
    languages = in_order(name for summary in summaries for name in summary.languages)
    summaries = [with_languages(summary, languages) for summary in summaries]
    clips = sum(int((frames_of(summary.codes) > 0).sum()) for summary in summaries)
    levels = Levels(tuple(patch_budgets), ANY_CLIP if clips else ())
    if not clips:
        summaries = [without_clips(summary, len(levels)) for summary in summaries]
    columns = columns_bytes(summaries)
    sha256 = hashlib.sha256(columns).hexdigest()
    files = [f"manifest-{sha256[:12]}.columns", f"manifest-{sha256[:12]}.sizes"]
    write_bytes(folder / files[0], columns)
    with write_aside(folder / files[1]) as path, path.open("wb") as file:
        for summary in summaries:
            file.write(summary.codes.astype(size_type(len(languages), clips > 0)).tobytes())
    counts = np.sum([summary.pieces.counts.sum(0, dtype=np.int64) for summary in summaries], axis=0)
    blocks = ["", "/clips", "/none"] if clips else [""]
    names = [f"{language}/{budget}{block}" for language in languages for block in blocks for budget in patch_budgets]
    document = {
        "format": FORMAT,
        "patch_budgets": list(patch_budgets),
        "languages": list(languages),
        **dict(zip(("columns", "sizes"), files, strict=True)),
        "columns_sha256": sha256,
        "digest": shards_digest(summaries),
        "shards": len(summaries),
        **{name: sum(getattr(summary, name) for summary in summaries) for name in SHARD_NUMBERS},
        **({"clips": clips} if clips else {}),
        "counts": {name: int(count) for name, count in zip(names, counts.reshape(-1), strict=True) if count},
        "faults": dict(sorted(Counter(fault["kind"] for s in summaries for fault in s.faults).items())),
    }
    write_bytes(folder / MANIFEST_NAME, json.dumps(document, indent=1).encode())
    for old in [*folder.glob("manifest-*.columns"), *folder.glob("manifest-*.sizes")]:
        if old.name not in files:
            old.unlink(missing_ok=True)


def index_shard(
    shard: str | Path,
    patch_budgets: Sequence[int] = PATCH_BUDGETS,
    max_megapixels: float = 100.0,
    piece_bytes: int = PIECE_BYTES,
) -> tuple[ShardSummary, list[Fault]]:
    """Read one tar, write its index, and return what the manifest says of it with the faults found."""
    import pyarrow as pa  # half a second that --help does without
    import pyarrow.parquet as pq

    shard = Path(shard)
    rows, faults = read_rows(shard, max_megapixels)
    columns = {name: [row[name] for row in rows] for name in _SCHEMA}
    with shard.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {"bytes": shard.stat().st_size, "sha256": digest, "faults": [vars(fault) for fault in faults]}
    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in _SCHEMA.items()])
    table = pa.table(columns, schema=schema).replace_schema_metadata(
        {"format": str(FORMAT), "summary": json.dumps(facts, ensure_ascii=False)}
    )
    with write_aside(index_path(shard)) as path:
        # A row group a piece, so that a reader of one piece reads one group.
        pieces = _cut(columns, piece_bytes)
        with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
            for low, high in pairwise([*pieces, len(rows)]):
                writer.write_table(table.slice(low, high - low))
            if not rows:
                writer.write_table(table)
        data = path.read_bytes()
    return _summary(shard.name, validated(_FACTS, facts, "summary"), data, patch_budgets, piece_bytes), faults


def _cut(columns: dict[str, list[Any]], piece_bytes: int) -> list[int]:
    """The first row of each piece."""
    image, record = (np.array([columns[f"{what}_offset"], columns[f"{what}_length"]]) for what in ("image", "json"))
    if not image.size:
        return []
    starts, ends = np.minimum(image[0], record[0]), np.maximum(image.sum(0), record.sum(0))
    return piece_rows(starts, ends, piece_bytes).tolist()


_SCHEMA = {
    "key": "string",
    "extension": "string",
    "image_offset": "int64",
    "image_length": "int64",
    "image_crc32": "uint32",
    "json_offset": "int64",
    "json_length": "int64",
    "json_crc32": "uint32",
    "width": "int32",
    "height": "int32",
    "language": "string",
    "num_regions": "int32",
    "num_negatives": "int32",
    "num_frames": "int32",
}


class ShardFacts(TypedDict):
    """What an index file carries of its tar beside the rows. Earlier versions wrote more, which is not read."""

    bytes: int
    sha256: str
    faults: list[dict[Literal["kind", "shard", "key", "message"], str]]


_FACTS: TypeAdapter[ShardFacts] = TypeAdapter(ShardFacts)


def _summary(
    name: str, facts: ShardFacts, index: bytes, patch_budgets: Sequence[int], piece_bytes: int
) -> ShardSummary:
    """What the manifest says of a shard, all of it from its index."""
    rows = parse_index(index, name)
    levels = Levels(tuple(patch_budgets), ANY_CLIP)  # where the folder has no clip, its columns are left out again
    groups = rows.language * len(levels) + rows.levels(levels)
    shape = (len(rows.languages), len(levels))
    return ShardSummary(
        name=name,
        bytes=facts["bytes"],
        sha256=facts["sha256"],
        index_sha256=hashlib.sha256(index).hexdigest(),
        samples=len(rows),
        regions=int(rows.num_regions.sum()),
        negatives=int(rows.num_negatives.sum()),
        pieces=piece_table(rows.starts(), rows.ends(), groups, shape, piece_bytes),
        codes=size_codes(rows.width, rows.height, rows.language, rows.num_frames),
        languages=rows.languages,
        faults=[{str(name): text for name, text in fault.items()} for fault in facts["faults"]],
    )


def _index_unless_fresh(
    shard: Path, patch_budgets: tuple[int, ...], force: bool, max_megapixels: float, piece_bytes: int
) -> ShardSummary:
    import pyarrow.parquet as pq  # half a second that --help does without
    from pyarrow import ArrowException

    index = index_path(shard)
    if not force and index.is_file() and index.stat().st_mtime_ns >= shard.stat().st_mtime_ns:
        try:
            metadata = pq.read_schema(index).metadata or {}
            facts = validated(_FACTS, metadata.get(b"summary", b"{}"), "summary")
            if facts["bytes"] == shard.stat().st_size:
                return _summary(shard.name, facts, index.read_bytes(), patch_budgets, piece_bytes)
        except (ArrowException, OSError, ValueError):
            pass  # a damaged index is made again
    return index_shard(shard, patch_budgets, max_megapixels, piece_bytes)[0]


def _nothing_usable(folder: Path, faults: list[Fault]) -> str:
    kinds = Counter(fault.kind for fault in faults)
    if set(kinds) == {"missing_member"} and any("no json" in fault.message for fault in faults):
        return (
            f"no sample of {folder} has a KEY.json record (first: {faults[0]}); for WebDatasets with .txt captions "
            "run `python -m data_tools build webdataset` first"
        )
    listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    return f"{folder} has no usable sample ({listed or 'its shards are empty'}); first: {faults[0] if faults else '-'}"
