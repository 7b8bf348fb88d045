"""Shards from the public FineHARD release (or FineRegion-CN) as it is downloaded.

example:
  python -m data_tools build finehard --annotations FineHARD/jsonfiles --url-keys FineHARD/url2key_jsons \\
      --images downloads --out shards/finehard

--annotations holds the release's JSON arrays, --url-keys its url2key_*.json, --images the folders that img2dataset
wrote (output format "files"), whose keys are other ones: images are found by their URL. OUT/import.json says how
much matched; OUT/left_out.jsonl names every dead link and every box left out, with the reason. Nothing else is lost.
Interrupted, the same command goes on shard by shard; after more images were downloaded, give another --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.execution.command import print_summary
from data_tools.execution.interface import Shard, Step
from data_tools.execution.options import ExecutionOptions, options_from
from data_tools.execution.reports import read_report
from data_tools.execution.shard_work import REPORTS, WORK
from data_tools.execution.shards import Drop
from data_tools.execution.steps import RunSummary, run_shards
from data_tools.shard_size import ShardSize, add_shard_size_arguments, mean_of, shard_size
from data_tools.shards import Record
from data_tools.sources.boxes import BoxProblem, usable_box
from data_tools.sources.finehard_index import DownloadIndex, Span, build_index, item_spans
from data_tools.sources.finehard_items import Item, read_item, read_region
from data_tools.sources.images import ImageProblem, read_image
from pipeline.base.border import BorderError, quoted, shown
from pipeline.base.files import write_aside, write_json
from pipeline.data.records import walk_records
from pipeline.data.schema import Region, Sample

MAX_OVERSHOOT = 0.01  # of a side; assumption: a detector's box further outside than this is wrong, not rounded
REPORT = "import.json"
LEFT_OUT = "left_out.jsonl"
PRINTED = 20  # of what was left out; the file has all


@dataclass(frozen=True)
class FineHardOptions:
    """The release's folders and the downloads."""

    annotations: Path
    url_keys: Path
    images: Path
    size: ShardSize = ShardSize()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotations", required=True, type=Path, help="FineHARD/jsonfiles")
    parser.add_argument("--url-keys", required=True, type=Path, help="FineHARD/url2key_jsons")
    parser.add_argument("--images", required=True, type=Path, help="img2dataset's output folder")
    add_shard_size_arguments(parser)


@dataclass
class FineHardShard:
    """The items of one span of an annotation file."""

    name: str
    span: Span
    index: DownloadIndex

    def identity(self) -> dict[str, Any]:
        return {"file": self.span.path.name, "start": self.span.start, "items": self.span.count}

    def changed_at(self) -> float:
        return self.span.path.stat().st_mtime

    def records(self) -> Iterator[Record | Drop]:
        seen: set[str] = set()
        for found in self.span.items():
            try:
                item = read_item(found)
            except BorderError as error:
                yield Drop("?", "bad_item", str(error))
                continue
            part, key = self.index.part_and_key(item.f_path)
            name = f"{part}-{key}".replace(".", "_").replace("/", "_").strip("-")
            if name in seen:
                yield Drop(name, "duplicate_item", f"{shown(item.f_path)} is named twice")
                continue
            seen.add(name)
            try:
                yield make_record(name, item, self.index.find(part, key))
            except ImageProblem as problem:
                yield Drop(name, problem.kind, str(problem))
            except ItemProblem as problem:
                yield Drop(name, "bad_item", str(problem))


class ItemProblem(ValueError):
    """An item has no caption, or parts of another type than the release's."""


class CountRegions(Step):
    """Changes nothing; counts for the reports the boxes that were left out."""

    name, version = "finehard", "1"

    def apply(self, records: list[Record], shard: Shard) -> list[Record | Drop]:
        for record in records:
            for left_out in record.sample.source.get("regions_left_out", []):
                shard.count(left_out["kind"])
        return list(records)


def read_options(arguments: argparse.Namespace) -> FineHardOptions:
    """The parsed options as a record.

    Raises:
        ValueError: a number is out of its range.
    """
    return options_from(arguments, FineHardOptions, size=shard_size(arguments))


