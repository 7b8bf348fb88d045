"""The index beside the shards: where every sample's bytes are, and how many samples of each group a shard holds.

``SHARD.tar`` gets ``SHARD.index.parquet`` (one row a sample) and the folder gets ``manifest.json`` (columns over
shards: counts by language and patch budget, sizes, checksums). Training plans from the manifest alone and opens the row
index of a shard only when it reads samples of it. Samples with a fault are left out and counted here by kind.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from pipeline.base.border import validated
from pipeline.base.constants import LANGUAGES, PATCH_BUDGETS
from pipeline.base.files import write_aside, write_bytes
from pipeline.data.images import ImageFault, image_size
from pipeline.data.manifest import (
    FORMAT,
    MANIFEST_NAME,
    IndexProblem,
    Manifest,
    ShardIndex,
    index_name,
    load_manifest,
    manifest_from_json,
    read_index,
)
from pipeline.data.records import Fault, TarSample, walk_tar
from pipeline.data.resolution import budget_numbers
from pipeline.data.schema import IMAGE_EXTENSIONS, SampleError, parse_sample

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
) -> tuple[Manifest, list[Fault]]:
    """Index every ``*.tar`` of ``folder`` and write its manifest; returns the manifest and what was left out.

    Shards whose index is newer than they are and matches their length are not read again unless ``force``.
    ``on_shard(name, number done, number of shards)`` is called after each.

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
    work = partial(_index_unless_fresh, patch_budgets=tuple(patch_budgets), force=force, max_megapixels=max_megapixels)
    summaries: list[dict] = []
    pool = ProcessPoolExecutor(workers) if workers > 1 else None
    try:
        for summary in pool.map(work, shards) if pool else map(work, shards):
            summaries.append(summary)
            if on_shard:
                on_shard(summary["shard"], len(summaries), len(shards))
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    faults = [Fault(**fault) for summary in summaries for fault in summary["faults"]]
    if faults:
        lines = "".join(json.dumps(vars(fault), ensure_ascii=False) + "\n" for fault in faults)
        write_bytes(folder / FAULTS_NAME, lines.encode())
    else:
        (folder / FAULTS_NAME).unlink(missing_ok=True)
    if not any(summary["samples"] for summary in summaries):
        raise IndexProblem(_nothing_usable(folder, faults))
    document = _manifest_document(summaries, list(patch_budgets))
    write_bytes(folder / MANIFEST_NAME, json.dumps(document, separators=(",", ":")).encode())
    return manifest_from_json(str(folder), document), faults


def index_shard(
    shard: str | Path, patch_budgets: Sequence[int] = PATCH_BUDGETS, max_megapixels: float = 100.0
) -> tuple[dict, list[Fault]]:
    """Read one tar, write its index, and return its line of the manifest with the faults found."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard = Path(shard)
    rows, faults = _read_rows(shard, max_megapixels)
    columns = {name: [row[name] for row in rows] for name in _SCHEMA}
    with shard.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    summary = {
        "shard": shard.name,
        "bytes": shard.stat().st_size,
        "sha256": digest,
        "samples": len(rows),
        "regions": sum(columns["num_regions"]),
        "negatives": sum(columns["num_negatives"]),
        "counts": _count(columns, patch_budgets),
        "levels": list(patch_budgets),
        "faults": [vars(fault) for fault in faults],
    }
    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in _SCHEMA.items()])
    table = pa.table(columns, schema=schema).replace_schema_metadata(
        {"format": str(FORMAT), "summary": json.dumps(summary, ensure_ascii=False)}
    )
    with write_aside(index_path(shard)) as path:
        pq.write_table(table, path, compression="zstd")
        summary["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return summary, faults


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
}


class ShardSummary(TypedDict):
    """One shard's line of the manifest, as its index file carries it."""

    shard: str
    bytes: int
    sha256: str
    samples: int
    regions: int
    negatives: int
    counts: dict[str, int]
    levels: list[int]
    faults: list[dict[Literal["kind", "shard", "key", "message"], str]]


_SUMMARY: TypeAdapter[ShardSummary] = TypeAdapter(ShardSummary)


