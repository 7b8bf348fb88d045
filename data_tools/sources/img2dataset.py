"""Shards from the output folder of img2dataset, in its "files" or its "webdataset" format.

examples:
  python -m data_tools build img2dataset --downloads laion-subset --out shards/pairs
  python -m data_tools build img2dataset --downloads laion-zh --language zh --out shards/pairs --workers 32

Each folder 00000/ or tar 00000.tar becomes one shard. What img2dataset could not download never reached the disk; its
*_stats.json files are added up and printed, so that the reports account for every line of the list of URLs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from data_tools.execution.options import ExecutionOptions
from data_tools.execution.shards import Drop, ShardSource
from data_tools.shards import Record
from data_tools.sources.pairs import (
    PairOptions,
    add_pair_arguments,
    build_pairs,
    caption_of,
    make_record,
    pair_options,
    sample_key,
)
from data_tools.sources.webdataset import KEPT_METADATA, tar_sources
from pipeline.base.border import BorderError, read_typed
from pipeline.data.schema import IMAGE_EXTENSIONS

STATS: tuple[Literal["count", "successes", "failed_to_download", "failed_to_resize"], ...]
STATS = ("count", "successes", "failed_to_download", "failed_to_resize")


@dataclass(frozen=True)
class Img2DatasetOptions(PairOptions):
    """The downloader's output folder, and what its captions are."""

    downloads: Path = Path()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--downloads", required=True, type=Path, help="img2dataset's output folder")
    add_pair_arguments(parser)


@dataclass(frozen=True)
class FilesShard:
    """One numbered folder of img2dataset's "files" format."""

    name: str
    folder: Path
    options: PairOptions
    dataset: str

    def identity(self) -> dict[str, Any]:
        return {"folder": self.folder.name, "files": sum(1 for _ in os.scandir(self.folder))}

    def changed_at(self) -> float:
        return self.folder.stat().st_mtime

    def records(self) -> Iterator[Record | Drop]:
        by_stem: dict[str, dict[str, Path]] = {}
        for path in sorted(self.folder.iterdir()):
            if path.is_file():
                stem, _, extension = path.name.partition(".")
                by_stem.setdefault(stem, {})[extension.lower()] = path
        for stem, files in by_stem.items():
            where, key = f"{self.folder.name}/{stem}", sample_key(f"{self.name}-{stem}")
            image = next((files[e] for e in IMAGE_EXTENSIONS if e in files), None)
            if image is None:
                yield Drop(key, "incomplete_sample", f"{where} has no image; it has {sorted(files)}")
                continue
            members: dict[str, bytes] = {name: files[name].read_bytes() for name in ("txt", "json") if name in files}
            caption, metadata = caption_of(members, ("caption",))
            source = {"dataset": self.dataset, "name": where}
            source |= {field: metadata[field] for field in KEPT_METADATA if field in metadata}
            yield make_record(
                key,
                image.read_bytes(),
                where,
                caption,
                options=self.options,
                source=source,
            )


def read_options(arguments: argparse.Namespace) -> Img2DatasetOptions:
    """The parsed options as a record.

    Raises:
        ValueError: the folder does not exist.
    """
    options = pair_options(arguments, Img2DatasetOptions)
    if not options.downloads.is_dir():
        raise ValueError(f"--downloads is {options.downloads}, which is no folder; give img2dataset's output folder")
    return options


def build(options: Img2DatasetOptions, out: Path, execution: ExecutionOptions) -> int:
    """Write a shard to ``out`` for every tar and every folder of images."""
    root = options.downloads
    shards: list[ShardSource] = list(tar_sources(root, options, ("caption",)))
    # A folder with images in it, at any depth: several downloads may lie side by side.
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        if any(name.lower().endswith(tuple(f".{e}" for e in IMAGE_EXTENSIONS)) for name in names):
            path = Path(folder)
            name = sample_key(str(path.relative_to(root))) or root.name
            shards.append(FilesShard(name, path, options, root.name))
    stats = _download_stats(root)
    if stats:
        print("img2dataset: " + ", ".join(f"{name} {stats[name]}" for name in STATS if name in stats))
    return build_pairs("img2dataset", shards, options, out, execution)


class _Stats(TypedDict, total=False):
    """What is read of ``*_stats.json``; there is more in it."""

    count: int
    successes: int
    failed_to_download: int
    failed_to_resize: int


_STATS: TypeAdapter[_Stats] = TypeAdapter(_Stats)


def _download_stats(root: Path) -> Counter[str]:
    total: Counter[str] = Counter()
    for path in sorted(root.rglob("*_stats.json")):
        try:
            stats = read_typed(path, _STATS)
        except BorderError as error:
            print(f"{error}; left out of the counts", file=sys.stderr)
            continue
        total.update({name: stats[name] for name in STATS if name in stats})
    return total