def build(options: FineHardOptions, out: Path, execution: ExecutionOptions) -> int:
    """Write the release's items to ``out`` as shards.

    Raises:
        ValueError: a folder or file of the release is missing or damaged.
    """
    files = sorted(options.annotations.glob("*.json"))
    if not files:
        raise ValueError(f"{options.annotations} holds no *.json; give FineHARD's jsonfiles folder")
    database = out / WORK / "downloads.sqlite"
    num_keys, num_downloads = build_index(database, options.url_keys, options.images)
    print(f"{num_keys} keys with URLs, {num_downloads} downloads noted", flush=True)
    index = DownloadIndex(database, options.images)
    items = options.size.most_samples(num_downloads, mean_of(index.some_sizes()))
    shards = [
        FineHardShard(f"{path.stem}-{number:06d}", span, index)
        for path in files
        for number, span in enumerate(item_spans(path, items))
    ]
    summary = run_shards(
        shards,
        CountRegions(),
        out,
        executor=execution.make_executor(),
        retry_failed=execution.retry_failed,
        overwrite=execution.overwrite,
        title="finehard",
    )
    status = print_summary(summary)
    _report(out, summary, [shard.name for shard in shards])
    return status


def make_record(name: str, item: Item, path: Path) -> Record:
    """Raises: ImageProblem, ItemProblem."""
    image = read_image(path)
    if item.short_caption is None and item.caption is None:
        raise ItemProblem(f"{shown(item.f_path)} has neither short_caption nor caption")
    regions, left_out = [], []
    for number, entry in enumerate(item.bbox_info or []):
        try:
            regions.append(_region(entry))
        except BoxProblem as problem:
            left_out.append({"kind": problem.kind, "region": number, "entry": quoted(entry, 200), "why": str(problem)})
    source: dict[str, Any] = {"dataset": "FineHARD", "f_path": item.f_path}
    if left_out:
        source["regions_left_out"] = left_out
    sample = Sample(
        language="zh" if item.is_cn else "en",
        width=image.width,
        height=image.height,
        short_caption=item.short_caption,
        long_caption=item.caption,
        regions=tuple(regions),
        source=source,
    )
    return Record(name, image.data, image.extension, sample)


def _region(entry: Any) -> Region:
    """Raises: BoxProblem, also for a region without any expression."""
    try:
        region = read_region(entry)
    except BorderError as error:
        raise BoxProblem("box_malformed", str(error)) from error
    box = usable_box(region.bbox[:4], MAX_OVERSHOOT)
    short, long = region.short_expr, region.long_expr
    if short is None and long is None:
        raise BoxProblem("region_without_phrase", "it has neither short_expr nor long_expr")
    return Region(
        box=box,
        phrase=short or long or "",
        long_phrase=long if short is not None else None,
        score=region.bbox[4] if len(region.bbox) > 4 else None,
        negatives=region.negatives if short is not None else (),
    )


def _report(out: Path, summary: RunSummary, shards: list[str]) -> None:
    """Write OUT/import.json and OUT/left_out.jsonl, and print the first of what was left out."""
    dropped = sum(summary.dropped.values())
    printed = 0
    # A line each: a release has millions of dead links.
    with write_aside(out / LEFT_OUT) as partial, open(partial, "w", encoding="utf-8") as stream:
        for name in shards:
            for entry in _left_out(out, name):
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
                if printed < PRINTED:
                    print("left out: " + " ".join(str(value) for value in entry.values()))
                    printed += 1
    content = {
        "items": summary.samples_in,
        "matched": summary.samples_out,
        "items_left_out": dict(sorted(summary.dropped.items())),
        "regions_left_out": dict(sorted(summary.counts.items())),
        "unfinished_shards": sorted(summary.unfinished),
    }
    write_json(out / REPORT, content)
    lost = f"{dropped} items and {sum(summary.counts.values())} regions left out"
    print(f"{summary.samples_out} of {summary.samples_in} items matched, {lost}: {out / REPORT}, {out / LEFT_OUT}")


def _left_out(out: Path, name: str) -> Iterator[dict[str, Any]]:
    """The items and regions of one shard that were left out, each with its key, kind and reason."""
    path = out / REPORTS / f"{name}.json"
    if not path.is_file():
        return  # an unfinished shard; the summary names it
    report = read_report(path)
    for drop in report["dropped"]:
        yield {"key": drop["key"], "kind": drop["reason"], "why": drop["detail"]}
    if not report["counts"]:
        return
    for found, sample in walk_records(out / f"{name}.tar"):
        for entry in sample.source.get("regions_left_out", []):
            yield {"key": found.key, **entry}