def _index_unless_fresh(shard: Path, patch_budgets: tuple[int, ...], force: bool, max_megapixels: float) -> dict:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    index = index_path(shard)
    if not force and index.is_file() and index.stat().st_mtime_ns >= shard.stat().st_mtime_ns:
        try:
            metadata = pq.read_schema(index).metadata or {}
            summary = validated(_SUMMARY, metadata.get(b"summary", b"{}"), "summary")
        except (ArrowException, OSError, ValueError):
            return index_shard(shard, patch_budgets, max_megapixels)[0]  # a damaged index is made again
        if summary["bytes"] == shard.stat().st_size and summary["levels"] == list(patch_budgets):
            return {**summary, "index_sha256": hashlib.sha256(index.read_bytes()).hexdigest()}
    return index_shard(shard, patch_budgets, max_megapixels)[0]


def _read_rows(shard: Path, max_megapixels: float) -> tuple[list[dict], list[Fault]]:
    rows: list[dict] = []
    faults: list[Fault] = []
    seen: set[str] = set()

    def report(kind: str, key: str, message: str) -> None:
        faults.append(Fault(kind, shard.name, key, message))

    for found in walk_tar(shard, faults.append):
        key = found.key
        try:
            if key in seen:
                raise SampleError("duplicate_key", "an earlier sample of the shard has this key; rename one")
            rows.append(_read_row(found, max_megapixels))
            seen.add(key)
        except SampleError as error:
            report(error.kind, key, str(error).removeprefix("?: sample ?: ").removeprefix(f"?: sample {key}: "))
        except ImageFault as error:
            report(error.kind, key, str(error))
    return rows, faults


def _read_row(found: TarSample, max_megapixels: float) -> dict:
    key, members, extension = found.key, found.members, found.image_extension
    if extension is None or "json" not in members:
        absent = "json" if extension else "/".join(IMAGE_EXTENSIONS)
        raise SampleError("missing_member", f"it has no .{absent} member, only {sorted(members)!r:.80}")
    content = {name: found.read(name) for name in (extension, "json")}
    sample = parse_sample(content["json"], key=key)
    size = image_size(content[extension], max_megapixels)
    if size != (sample.width, sample.height):
        raise SampleError(
            "size_mismatch",
            f"the upright image has {size[0]}x{size[1]} pixels, its record says {sample.width}x{sample.height}; "
            "boxes would lie elsewhere, so write the record again",
        )
    return {
        "key": key,
        "extension": extension,
        "image_offset": members[extension].offset,
        "image_length": members[extension].size,
        "image_crc32": zlib.crc32(content[extension]),
        "json_offset": members["json"].offset,
        "json_length": members["json"].size,
        "json_crc32": zlib.crc32(content["json"]),
        "width": sample.width,
        "height": sample.height,
        "language": sample.language,
        "num_regions": len(sample.regions),
        "num_negatives": sum(len(region.negatives) for region in sample.regions),
    }


def _count(columns: dict[str, list], patch_budgets: Sequence[int]) -> dict[str, int]:
    if not columns["key"]:
        return {}
    numbers = budget_numbers(np.array(columns["width"]), np.array(columns["height"]), patch_budgets).tolist()
    pairs = Counter(zip(columns["language"], numbers, strict=True))
    return {f"{language}/{patch_budgets[number]}": count for (language, number), count in sorted(pairs.items())}


def _manifest_document(summaries: list[dict], patch_budgets: list[int]) -> dict:
    groups = [f"{language}/{patch_budget}" for language in LANGUAGES for patch_budget in patch_budgets]
    present = [group for group in groups if any(group in summary["counts"] for summary in summaries)]
    faults = Counter(fault["kind"] for summary in summaries for fault in summary["faults"])
    return {
        "format": FORMAT,
        "levels": patch_budgets,
        "shards": [summary["shard"] for summary in summaries],
        **{
            name: [summary[name] for summary in summaries]
            for name in ("bytes", "sha256", "index_sha256", "samples", "regions", "negatives")
        },
        "counts": {group: [summary["counts"].get(group, 0) for summary in summaries] for group in present},
        "faults": dict(sorted(faults.items())),
    }


def _nothing_usable(folder: Path, faults: list[Fault]) -> str:
    kinds = Counter(fault.kind for fault in faults)
    if set(kinds) == {"missing_member"} and any("no .json" in fault.message for fault in faults):
        return (
            f"no sample of {folder} has a KEY.json record (first: {faults[0]}); for WebDatasets with .txt captions "
            "run `python -m data_tools build webdataset` first"
        )
    listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    return f"{folder} has no usable sample ({listed or 'its shards are empty'}); first: {faults[0] if faults else '-'}"
