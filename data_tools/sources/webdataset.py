"""Shards from WebDataset tars of images with captions (KEY.jpg with KEY.txt or KEY.json), or of images alone.

examples:
  python -m data_tools build webdataset --tars downloads --out shards/pairs
  python -m data_tools build webdataset --tars downloads --caption-keys caption text --caption-field long_caption \\
      --language zh --out shards/pairs

Each tar becomes one shard. A damaged tar is named and leaves its shard unfinished; the others are done.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.execution.options import ExecutionOptions
from data_tools.execution.shards import Drop, read_members
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
from pipeline.data.schema import IMAGE_EXTENSIONS

KEPT_METADATA = ("url", "sha256", "license", "similarity", "key")  # what provenance keeps of a sample's own JSON


@dataclass(frozen=True)
class WebDatasetOptions(PairOptions):
    """The folder of tars, and the names under which KEY.json may hold a caption."""

    tars: Path = Path()
    caption_keys: tuple[str, ...] = ("caption", "text")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tars", required=True, type=Path, help="folder with *.tar, at any depth")
    parser.add_argument(
        "--caption-keys", nargs="+", default=["caption", "text"], help="of KEY.json where there is no KEY.txt"
    )
    add_pair_arguments(parser)


@dataclass(frozen=True)
class WebDatasetShard:
    """One tar of somebody else's."""

    name: str
    path: Path
    options: PairOptions
    caption_keys: tuple[str, ...]
    dataset: str
    key_prefix: str  # tells tars apart that lie in different folders, where downloads number their samples anew

    def identity(self) -> dict[str, Any]:
        return {"bytes": self.path.stat().st_size}

    def changed_at(self) -> float:
        return self.path.stat().st_mtime

    def records(self) -> Iterator[Record | Drop]:
        seen: set[str] = set()
        for item in read_members(self.path):
            if isinstance(item, Drop):
                yield item
                continue
            name, members = item
            key = self.key_prefix + sample_key(name)
            where = f"{self.path.name}: {name}"
            extension = next((e for e in IMAGE_EXTENSIONS if e in members), None)
            if key in seen:
                yield Drop(key, "duplicate_key", f"{where} is there twice")
            elif extension is None:
                yield Drop(key, "incomplete_sample", f"{where} has no image; it has {sorted(members)}")
            else:
                seen.add(key)
                caption, metadata = caption_of(members, self.caption_keys)
                source = {"dataset": self.dataset, "tar": self.path.name, "name": name}
                source |= {field: metadata[field] for field in KEPT_METADATA if field in metadata}
                yield make_record(
                    key,
                    members[extension],
                    where,
                    caption,
                    options=self.options,
                    source=source,
                )


def tar_sources(folder: Path, options: PairOptions, caption_keys: tuple[str, ...]) -> list[WebDatasetShard]:
    """One source a tar of ``folder``, named by its path there."""
    return [
        WebDatasetShard(
            sample_key(str(path.relative_to(folder)).removesuffix(".tar")),
            path,
            options,
            caption_keys,
            folder.name,
            sample_key(f"{path.parent.relative_to(folder)}/-") if path.parent != folder else "",
        )
        for path in sorted(folder.rglob("*.tar"))
    ]


def read_options(arguments: argparse.Namespace) -> WebDatasetOptions:
    """The parsed options as a record.

    Raises:
        ValueError: the folder does not exist.
    """
    options = pair_options(arguments, WebDatasetOptions, caption_keys=tuple(arguments.caption_keys))
    if not options.tars.is_dir():
        raise ValueError(f"--tars is {options.tars}, which is no folder; give the folder that holds the tars")
    return options


def build(options: WebDatasetOptions, out: Path, execution: ExecutionOptions) -> int:
    """Write a shard to ``out`` for every tar."""
    sources = tar_sources(options.tars, options, options.caption_keys)
    return build_pairs("webdataset", sources, options, out, execution)
