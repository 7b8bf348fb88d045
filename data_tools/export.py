"""Write shards as Parquet files that Hugging Face datasets reads, one a shard.

examples:
  python -m data_tools export shards/train --parquet exported/train
  python -c 'import datasets; print(datasets.load_dataset("parquet", data_dir="exported/train")["train"][0])'
  python -m data_tools build table --table exported/train --out shards/again

Columns: key, image (the Image feature), width, height, language, short_caption, long_caption, regions (box, phrase,
long_phrase, category, score, negatives) and source as JSON. Samples with a fault are left out and counted; so are
clips, and further members of a sample, such as masks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from data_tools.execution.progress import Progress
from pipeline.base.files import write_aside
from pipeline.data.records import Fault, walk_folder, walk_records

ROWS_AT_ONCE = 200  # a row group: what datasets reads at a time, and what is held in memory here
TEXTS = ("key", "language", "short_caption", "long_caption", "source")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--parquet", required=True, type=Path, metavar="DIR", help="folder for the Parquet files")


def run(arguments: argparse.Namespace) -> int:
    shards = walk_folder(arguments.folder)
    shown, counts = Progress("export", len(shards)), Counter[str]()
    for shard in shards:
        export_shard(shard, arguments.parquet / f"{shard.name.removesuffix('.tar')}.parquet", counts)
        shown.add(counts["samples"] - shown.samples)
        shown.job(skipped=False)
    shown.end()
    lost = {name: number for name, number in counts.items() if name != "samples"}
    for name, number in sorted(lost.items()):
        print(f"left out: {name} {number}", file=sys.stderr)
    print(f"{arguments.parquet}: {counts['samples']} samples in {len(shards)} files")
    return 0


def export_shard(shard: Path, path: Path, counts: Counter[str]) -> None:
    """Write one shard; adds to ``counts`` the samples and, by kind, what was left out.

    Raises:
        OSError: the shard cannot be read, or the disk is full.
    """
    import pyarrow as pa  # half a second that --help does without
    import pyarrow.parquet as pq

    def on_fault(fault: Fault) -> None:
        counts[fault.kind] += 1

    schema = _schema()
    with write_aside(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for found, sample in walk_records(shard, on_fault, captions_required=False):
            document = sample.to_json()
            extension = found.image_extension or ""
            document["key"] = found.key
            document["image"] = {"bytes": found.read(extension), "path": f"{found.key}.{extension}"}
            document["source"] = json.dumps(sample.source, ensure_ascii=False) if sample.source else None
            rows.append(document)
            counts["samples"] += 1
            counts["further members"] += len(found.members) - 2
            if len(rows) == ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    counts += Counter()  # drops zeros


def _schema() -> Any:
    """Arrow's types, with what tells datasets that ``image`` is one."""
    import datasets  # seconds that --help does without
    import pyarrow as pa

    texts = {name: datasets.Value("string") for name in TEXTS}
    region = {
        "box": datasets.List(datasets.Value("float64")),
        "phrase": datasets.Value("string"),
        "long_phrase": datasets.Value("string"),
        "category": datasets.Value("string"),
        "score": datasets.Value("float64"),
        "negatives": datasets.List(datasets.Value("string")),
    }
    sides = {"width": datasets.Value("int32"), "height": datasets.Value("int32")}
    features = datasets.Features({**texts, **sides, "image": datasets.Image(), "regions": datasets.List(region)})
    schema: pa.Schema = features.arrow_schema
    return schema
