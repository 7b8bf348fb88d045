"""Shards from a folder of images, at any depth.

examples:
  python -m data_tools build folder --images photographs --language en --out shards/images
  python -m data_tools build folder --images photographs --language zh --out shards/all \\
      --then "captions --server http://host:8000/v1 --model qwen" --then phrases \\
      --then "boxes --detector models/grounding-dino" --then negatives

A text file beside an image (photo.txt beside photo.jpg) is its caption. TIFF, BMP and GIF are stored as PNG, their
first frame. Images that cannot be decoded are left out and named in the reports with the reason.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.execution.options import ExecutionOptions
from data_tools.execution.shards import Drop
from data_tools.shard_size import ShardSize, add_shard_size_arguments, shard_size
from data_tools.shards import Record
from data_tools.sources.pairs import (
    PairOptions,
    UniqueKeys,
    add_pair_arguments,
    build_pairs,
    decode_text,
    digest,
    make_record,
    pair_options,
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class FolderOptions(PairOptions):
    """The folder of images, and what the captions beside them are."""

    images: Path = Path()
    size: ShardSize = ShardSize()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", required=True, type=Path, help="folder of images")
    add_shard_size_arguments(parser)
    add_pair_arguments(parser)


@dataclass(frozen=True)
class FolderShard:
    """Some files of a folder: ``(key, path from root)``."""

    name: str
    root: Path
    files: tuple[tuple[str, str], ...]
    options: PairOptions

    def identity(self) -> dict[str, Any]:
        return {"images": len(self.files), "names": digest(path for _, path in self.files)}

    def changed_at(self) -> float:
        times = []
        for _, path in self.files:
            file = self.root / path
            times += [found.stat().st_mtime for found in (file, file.with_suffix(".txt")) if found.exists()]
        return max(times, default=0.0)

    def records(self) -> Iterator[Record | Drop]:
        for key, path in self.files:
            file = self.root / path
            try:
                image = file.read_bytes()
            except FileNotFoundError:
                yield Drop(key, "missing_image", f"{path} went away while the folder was read")
                continue
            beside = file.with_suffix(".txt")
            caption = decode_text(beside.read_bytes()) if beside.is_file() else None
            source = {"dataset": self.root.name, "file_name": path}
            yield make_record(key, image, path, caption, options=self.options, source=source)


def read_options(arguments: argparse.Namespace) -> FolderOptions:
    """The parsed options as a record.

    Raises:
        ValueError: a number is out of its range, or the folder does not exist.
    """
    options = pair_options(arguments, FolderOptions, size=shard_size(arguments))
    if not options.images.is_dir():
        raise ValueError(f"--images is {options.images}, which is no folder; give the folder that holds the images")
    return options


def build(options: FolderOptions, out: Path, execution: ExecutionOptions) -> int:
    """Write the shards of the folder to ``out``."""
    keys = UniqueKeys()
    files = [(keys.key(os.path.splitext(path)[0], path), path) for path in sorted(_walk(options.images))]
    if not files:
        known = ", ".join(IMAGE_SUFFIXES)
        raise ValueError(f"{options.images} holds no image; files must end in one of {known}")
    cuts = options.size.cut([_bytes(options.images / path) for _, path in files])
    shards = [
        FolderShard(f"images-{number:06d}", options.images, tuple(files[cut]), options)
        for number, cut in enumerate(cuts)
    ]
    return build_pairs("folder", shards, options, out, execution)


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0  # a link that leads nowhere; its shard's report names it


def _walk(root: Path) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
