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
from data_tools.shards import DEFAULT_SAMPLES_PER_SHARD, Record
from data_tools.sources.boxes import BoxProblem, usable_box
from data_tools.sources.finehard_index import DownloadIndex, Span, build_index, item_spans
from data_tools.sources.images import ImageProblem, read_image
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
    samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotations", required=True, type=Path, help="FineHARD/jsonfiles")
    parser.add_argument("--url-keys", required=True, type=Path, help="FineHARD/url2key_jsons")
    parser.add_argument("--images", required=True, type=Path, help="img2dataset's output folder")
    parser.add_argument("--samples-per-shard", type=int, default=DEFAULT_SAMPLES_PER_SHARD)


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
        for item in self.span.items():
            f_path = item.get("f_path") if isinstance(item, dict) else None
            if not isinstance(f_path, str) or not f_path:
                yield Drop("?", "bad_item", f"{json.dumps(item, ensure_ascii=False)[:120]} has no f_path")
                continue
            part, key = self.index.part_and_key(f_path)
            name = f"{part}-{key}".replace(".", "_").replace("/", "_").strip("-")
            if name in seen:
                yield Drop(name, "duplicate_item", f"{f_path} is named twice")
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
    options = options_from(arguments, FineHardOptions)
    if options.samples_per_shard < 1:
        raise ValueError(f"--samples-per-shard is {options.samples_per_shard}; it must be at least 1")
    return options


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
    shards = [
        FineHardShard(f"{path.stem}-{number:06d}", span, index)
        for path in files
        for number, span in enumerate(item_spans(path, options.samples_per_shard))
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


def make_record(name: str, item: dict[str, Any], path: Path) -> Record:
    """Raises: ImageProblem, ItemProblem."""
    image = read_image(path)
    captions = {field: _text(item, field) for field in ("short_caption", "caption")}
    if not any(captions.values()):
        raise ItemProblem(f"{item['f_path']} has neither short_caption nor caption")
    found = item.get("bbox_info") or []
    if not isinstance(found, list):
        raise ItemProblem(f"{item['f_path']}: bbox_info is a {type(found).__name__}; it must be a list")
    regions, left_out = [], []
    for number, entry in enumerate(found):
        try:
            regions.append(_region(entry))
        except BoxProblem as problem:
            shown = {"bbox": entry.get("bbox"), "phrase": entry.get("short_expr")} if isinstance(entry, dict) else {}
            left_out.append({"kind": problem.kind, "region": number, **shown, "why": str(problem)})
    source: dict[str, Any] = {"dataset": "FineHARD", "f_path": item["f_path"]}
    if left_out:
        source["regions_left_out"] = left_out
    sample = Sample(
        language="zh" if item.get("is_cn") else "en",
        width=image.width,
        height=image.height,
        short_caption=captions["short_caption"],
        long_caption=captions["caption"],
        regions=tuple(regions),
        source=source,
    )
    return Record(name, image.data, image.extension, sample)


def _region(entry: Any) -> Region:
    """Raises: BoxProblem, also for a region without any expression."""
    if not isinstance(entry, dict) or not isinstance(entry.get("bbox"), list):
        raise BoxProblem("box_malformed", "a region must be an object with a bbox")
    box = usable_box(entry["bbox"][:4], MAX_OVERSHOOT)
    short, long = _text(entry, "short_expr"), _text(entry, "long_expr")
    if short is None and long is None:
        raise BoxProblem("region_without_phrase", "it has neither short_expr nor long_expr")
    score = entry["bbox"][4] if len(entry["bbox"]) > 4 else None
    return Region(
        box=box,
        phrase=short or long or "",
        long_phrase=long if short is not None else None,
        score=float(score) if isinstance(score, int | float) else None,
        negatives=_negatives(entry) if short is not None else (),
    )


def _negatives(entry: dict[str, Any]) -> tuple[str, ...]:
    """The altered phrases in the order of their numbers, unless the release flags them as not usable."""
    found = entry.get("short_expr_negs") or {}
    if not entry.get("flag_short_neg") or not isinstance(found, dict):
        return ()
    ordered = sorted(found.items(), key=lambda pair: (len(str(pair[0])), str(pair[0])))
    return tuple(text for _, text in ordered if isinstance(text, str) and text.strip())


def _text(record: dict[str, Any], name: str) -> str | None:
    value = record.get(name)
    return value if isinstance(value, str) and value.strip() else None


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
